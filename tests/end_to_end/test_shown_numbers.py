"""What the terminal, `metrics.jsonl` and TensorBoard show of a run is one and the same."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli import ROOT, run_here, write_config
from helpers import given_reward, read_jsonl, write_jsonl, write_plain_data
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf_ppo import console as console_module
from rlhf_ppo.console import Stepper
from rlhf_ppo.training.metrics import group_metrics

STEPS = 3
SHOWN = {
    "score": "score/mean",
    "gold": "gold/mean",
    "kl": "kl/ref",
    "length": "response/length",
    "tok/s": "throughput/tokens_per_second",
    "rollout": "throughput/rollout",
    "judge": "throughput/judge",
    "update": "throughput/update",
}
GOLD = "def score(prompts, responses):\n    return [len(response) / 10 for response in responses]\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, gpt2_models: dict[str, str]) -> tuple[Path, str]:
    """A run with everything that adds numbers, and what it said."""
    folder: Path = tmp_path_factory.mktemp("shown")
    (folder / "gold.py").write_text(GOLD, encoding="utf-8")
    text = write_jsonl(folder / "text.jsonl", [{"text": f"The cat is {n}."} for n in range(8)])
    settings = {
        "output_dir": "run",
        "data": write_plain_data(folder),
        "policy": {"path": gpt2_models["policy"]},
        "reward": given_reward(gpt2_models["reward"]),
        "rollout": {"batch_size": 4, "samples_per_prompt": 2, "max_new_tokens": 6},
        "ppo": {"steps": STEPS, "epochs": 2, "minibatches": 2, "learning_rate": 0.001},
        "kl": {"place": "loss"},
        "ptx": {"data": text, "batch_size": 2},
        "evaluation": {"every": 2, "bootstrap_samples": 100, "gold": "gold.py:score"},
        "logging": {"sample_every": 2},
    }
    lines: list[str] = []
    capture = pytest.MonkeyPatch()
    for module in ("console", "training.loop", "pipeline"):
        capture.setattr(f"rlhf_ppo.{module}.say", lines.append)
    config = write_config(folder / "config.yaml", settings)
    assert run_here("train", ["--config", str(config)], folder, capture) == 0
    capture.undo()
    return folder / "run", "\n".join(lines)


def test_every_number_is_the_same_wherever_it_is_shown(run: tuple[Path, str]) -> None:
    folder, said = run
    metrics = read_jsonl(folder / "metrics.jsonl")
    events = EventAccumulator(str(next((folder / "tensorboard").rglob("events*")).parent))
    events.Reload()
    scalars = events.Tags()["scalars"]
    evaluated = {key for key in scalars if key.startswith("evaluation/")}
    # The step is the axis.
    steps = {key for line in metrics for key in line} - {"step"}
    assert set(scalars) - evaluated == steps
    for key in steps:
        written = {line["step"]: line[key] for line in metrics if key in line}
        shown = {event.step: event.value for event in events.Scalars(key)}
        # TensorBoard keeps float32.
        assert shown == {step: float(np.float32(value)) for step, value in written.items()}, key
    summary = json.loads((folder / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    for key in ("policy/score/mean", "reference/score/low", "win_rate/score/mean"):
        (event,) = events.Scalars(f"evaluation/{key}")
        value: Any = summary
        for name in key.split("/"):
            value = value[name]
        assert (event.step, event.value) == (STEPS, float(np.float32(value)))
    lines = re.findall(r"^ppo (\d+)/3 .*", said, flags=re.MULTILINE)
    assert [int(step) for step in lines] == [1, 2, 3]
    for line, entry in zip(re.findall(r"^ppo .*", said, flags=re.MULTILINE), metrics, strict=True):
        seen = {name: float(n) for name, n in re.findall(r"([a-z]+) (-?\d+\.?\d*)", line)}
        seen["tok/s"] = float(re.findall(r"(\d+) tok/s", line)[0])
        for name, key in SHOWN.items():
            digits = 2 if name in ("score", "gold", "kl") else 0
            assert seen[name] == round(entry[key], digits) + 0.0, f"{name} in {line}"
        assert re.search(r"\d+ s, \d+ s left", line)


def test_a_sample_is_shown_every_so_many_steps(run: tuple[Path, str]) -> None:
    _, said = run
    assert said.count("  sample | ") == 1
    assert said.index("ppo 2/3") < said.index("  sample | ") < said.index("ppo 3/3")


def test_the_sizes_and_the_memory_come_before_the_first_step(run: tuple[Path, str]) -> None:
    _, said = run
    assert said.index("== ppo ==") < said.index("ppo 1/3")
    assert (run[0] / "evaluation" / "diagnostics.json").is_file()


def documented() -> list[str]:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)


def keys_in_the_code() -> set[str]:
    """Whatever looks like the key of a number, in the code that makes the numbers."""
    files = [*(ROOT / "rlhf_ppo" / "training").glob("*.py")]
    files.append(ROOT / "rlhf_ppo" / "evaluation" / "heldout.py")
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"^[a-z_]+/[a-z_]+$", node.value))
    return found


def test_every_number_that_a_run_can_write_is_in_the_glossary(run: tuple[Path, str]) -> None:
    known = documented()
    assert len(known) == len(set(known))
    patterns = [re.sub(r"[A-Z]+", "[^/]+(/[^/]+)?", key) for key in known]
    written = {key for line in read_jsonl(run[0] / "metrics.jsonl") for key in line}
    for key in sorted(written | keys_in_the_code()):
        assert any(re.fullmatch(pattern, key) for pattern in patterns), f"docs/metrics.md: {key}"
    plain = {key for key in known if key == key.lower()}
    assert plain <= written | keys_in_the_code(), "a number that no run writes"


def test_the_glossary_says_a_unit_of_each() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.split("\n") if line.startswith("| `")]
    columns = "key, name, unit, mean over, what it is, healthy, if not"
    assert {len(row) for row in rows} == {7}, columns
    assert all(row[place].strip() for row in rows for place in (1, 2, 4)), columns


def test_a_bar_shows_the_time_left_and_the_numbers_below(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(force_terminal=True, width=60, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    monkeypatch.setattr(console_module, "console", screen)
    with Stepper("ppo", 4, shown=True) as stepper:
        stepper.start_at(1)
        for step in (2, 3):
            stepper.advance(f"score {step}.50  kl 0.10", to=step)
    text = screen.export_text()
    assert "3/4" in text and "left" in text and "score 3.50  kl 0.10" in text


def test_the_time_left_counts_from_where_a_run_went_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    said: list[str] = []
    monkeypatch.setattr("rlhf_ppo.console.time.monotonic", lambda: now[0])
    monkeypatch.setattr("rlhf_ppo.console.say", said.append)
    with Stepper("ppo", 100, shown=True) as stepper:
        stepper.start_at(90)
        now[0] += 10
        stepper.advance("", to=91)
    assert "10 s, 90 s left" in said[0], "nine steps more of ten seconds each"


@pytest.mark.parametrize(
    ("texts", "scores", "expected"),
    [
        (["a", "a", "b", "c"], [1, 1, 2, 2], (0.5, 1.0)),
        (["a", "b", "b", "b"], [1, 2, 2, 2], (0.5, 0.5)),
        (["a", "b", "c", "d"], [1, 2, 3, 4], (0.0, 0.0)),
    ],
)
def test_shares_of_groups_without_contrast(texts: Any, scores: Any, expected: Any) -> None:
    import torch

    found = group_metrics([5, 5, 2, 2], texts, torch.tensor(scores, dtype=torch.float32))
    assert (found["group/identical"], found["group/equal_scores"]) == expected
    assert group_metrics([1, 2], ["a", "a"], torch.zeros(2)) == {}, "no group of two is left"
