"""One PPO step of every model family by the command line, beside the family's own forward pass.

    python tools/model_matrix.py                        # all, ten to twenty minutes on one core
    python tools/model_matrix.py --only gemma2,mamba    # some
    python tools/model_matrix.py --write                # and what was found into docs/models.md

For each language model a tiny random one is saved as a user has it. `scripts/train.py` makes one
PPO step, once with all weights trained and values on the policy's trunk, once with LoRA and a value
model of its own; both with gradient checkpointing where the family has it. What the run computed is
compared with the folder's own forward pass, made here without the product's code. Each reward
family scores the responses of one such run. A family that cannot work must be refused by name, with
exit code 2, before the first step.
"""

import argparse
import contextlib
import io
import json
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "COLUMNS": "200",
}

import torch  # noqa: E402
import yaml  # noqa: E402
from families import CAUSAL, REWARD, causal_lm, reward_model, save  # noqa: E402
from helpers import byte_tokenizer  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

import rlhf_ppo.pipeline  # noqa: E402, F401  # once, and not in each child
from rlhf_ppo.training import ppo  # noqa: E402

DOCS = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- model matrix: begin -->", "<!-- model matrix: end -->"
TOLERANCE = 1e-5  # nats, reward units; float32
SAMPLER_TOLERANCE = 5e-5  # nats: a state token by token is rounded otherwise than in one scan
CELLS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "LoRA, value model": {"lora": {"rank": 2}, "value": {"model": "policy"}},
}
PROMPTS = [
    "The cat",
    "A dog is",
    "The red boat on",
    "Books",
    "My house is",
    "The tree",
    "A lamp is",
]
REWARD_FUNCTION = "def length(prompts, responses):\n    return [float(len(r)) for r in responses]\n"


Place = tuple[str, str, str]  # causal or reward, family, cell


@dataclass(frozen=True)
class Cell:
    """What one run of the matrix showed."""

    verdict: str  # right, refused, wrong, crashed
    note: str  # the largest difference, or why


def main() -> int:
    """Run the matrix, print its table; 1 where a cell is wrong or crashed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="families, with commas between them")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once")
    parser.add_argument("--write", action="store_true", help="write the table into docs/models.md")
    arguments = parser.parse_args()
    only = arguments.only.split(",") if arguments.only else None
    torch.set_num_threads(1)
    places = [("causal", name, cell) for name in CAUSAL for cell in CELLS]
    places += [("reward", name, "reward") for name in REWARD]
    found = run_all([p for p in places if only is None or p[1] in only], arguments.jobs)
    if arguments.write:
        write_table(found)
    cells = list(found.values())
    bad = sum(cell.verdict in ("wrong", "crashed") for cell in cells)
    print(f"{len(cells)} cells, {bad} wrong or crashed")
    return 1 if bad else 0


def run_all(cells: Sequence[Place], jobs: int) -> dict[Place, Cell]:
    """Every cell in a forked process: nothing that a family leaves behind reaches the next."""
    waiting, running = list(reversed(cells)), {}
    found: dict[Place, Cell] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            place = waiting.pop()
            running[place] = start(place)
        place = next(iter(running))
        child, reader = running.pop(place)
        with os.fdopen(reader) as stream:
            text = stream.read()
        os.waitpid(child, 0)
        found[place] = Cell(*json.loads(text)) if text else Cell("crashed", "the process died")
        kind, name, cell = place
        print(
            f"{kind:6} {name:20} {cell:18} {found[place].verdict:8} {found[place].note}", flush=True
        )
    return found


def start(place: Place) -> tuple[int, int]:
    """A child that runs one cell: its number, and where its answer comes."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = run_cell(Path(folder), *place)
    except BaseException:
        found = Cell("crashed", traceback.format_exc().strip().splitlines()[-1][:200])
    with os.fdopen(writer, "w") as stream:
        json.dump([found.verdict, found.note], stream)
    os._exit(0)


def run_cell(folder: Path, kind: str, name: str, cell: str) -> Cell:
    """One PPO step by the script, then the comparison."""
    write_inputs(folder, kind, name, CELLS.get(cell, {}))
    code, said = run_train(folder)
    if code == 2:
        lines = [line for line in said.splitlines() if line.startswith("error:")]
        started = (folder / "out" / "metrics.jsonl").exists()
        why = lines[-1].removeprefix("error:").strip() if lines else said.splitlines()[-1]
        return Cell("wrong" if started else "refused", why[:300])
    if code:
        return Cell("crashed", (said.strip().splitlines() or [f"exit {code}"])[-1][:300])
    return compare(folder, kind)


