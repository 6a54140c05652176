"""The guide's verifiable reward: its code, its rows and its configs do what the guide says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import read_jsonl

from rlhf_ppo.command_line import load_config
from rlhf_ppo.inputs import read_inputs

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "word_problems"
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
CONFIG = ROOT / "configs" / "word_problems.yaml"


def shipped() -> ModuleType:
    spec = importlib.util.spec_from_file_location("word_problems_reward", FOLDER / "reward.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_the_guide() -> Any:
    (code,) = [block for block in blocks("python") if "def correct" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    return names["correct"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, flags=re.M | re.S)


@pytest.mark.parametrize("score", [shipped().correct, of_the_guide()], ids=["shipped", "guide"])
@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("3+4 = 7\n#### 7", "It is 7.\n#### 7", 1.0),
        ("#### 7.0 pears", "#### 7", 1.0),
        ("#### 1,200", "#### 1200", 1.0),
        ("#### -3", "#### -3", 1.0),
        ("#### 8\nno:\n#### 7", "#### 7", 1.0),
        ("7", "#### 7", 0.0),
        ("#### 77", "#### 7", 0.0),
        ("#### 3", "#### -3", 0.0),
        ("#### seven", "#### 7", 0.0),
        ("", "#### 7", 0.0),
    ],
)
def test_the_number_after_the_mark_decides(
    score: Any, response: str, answer: str, right: float
) -> None:
    assert score(prompts=[""], responses=[response], answer=[answer]) == [right]


def test_every_row_has_an_answer_that_its_sum_agrees_with() -> None:
    rows = read_jsonl(FOLDER / "problems.jsonl")
    assert len({row["question"] for row in rows}) == len(rows) == 72
    for row in rows:
        ((first, sign, second),) = re.findall(r"(\d+)([-+*])(\d+) = ", row["answer"])
        a, b = int(first), int(second)
        wanted = {"+": a + b, "-": a - b, "*": a * b}[sign]
        assert row["answer"].endswith(f"\n#### {wanted}")
        assert {first, second} == set(re.findall(r"\d+", row["question"]))


def test_the_config_holds_twelve_problems_out_of_every_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(["--config", str(CONFIG)], CONFIG)
    inputs = read_inputs(config, ("sft", "ppo", "evaluation"))
    sizes = [len(inputs.demonstrations), len(inputs.train_prompts), len(inputs.heldout_prompts)]
    assert sizes == [60, 60, 12]
    assert all(set(prompt.columns) == {"answer"} for prompt in inputs.train_prompts)
    assert "####" in inputs.demonstrations[0].completion[0]["content"]  # type: ignore[index]


@pytest.mark.parametrize("number", range(len(blocks("yaml"))))
def test_every_config_of_the_guide_is_sound(number: int, tmp_path: Path) -> None:
    text = blocks("yaml")[number].replace("extends: configs/", f"extends: {ROOT}/configs/")
    path = tmp_path / "guide.yaml"
    path.write_text(text if "output_dir" in text else f"output_dir: x\nsft: {{}}\n{text}", "utf-8")
    load_config(["--config", str(path)], path)
