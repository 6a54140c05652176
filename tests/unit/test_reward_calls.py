"""How sources are called: which prompt goes with which response, in functions and in tables."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import plain_prompts

from rlhf_ppo.config import FunctionSource
from rlhf_ppo.errors import UserError
from rlhf_ppo.rewards.classifier import RewardModel
from rlhf_ppo.rewards.function import RewardFunction
from rlhf_ppo.rewards.judgement import Failure, Missing, as_score
from rlhf_ppo.rewards.sources import Sources
from rlhf_ppo.rewards.user_function import UserFunction, load_function

PROMPTS = plain_prompts({"n": 10, "own": 1}, {"n": 20}, {"n": 30})


def reward(folder: Path, code: str, name: str = "reward", **settings: Any) -> RewardFunction:
    file = folder / f"{name}.py"
    file.write_text(code, encoding="utf-8")
    source = FunctionSource.model_validate({"kind": "function", "path": f"{file}:score"} | settings)
    return RewardFunction(source, "here")


def test_responses_that_are_asked_again_alone_keep_their_own_prompts(tmp_path: Path) -> None:
    code = (
        "def score(prompts, responses, n):\n"
        "    return [m + int(p[-1]) + int(r) for p, r, m in zip(prompts, responses, n)]\n"
    )
    first, bad, third = reward(tmp_path, code).score(PROMPTS, ["5", "x", "7"])
    assert (first, third) == (15.0, 30 + 2 + 7)
    assert isinstance(bad, Missing) and "ValueError" in bad.reason


def test_columns_that_only_some_prompts_have_are_not_given(tmp_path: Path) -> None:
    code = (
        "def score(prompts, responses, n, own=None, other=7, **rest):\n"
        "    assert own is None and other == 7 and not rest\n    return n\n"
    )
    assert reward(tmp_path, code).score(PROMPTS, ["a", "b", "c"]) == [10.0, 20.0, 30.0]
    alone = "def score(prompts, responses, *, n, own=0): return [a + own[0] for a in n]"
    assert reward(tmp_path, alone).score(PROMPTS[:1], ["a"]) == [11.0]  # by keyword too


def test_a_function_that_takes_no_columns_gets_none(tmp_path: Path) -> None:
    code = "def score(p, r): return [len(x) for x in r]"
    assert reward(tmp_path, code).score(PROMPTS[:2], ["a", "bb"]) == [1.0, 2.0]
    several = "def score(*both): return [len(both)]"
    assert reward(tmp_path, several).score(PROMPTS[:1], ["a"]) == [2.0]


def test_a_check_is_one_call_with_the_first_prompt(tmp_path: Path) -> None:
    code = (
        "calls = []\ndef score(prompts, responses, n):\n"
        "    calls.append((prompts, responses, n))\n    return [0.0]\n"
    )
    found = reward(tmp_path, code)
    found.check(PROMPTS)
    calls = found.function.function.__globals__["calls"]
    assert calls == [(["prompt 0"], [""], [10])]
    lacking = reward(tmp_path, "def score(prompts, responses, m): return [0.0]", "lacking")
    with pytest.raises(UserError, match=r"needs the column 'm', but test:0 has none.*: n, own"):
        lacking.check(PROMPTS)


def test_a_slow_function_within_its_time_is_waited_for(tmp_path: Path) -> None:
    code = "import time\ndef score(prompts, responses): time.sleep(0.05); return [3.0]"
    assert reward(tmp_path, code, timeout=30).score(PROMPTS[:1], ["a"]) == [3.0]


def test_a_function_that_never_ends_keeps_nobody_from_ending(tmp_path: Path) -> None:
    """Every thread that it is left in is one that a program does not wait for."""
    code = "import time\ndef score(prompts, responses): time.sleep(600)"
    found = reward(tmp_path, code, timeout=0.05).score(PROMPTS[:2], ["a", "b"])
    assert [isinstance(score, Missing) for score in found] == [True, True]
    waiting = [t for t in threading.enumerate() if t is not threading.main_thread()]
    assert waiting and all(thread.daemon for thread in waiting)


@pytest.mark.parametrize(
    "code",
    [
        "def score(prompts): return []",
        "async def score(prompts, responses): return []",
        "def score(prompts, responses, extra, /): return []",
        "def score(prompts, *, responses): return []",
    ],
)
def test_what_cannot_be_called_with_two_lists_is_no_reward(code: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it must be a plain function"):
        reward(tmp_path, code)


@pytest.mark.parametrize(
    ("value", "said"),
    [("[1.0] * 4", "returned 4 scores for 3"), ("[1.0] * 2", "returned 2 scores for 3")],
)
def test_a_list_of_another_length_is_refused(value: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        reward(tmp_path, f"def score(p, r): return {value}").score(PROMPTS, ["a", "b", "c"])


@pytest.mark.parametrize("value", ["{0: 1.0}", "'1'", "b'1'"])
def test_a_dict_or_a_text_is_no_list_of_scores(value: str, tmp_path: Path) -> None:
    """Their items would be read as scores: keys, letters, bytes."""
    (found,) = reward(tmp_path, f"def score(p, r): return {value}").score(PROMPTS[:1], ["a"])
    assert isinstance(found, Missing) and "not a list of numbers" in found.reason


def test_two_files_of_the_same_name_are_two_functions(tmp_path: Path) -> None:
    found = []
    for number, folder in enumerate((tmp_path / "a", tmp_path / "b")):
        folder.mkdir()
        code = "import pickle\nclass A:\n    pass\ndef score(p, r):\n    pickle.dumps(A())\n"
        found.append(reward(folder, code + f"    return [{number}.0]"))
    assert [each.score(PROMPTS[:1], ["a"]) for each in found] == [[0.0], [1.0]]


def test_the_error_names_the_last_line_of_the_users_own_file(tmp_path: Path) -> None:
    code = (
        "import json\ndef inner(text):\n    return json.loads(text)\n"
        "def score(p, r):\n    return [inner(x) for x in r]\n"
    )
    (found,) = reward(tmp_path, code).score(PROMPTS[:1], ["{"])
    assert isinstance(found, Missing) and found.reason.startswith(f"{tmp_path}/reward.py:3: JSON")


def test_a_path_with_a_colon_is_cut_at_the_last(tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "f.py").write_text("def score(p, r): return [1.0]", encoding="utf-8")
    assert load_function(f"{folder}/f.py:score", "here")([], []) == [1.0]
    function = UserFunction(f"{folder}/f.py:score", "here")
    assert function.call(PROMPTS[:1], ["a"]) == [1.0]


# ---- many sources in one table


class Given:
    """A source that says what it is given to say."""

    def __init__(self, *scores: Any) -> None:
        self.scores = [Missing(s) if isinstance(s, str) else s for s in scores]

    def score(self, prompts: Any, responses: Any) -> list[Any]:
        return self.scores


def test_every_source_fills_its_own_column_and_what_is_missing_is_nan() -> None:
    found = Sources([("a", Given(1.0, 2.0, "late")), ("b", Given(4.0, "odd", 6.0))]).score(
        PROMPTS, ["x", "y", "z"]
    )
    table = found.scores.tolist()
    assert [row[0] for row in table[:2]] == [1.0, 2.0] and math.isnan(table[2][0])
    assert table[0][1] == 4.0 and math.isnan(table[1][1]) and table[2][1] == 6.0
    assert found.failures == [
        Failure("a", "test:2", "z", "late"),
        Failure("b", "test:1", "y", "odd"),
    ]


def test_a_failure_is_one_short_line() -> None:
    line = Failure("a", "d:3", "long\n" * 1000, "because").line()
    assert "\n" not in line and len(line) < 400
    assert line.startswith("a, d:3, response 'long\\nlong") and line.endswith(": because")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "no score (None)"),
        ("1", "'1' is not a number"),
        (b"1", "b'1' is not a number"),
        (math.inf, "the score is inf"),
        (-math.inf, "the score is -inf"),
        (math.nan, "the score is nan"),
        ([1.0], "[1.0] is not a number"),
        (10**400, "a whole number of about 401 digits is not a number"),
    ],
)
def test_what_is_no_finite_number_is_missing_with_its_reason(value: Any, said: str) -> None:
    assert as_score(value) == Missing(said)
    assert as_score(2) == 2.0 and as_score(True) == 1.0


def test_the_first_model_is_the_first_in_the_settings() -> None:
    """What a value model starts from."""
    one, two = (object.__new__(RewardModel) for _ in range(2))
    function: Any = Given(1.0)
    assert Sources([("f", function), ("one", one), ("two", two)]).first_model() is one
    assert Sources([("f", function)]).first_model() is None