def write_inputs(folder: Path, kind: str, name: str, sections: dict[str, Any]) -> None:
    """Models, prompts and a config, as a user has them."""
    tokenizer = byte_tokenizer()
    model = causal_lm(name if kind == "causal" else "llama", tokenizer)
    save(model, tokenizer, folder / "model")
    source: dict[str, Any] = {"kind": "function", "name": "length", "path": "reward.py:length"}
    if kind == "reward":
        save(reward_model(name, tokenizer), tokenizer, folder / "reward")
        source = {"kind": "model", "name": "rm", "path": "reward"}
    for file, texts in (("p.jsonl", PROMPTS), ("h.jsonl", ["Not this", "Nor that"])):
        rows = [json.dumps({"prompt": text}) + "\n" for text in texts]
        (folder / file).write_text("".join(rows), encoding="utf-8")
    (folder / "reward.py").write_text(REWARD_FUNCTION, encoding="utf-8")
    checkpointing = model.supports_gradient_checkpointing and kind == "causal"
    config = {
        "seed": 3,
        "output_dir": "out",
        "data": {"prompts": "p.jsonl", "heldout_prompts": "h.jsonl"},
        "policy": {"path": "model", "gradient_checkpointing": checkpointing},
        "reward": {"sources": [source]},
        "rollout": {"batch_size": 7, "max_new_tokens": 12, "generation_batch_size": 4},
        "ppo": {"steps": 1, "epochs": 1, "minibatches": 2, "learning_rate": 1e-3},
        "checkpoint": {"every": 0},
        "evaluation": {"every": 0, "bootstrap_samples": 100, "best_of": 0},
        "logging": {"trackers": []},
        "hardware": {"cpu_threads": 1},
    } | sections
    (folder / "c.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def run_train(folder: Path) -> tuple[int, str]:
    """Exit code and output of `scripts/train.py`; its rollout is kept in a file."""
    kept: list[Any] = []
    real = ppo.collect

    def keep(*arguments: Any) -> Any:
        rollout = real(*arguments)
        kept.append((rollout[0], [item.prompt.text for item in arguments[1]]))
        return rollout

    ppo.collect = keep  # in this child alone
    os.chdir(folder)
    sys.argv = [str(ROOT / "scripts" / "train.py"), "--config", "c.yaml"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except Exception:
            traceback.print_exc()
            code = 1
    if kept:
        torch.save(kept[0], folder / "rollout.pt")
    return code, said.getvalue()


def compare(folder: Path, kind: str) -> Cell:
    """The run's numbers beside those of a plain forward pass of the same folders."""
    rollout, prompts = torch.load(folder / "rollout.pt", weights_only=False)
    metrics = json.loads((folder / "out" / "metrics.jsonl").read_text().splitlines()[0])
    off = {
        "ratio": metrics["policy/ratio_first_error"],
        "first KL": abs(metrics["kl/ref"]),
        "sampler": metrics["policy/sampler_gap"],
    }
    if kind == "causal":
        off["log-probabilities"] = largest_logprob_difference(folder, rollout)
        off["values"] = float(rollout.values.abs().max())  # a new head says 0
    else:
        off["scores"] = largest_score_difference(folder, rollout, prompts)
    worst = max(off, key=lambda name: off[name])
    limits = {"sampler": SAMPLER_TOLERANCE}
    bad = not all(value <= limits.get(name, TOLERANCE) for name, value in off.items())
    return Cell("wrong" if bad else "right", f"{off[worst]:.1e} ({worst})")


@torch.no_grad()
def largest_logprob_difference(folder: Path, rollout: Any) -> float:
    """Nats, against the model's own forward pass of each sequence alone."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokens, largest = rollout.responses.tokens, 0.0
    for row in range(len(tokens.prompt_ids)):
        prompt = tokens.prompt_ids[row, : tokens.prompt_lengths[row]]
        response = tokens.response_ids[row][tokens.response_mask[row]]
        ids = torch.cat([prompt, response])[None]
        table = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        plain = table[len(prompt) - 1 : -1].gather(1, response[:, None]).squeeze(1)
        ours = rollout.logprobs[row][tokens.response_mask[row]]
        largest = max(largest, float((plain - ours).abs().max()))
    return largest


@torch.no_grad()
def largest_score_difference(folder: Path, rollout: Any, prompts: list[Any]) -> float:
    """Reward units, against the model's own forward pass of each conversation alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder / "reward").eval()
    tokenizer = byte_tokenizer()
    tokens, largest = rollout.responses.tokens, 0.0
    for row, prompt in enumerate(prompts):
        response = tokens.response_ids[row][tokens.response_mask[row]]
        text = str(tokenizer.decode(response, skip_special_tokens=True))
        # docs/data.md: a plain text is scored with the reward model's end token behind it.
        whole = f"{prompt}{text}{tokenizer.eos_token}"
        ids = tokenizer(whole, return_tensors="pt")["input_ids"]
        plain = float(model(input_ids=ids).logits[0, 0])
        largest = max(largest, abs(plain - float(rollout.source_scores[row, 0])))
    return largest


def write_table(found: dict[Place, Cell]) -> None:
    """Put what was found between the marks in docs/models.md; rows of other families stay."""
    text = DOCS.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    DOCS.write_text(f"{before}{BEGIN}\n{table(found, old)}{END}{after}", encoding="utf-8")


def table(found: dict[Place, Cell], old: str) -> str:
    """Both tables as Markdown."""
    parts = []
    for kind, title, names, cells in (
        ("causal", "language model", CAUSAL, list(CELLS)),
        ("reward", "reward model", REWARD, ["reward"]),
    ):
        head = f"| {title} | " + " | ".join(cells if kind == "causal" else ["scores"]) + " |"
        _, _, kept = old.partition(f"| {title} |")
        lines = [head, "|---" * (len(cells) + 1) + "|"]
        for name in names:
            if (kind, name, cells[0]) in found:
                made = " | ".join(shown(found[kind, name, cell]) for cell in cells)
                lines.append(f"| {name} | {made} |")
            else:
                before = kept.split("\n\n")[0].splitlines()
                lines += [line for line in before if line.startswith(f"| {name} |")]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def shown(cell: Cell) -> str:
    """A cell of the table."""
    return f"{cell.verdict}: {cell.note}".replace("|", "/").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
