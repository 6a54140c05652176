"""The tables of mistakes still fit the code; whether they are caught: `python tests/mutants.py`."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest
from mutations import FOLDERS, MODULES, MUTATIONS

ROOT = Path(__file__).parents[2]
FILES = sorted({mutation.file for mutation in MUTATIONS})
# The fewest mistakes of each folder.
FEWEST = {
    "algorithm": 180,
    "training": 60,
    "rollout": 40,
    "rewards": 40,
    "data": 50,
    "evaluation": 40,
    "diagnostics": 20,
    "report": 6,
    ".": 13,
}


@pytest.mark.parametrize("file", FILES)
def test_each_mistake_can_be_planted_once_and_parses(file: str) -> None:
    text = (ROOT / "rlhf_ppo" / file).read_text(encoding="utf-8")
    of_file = [mutation for mutation in MUTATIONS if mutation.file == file]
    stale = [f"{m.name}: {m.old!r}" for m in of_file if text.count(m.old) != 1]
    assert not stale, "these old texts do not stand exactly once in the file"
    for mutation in of_file:
        assert mutation.new != mutation.old, mutation.name
        ast.parse(text.replace(mutation.old, mutation.new))


def test_every_folder_has_its_mistakes_and_no_two_of_a_file_share_a_name() -> None:
    counts = Counter(mutation.folder for mutation in MUTATIONS)
    assert set(counts) == set(FOLDERS) == set(FEWEST)
    assert all(counts[folder] >= fewest for folder, fewest in FEWEST.items()), counts
    assert len({(mutation.file, mutation.name) for mutation in MUTATIONS}) == len(MUTATIONS)
    files = {f"algorithm/{path.name}" for path in (ROOT / "rlhf_ppo" / "algorithm").glob("*.py")}
    assert files - {"algorithm/__init__.py"} <= set(FILES)


def test_tests_that_must_catch_them_are_there() -> None:
    named = {test for m in MUTATIONS for test in (*m.own, *m.more)}
    assert all((ROOT / test).exists() for test in named)
    assert all(set(module.OWN) == set(module.TABLES) for module in MODULES)
