"""The sums that ship: as their script makes them, held out, and rewarded by what is right."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "arithmetic"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"arithmetic_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES: dict[str, list[dict[str, str]]] = load("make_data").make_files()


def test_shipped_files_are_what_make_data_generates() -> None:
    for name, rows in FILES.items():
        lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
        assert [yaml.safe_load(line) for line in lines[:50]] == rows[:50], name
        assert len(lines) == len(rows)


def test_held_out_sums_are_asked_nowhere_else_and_half_of_the_demonstrations_are_right() -> None:
    heldout = {row["prompt"] for row in FILES["heldout_prompts.jsonl"]}
    shown = FILES["demonstrations.jsonl"]
    assert len(heldout) == 80
    assert not heldout & {row["prompt"] for row in shown + FILES["prompts.jsonl"]}
    right = 0
    for row in shown:
        a, b = row["prompt"].rstrip("=").split("+")
        right += int(row["completion"]) == int(a) + int(b)
    assert 0.45 < right / len(shown) < 0.55


def test_the_reward_is_1_for_the_right_sum_alone() -> None:
    rows = FILES["prompts.jsonl"][:5]
    prompts, answers = ([row[key] for row in rows] for key in ("prompt", "answer"))
    right = load("reward").right
    assert right(prompts, [f" {answer} " for answer in answers], answer=answers) == [1.0] * 5
    assert right(prompts, ["", "x", "1 2", f"{answers[3]}!", "-1"], answer=answers) == [0.0] * 5


def test_the_two_configs_differ_in_the_source_alone() -> None:
    function, http = (
        yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("arithmetic", "arithmetic_http")
    )
    for config in (function, http):
        config.pop("output_dir")
        (source,) = config["reward"].pop("sources")
        assert source.pop("name") == "right"
    assert function == http
