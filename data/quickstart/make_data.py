"""Write the data files of the quickstart world: `python data/quickstart/make_data.py [--check]`.

The files are a pure function of this folder's code and `SEED`. `--check` writes nothing and exits
with 1 if a shipped file differs from what would be written.

- Demonstrations are of mixed quality on purpose: a supervised model that imitates them is right two
  times in three and seldom polite, so PPO has something to improve, and answers of every quality
  are there to be sampled.
- Preferences come from noisy annotators with a soft spot for flattery. The pairs are chosen to
  leave PPO no blind spot of the reward model to exploit: besides free draws there are minimal pairs
  (one frame, two contents; same-category slips above all, because they are the hardest to see),
  answers against a damaged copy of themselves, answers against the same with one sentence too many,
  and right content against nice manners. The file begins with contrasts alone (see `LESSON`), and
  `reward_model.order: file` keeps them first. Each pair is seen once: with fewer pairs and more
  epochs the reward model learns the annotators' noise by heart.
- The dev and held-out preferences are noise-free probes: one error each, named in `kind`.

No dev or test combination is asked about or spoken of in any training file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

FOLDER = Path(__file__).parent

if TYPE_CHECKING:
    import gold
    import world
    from damage import damage
else:

    def _load(name: str) -> ModuleType:
        """Load a sibling from its path: this folder is not an installed package."""
        spec = importlib.util.spec_from_file_location(f"quickstart_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    gold = _load("gold")
    world = gold.world
    damage = _load("damage").damage

SEED = 20260
DEMONSTRATIONS = 36_000
PREFERENCES = 60_000
NAIVE = 12_000  # pairs of the reward model that is flawed on purpose
LESSON = 12_000  # of these, the first, are contrasts alone: with them comparing is learnt soonest
PROMPTS = {"train": 1_920, "dev": 288, "test": 288}

CONTENT_MIX = {
    "right": 0.64,
    "slip": 0.06,
    "wrong_fact": 0.10,
    "wrong_question": 0.04,
    "off_topic": 0.04,
    "no_idea": 0.12,
}
MANNER_MIX = {"polite": 0.20, "plain": 0.62, "rude": 0.18}
FLATTERY_SHARE = 0.08
RAMBLING_SHARE = 0.12

# The other contents of a minimal pair. Slips are the hardest to see, so they come most often; with
# many more of them the reward model neglects wrong facts about combinations it has not met.
CONTRAST_MIX = {
    "slip": 0.46,
    "wrong_fact": 0.34,
    "wrong_question": 0.09,
    "off_topic": 0.07,
    "no_idea": 0.04,
}
PAIR_MIX = {
    "free": 0.04,
    "contrast": 0.52,
    "damaged": 0.26,
    "manner": 0.08,
    "trade": 0.06,
    "surplus": 0.04,
}
FLATTERY_BIAS = 0.35  # annotators forget that flattery costs 0.25, and like it a little
ANNOTATOR_NOISE = 0.5  # temperature of the Bradley-Terry choice, in gold points

TRAIN = set(world.questions("train"))
Message = dict[str, str]
Row = dict[str, Any]


# --- Answers --------------------------------------------------------------------------------------


def draw(rng: random.Random, mix: dict[str, float]) -> str:
    """Draw a key with probability proportional to its weight."""
    return rng.choices(list(mix), weights=list(mix.values()))[0]


def content_sentence(rng: random.Random, question: world.Question, label: str, form: int) -> str:
    """Write a content sentence with this label; `form` picks the wording (see `world.FORMS`)."""
    if label == "no_idea":
        return world.NO_IDEA[form].format(topic=question.topic)
    return world.statement(rng.choice(world.claims(question, label, TRAIN)), form)


def random_answer(rng: random.Random, question: world.Question) -> world.Answer:
    """Draw an answer as the people who wrote the demonstrations would."""
    return world.dress(
        rng,
        content_sentence(rng, question, draw(rng, CONTENT_MIX), rng.randrange(world.FORMS)),
        draw(rng, MANNER_MIX),
        flatter=rng.random() < FLATTERY_SHARE,
        ramble=rng.random() < RAMBLING_SHARE,
    )


def even_frame(rng: random.Random, content: str) -> world.Answer:
    """Put a content sentence into a frame with polite and plain manners alike.

    The reward model must judge content in polite answers too: that is where PPO will go.
    """
    manner = draw(rng, {"polite": 0.45, "plain": 0.40, "rude": 0.15})
    flatter, ramble = (rng.random() < 0.05 for _ in range(2))
    return world.dress(rng, content, manner, flatter=flatter, ramble=ramble)


# --- Answers with something wrong -----------------------------------------------------------------


def damaged(rng: random.Random, answer: world.Answer) -> str:
    """Write an answer with one sentence damaged, mostly the content."""
    slots = [slot for slot in world.SLOTS if getattr(answer, slot)]
    slot = "content" if rng.random() < 0.8 else rng.choice(slots)
    return str(replace(answer, **{slot: damage(rng, getattr(answer, slot))}))


def with_surplus(rng: random.Random, question: world.Question, answer: world.Answer) -> str:
    """Write an answer with one sentence too many: a repeat, a second content, more manners."""
    sentences = world.split_sentences(str(answer))
    extra = rng.choice(
        (
            rng.choice(sentences),
            content_sentence(rng, question, draw(rng, CONTENT_MIX), rng.randrange(world.FORMS)),
            rng.choice(world.OPENINGS["polite"] + world.CLOSINGS["polite"]),
            rng.choice(world.ASIDES + world.FLATTERY),
        )
    )
    place = rng.randrange(len(sentences) + 1)
    return " ".join([*sentences[:place], extra, *sentences[place:]])


# --- Pairs ----------------------------------------------------------------------------------------


def free_pair(rng: random.Random, question: world.Question) -> tuple[str, str]:
    """Two answers as they come."""
    return str(random_answer(rng, question)), str(random_answer(rng, question))


def contrast_pair(rng: random.Random, question: world.Question) -> tuple[str, str]:
    """One frame and one wording, two contents; most often one of them is right."""
    first = "right" if rng.random() < 0.9 else draw(rng, CONTRAST_MIX)
    second = draw(rng, CONTRAST_MIX)
    form = rng.randrange(world.FORMS)
    answer = even_frame(rng, content_sentence(rng, question, first, form))
    other = content_sentence(rng, question, second, form)
    return str(answer), str(replace(answer, content=other))


def damaged_pair(rng: random.Random, question: world.Question) -> tuple[str, str]:
    """An answer and a damaged copy, or a damaged answer and any other (which may well be worse)."""
    label = "right" if rng.random() < 0.6 else draw(rng, CONTENT_MIX)
    answer = even_frame(rng, content_sentence(rng, question, label, rng.randrange(world.FORMS)))
    other = answer if rng.random() < 0.7 else random_answer(rng, question)
    return str(other), damaged(rng, answer)


def surplus_pair(rng: random.Random, question: world.Question) -> tuple[str, str]:
    """An answer, and the same with one sentence too many."""
    label = "right" if rng.random() < 0.6 else draw(rng, CONTENT_MIX)
    answer = even_frame(rng, content_sentence(rng, question, label, rng.randrange(world.FORMS)))
    return str(answer), with_surplus(rng, question, answer)


def manner_pair(rng: random.Random, question: world.Question) -> tuple[str, str]:
    """One content, mostly right, two frames."""
    label = "right" if rng.random() < 0.6 else draw(rng, CONTENT_MIX)
    content = content_sentence(rng, question, label, rng.randrange(world.FORMS))
    return str(even_frame(rng, content)), str(even_frame(rng, content))


def trade_pair(rng: random.Random, question: world.Question) -> tuple[str, str]:
    """A right answer with worse manners against a wrong one with better manners."""
    worse, better = rng.choice((("plain", "polite"), ("rude", "plain"), ("rude", "polite")))
    form = rng.randrange(world.FORMS)
    right = content_sentence(rng, question, "right", form)
    wrong = content_sentence(rng, question, draw(rng, CONTRAST_MIX), form)
    first = world.dress(rng, right, worse)
    return str(first), str(world.dress(rng, wrong, better))


PAIRS: dict[str, Callable[[random.Random, world.Question], tuple[str, str]]] = {
    "free": free_pair,
    "contrast": contrast_pair,
    "damaged": damaged_pair,
    "manner": manner_pair,
    "surplus": surplus_pair,
    "trade": trade_pair,
}


def utility(answer: str, question: world.Question) -> float:
    """Say what an annotator thinks of an answer, before noise: gold, and a soft spot."""
    judged = gold.score_one(answer, question)
    return judged["score"] + FLATTERY_BIAS * judged["flattery"]


def annotate(
    rng: random.Random, pair: tuple[str, str], question: world.Question
) -> tuple[str, str] | None:
    """Let a noisy annotator say (chosen, rejected); None if there is nothing to choose between."""
    margin = utility(pair[0], question) - utility(pair[1], question)
    if margin == 0.0:
        return None
    prefers_first = rng.random() < 1.0 / (1.0 + math.exp(-margin / ANNOTATOR_NOISE))
    return pair if prefers_first else (pair[1], pair[0])


# --- Files ----------------------------------------------------------------------------------------


def user(text: str) -> Message:
    """One user turn."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """One assistant turn."""
    return {"role": "assistant", "content": text}


def training_questions(rng: random.Random, count: int) -> Iterator[tuple[world.Question, str]]:
    """Yield `count` training questions with a random wording, every combination equally often."""
    questions = world.questions("train")
    for index in range(count):
        question = questions[index % len(questions)]
        yield question, rng.choice(world.prompt_texts(question))


def make_demonstrations(rng: random.Random) -> list[Row]:
    """Make the dialogues for supervised fine-tuning."""
    rows = []
    for question, text in training_questions(rng, DEMONSTRATIONS):
        answer = random_answer(rng, question)
        rows.append({"messages": [user(text), assistant(str(answer))]})
    rng.shuffle(rows)
    return rows


def make_preferences(rng: random.Random) -> list[Row]:
    """Make the annotated pairs for the reward model: first contrasts alone, then the mix."""
    lesson = annotated_pairs(rng, LESSON, {"contrast": 1.0})
    return lesson + annotated_pairs(rng, PREFERENCES - LESSON, PAIR_MIX)


def make_naive_preferences(rng: random.Random) -> list[Row]:
    """Make the pairs of a reward model that is flawed on purpose: none looks for its blind spots.

    Two free draws each, as if a user had compared two samples of the supervised model: hardly any
    pair differs in the content alone, and none holds a damaged sentence.
    """
    return annotated_pairs(rng, NAIVE, {"free": 1.0})


def annotated_pairs(rng: random.Random, count: int, mix: dict[str, float]) -> list[Row]:
    """Make annotated pairs of the given mix."""
    rows: list[Row] = []
    for question, text in training_questions(rng, count):
        judged = None
        while judged is None:
            judged = annotate(rng, PAIRS[draw(rng, mix)](rng, question), question)
        chosen, rejected = judged
        rows.append(
            {
                "prompt": [user(text)],
                "chosen": [assistant(chosen)],
                "rejected": [assistant(rejected)],
            }
        )
    rng.shuffle(rows)
    return rows


def make_prompts(rng: random.Random, split: str) -> list[Row]:
    """Make the distinct prompts of a split, every combination equally often."""
    questions = world.questions(split)
    each = PROMPTS[split] // len(questions)
    rows: list[Row] = [
        {
            "prompt": [user(text)],
            "kind": question.kind,
            "topic": question.topic,
            "category": question.category,
        }
        for question in questions
        for text in rng.sample(world.prompt_texts(question), each)
    ]
    rng.shuffle(rows)
    return rows


def probe_pairs(rng: random.Random, question: world.Question) -> Iterator[tuple[str, str, str]]:
    """Yield (kind of error, right answer, the same with that one error), one of each kind."""
    form = rng.randrange(world.FORMS)
    answer = even_frame(rng, content_sentence(rng, question, "right", form))
    for kind, label in (
        ("slip", "slip"),
        ("wrong_fact", "wrong_fact"),
        ("other_topic", "off_topic"),
        ("wrong_question", "wrong_question"),
        ("no_idea", "no_idea"),
    ):
        other = content_sentence(rng, question, label, form)
        yield kind, str(answer), str(replace(answer, content=other))
    yield "corrupted", str(answer), str(replace(answer, content=damage(rng, answer.content)))
    brief = replace(answer, aside="")
    yield "rambling", str(brief), str(replace(brief, aside=rng.choice(world.ASIDES)))
    yield "repeated", str(answer), f"{answer} {answer.content}"
    plain = world.Answer(answer.content)
    yield "manner", str(world.dress(rng, answer.content, "polite")), str(plain)
    yield "rude", str(plain), str(world.dress(rng, answer.content, "rude"))
    wrong = content_sentence(rng, question, rng.choice(world.ERRORS), form)
    yield "polite_but_wrong", str(plain), str(world.dress(rng, wrong, "polite"))


def make_probes(rng: random.Random, prompts: list[Row]) -> list[Row]:
    """Make the noise-free pairs on which a reward model is tested, one of each kind a prompt."""
    return [
        {
            "prompt": row["prompt"],
            "chosen": [assistant(chosen)],
            "rejected": [assistant(rejected)],
            "kind": kind,
        }
        for row in prompts
        for kind, chosen, rejected in probe_pairs(rng, world.Question(row["kind"], row["topic"]))
    ]


def make_files() -> dict[str, str]:
    """Make the text of every data file. Each has its own generator, so none disturbs another."""

    def generator(name: str) -> random.Random:
        return random.Random(f"{SEED} {name}")

    prompts = {split: make_prompts(generator(f"prompts {split}"), split) for split in PROMPTS}
    tables = {
        "demonstrations": make_demonstrations(generator("demonstrations")),
        "preferences": make_preferences(generator("preferences")),
        "naive_preferences": make_naive_preferences(generator("naive preferences")),
        "prompts": prompts["train"],
        "dev_prompts": prompts["dev"],
        "heldout_prompts": prompts["test"],
        "dev_preferences": make_probes(generator("probes dev"), prompts["dev"]),
        "heldout_preferences": make_probes(generator("probes test"), prompts["test"]),
    }
    return {
        f"{name}.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for name, rows in tables.items()
    }


def main() -> int:
    """Write the files, or with --check compare them; return the exit status."""
    parser = argparse.ArgumentParser(description="Write the quickstart data files.")
    parser.add_argument("--check", action="store_true", help="compare with the shipped files only")
    check = parser.parse_args().check
    stale = []
    for name, text in make_files().items():
        path = FOLDER / name
        if not check:
            path.write_text(text, encoding="utf-8")
            print(f"{path}: {text.count(chr(10))} rows, {len(text.encode()) / 1e6:.2f} MB")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        print(f"Not as generated: {', '.join(stale)}. Run `python {__file__}`.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
