"""Write the data of configs/arithmetic.yaml: sums of two numbers, half of them answered wrong.

python data/arithmetic/make_data.py [--check]
"""

import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).parent
LARGEST = 19  # of each number
HELD_OUT = 80  # sums that no other file asks for
DEMONSTRATIONS = 6_000
RIGHT = 0.5  # share of the demonstrations


def make_files() -> dict[str, list[dict[str, str]]]:
    """The rows of each file."""
    draw = random.Random(7)
    sums = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    draw.shuffle(sums)
    heldout, train = sums[:HELD_OUT], sums[HELD_OUT:]
    demonstrations = []
    for _ in range(DEMONSTRATIONS):
        a, b = draw.choice(train)
        answer = a + b
        if draw.random() >= RIGHT:  # the slips of a pupil: near the right answer
            answer = max(0, answer + draw.choice((-10, -2, -1, 1, 2, 10)))
        demonstrations.append({"prompt": ask(a, b), "completion": str(answer)})
    return {
        "demonstrations.jsonl": demonstrations,
        "prompts.jsonl": [{"prompt": ask(a, b), "answer": str(a + b)} for a, b in train],
        "heldout_prompts.jsonl": [{"prompt": ask(a, b), "answer": str(a + b)} for a, b in heldout],
    }


def ask(a: int, b: int) -> str:
    """Digits apart, so that a tokenizer cannot make a word of a number."""
    return f"{a:02d}+{b:02d}="


def main() -> None:
    """Write the files, or compare them."""
    for name, rows in make_files().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if "--check" not in sys.argv:
            (HERE / name).write_text(text, encoding="utf-8")
        elif (HERE / name).read_text(encoding="utf-8") != text:
            raise SystemExit(f"{name} is not what make_data.py makes")


if __name__ == "__main__":
    main()
