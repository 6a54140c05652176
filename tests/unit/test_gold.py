"""The scorer that training never sees: loading it, calling it, checking what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.errors import UserError
from rlhf_ppo.evaluation.gold import GoldScorer

PROMPTS = [Prompt(0, "a:1", "q", {"k": 1, "only": 2}), Prompt(1, "a:2", "r", {"k": 5})]


def scorer(folder: Path, code: str, name: str = "score") -> GoldScorer:
    file = folder / "gold.py"
    file.write_text(code, encoding="utf-8")
    return GoldScorer(f"{file}:{name}")


def test_columns_that_every_prompt_has_reach_the_function(tmp_path: Path) -> None:
    code = (
        "def score(prompts, responses, k, **rest):\n"
        "    assert not rest\n"
        "    return [{'score': c, 'length': len(r)} for c, r in zip(k, responses)]\n"
    )
    gold = scorer(tmp_path, code)
    assert gold.score(PROMPTS, ["abc", ""]) == [
        {"score": 1.0, "length": 3.0},
        {"score": 5.0, "length": 0.0},
    ]
    assert gold.mean(PROMPTS, ["abc", ""]) == 3.0


def test_plain_numbers_stand_for_the_score(tmp_path: Path) -> None:
    gold = scorer(tmp_path, "def score(prompts, responses, **_): return [1, True]")
    assert gold.score(PROMPTS, ["a", "b"]) == [{"score": 1.0}, {"score": 1.0}]


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("return [1.0]", "returned 1 scores for 2 responses"),
        ("return [{'points': 1}] * 2", "needs a finite `score`"),
        ("return [float('nan')] * 2", "needs a finite `score`"),
        ("return ['good', 'bad']", "ValueError"),
        ("return None", "TypeError"),
        ("raise KeyError('topic')", "KeyError: 'topic'"),
    ],
)
def test_a_scorer_that_misbehaves_is_named(tmp_path: Path, body: str, part: str) -> None:
    gold = scorer(tmp_path, f"def score(prompts, responses, **columns): {body}")
    with pytest.raises(UserError) as caught:
        gold.score(PROMPTS, ["a", "b"])
    assert "evaluation.gold" in str(caught.value) and part in str(caught.value)


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("def other(): pass", "no function 'score'"),
        ("score = 3", "no function 'score'"),
        ("import nothing_of_that_name", "nothing_of_that_name"),
        ("def score(:", "invalid syntax"),
        ("1 / 0", "ZeroDivisionError"),
        ("open('/no/such/file')", "FileNotFoundError"),
    ],
)
def test_a_file_that_cannot_be_loaded_says_why(tmp_path: Path, code: str, part: str) -> None:
    with pytest.raises(UserError, match=r"gold\.py") as caught:
        scorer(tmp_path, code)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("target", "part"),
    [
        ("gold.py", "must look like"),
        ("nowhere/gold.py:score", "no such file: nowhere/gold.py"),
        ("no_such_module_here:score", "no_such_module_here"),
    ],
)
def test_a_target_that_is_not_there_says_so(target: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        GoldScorer(target)
    assert part in str(caught.value)


def test_a_module_works_as_well_as_a_file() -> None:
    assert GoldScorer("operator:add").function.function(1, 2) == 3


@pytest.mark.parametrize(
    "result",
    ["{'score': float('inf')}", "{'score': 1, 'part': float('nan')}", "{'part': 1.0}",
     "{'score': 1, 'part': float('inf')}"],
)  # fmt: skip
def test_every_part_of_a_gold_score_is_a_finite_number(tmp_path: Path, result: str) -> None:
    gold = scorer(tmp_path, f"def score(prompts, responses): return [{result}] * 2")
    with pytest.raises(UserError, match="needs a finite `score`"):
        gold.score(PROMPTS, ["a", "b"])


def test_a_check_looks_for_the_columns_and_tries_one_empty_response(tmp_path: Path) -> None:
    lacking = scorer(tmp_path, "def score(prompts, responses, only): return [1.0]")
    with pytest.raises(UserError, match="needs the column 'only', but a:2 has none"):
        lacking.check(PROMPTS)
    code = "def score(prompts, responses):\n    assert responses != [''], 'empty'\n    return [1.0]"
    with pytest.raises(UserError, match="AssertionError: empty"):
        scorer(tmp_path, code).check(PROMPTS)
