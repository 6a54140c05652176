"""The table of mistakes still fits the code; whether they are caught: `python tests/mutants.py`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from mutations import MUTATIONS, TABLES, Mutation

ALGORITHM = Path(__file__).parents[2] / "rlhf_ppo" / "algorithm"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.file}-{m.name}")
def test_a_mistake_can_be_planted_once_and_parses(mutation: Mutation) -> None:
    text = (ALGORITHM / f"{mutation.file}.py").read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1
    mutated = text.replace(mutation.old, mutation.new)
    assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(text))


def test_every_file_has_its_mistakes_and_no_two_share_a_name() -> None:
    assert len(MUTATIONS) >= 45
    assert len({(mutation.file, mutation.name) for mutation in MUTATIONS}) == len(MUTATIONS)
    files = {path.stem for path in ALGORITHM.glob("*.py")} - {"__init__"}
    assert set(TABLES) == files
