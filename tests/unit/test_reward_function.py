"""A Python function as a reward: what it is given, and what happens when it fails."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from helpers import plain_prompts

from rlhf_ppo.config import FunctionSource
from rlhf_ppo.errors import UserError
from rlhf_ppo.rewards.function import RewardFunction
from rlhf_ppo.rewards.judgement import Missing, Score, as_score

PROMPTS = plain_prompts({"answer": 1, "extra": "x"}, {"answer": 2})
HEAD = "def score(prompts, responses, **columns):\n"


def reward(folder: Path, code: str, timeout: float | None = None) -> RewardFunction:
    file = folder / "reward.py"
    file.write_text(code, encoding="utf-8")
    source = FunctionSource(kind="function", path=f"{file}:score", timeout=timeout)
    return RewardFunction(source, "here")


def reason(score: Score) -> str:
    assert isinstance(score, Missing)
    return score.reason


def test_prompts_responses_and_columns_arrive_as_the_data_has_them(tmp_path: Path) -> None:
    code = (
        "def score(prompts, responses, answer, absent=5):\n"
        "    assert prompts == ['prompt 0', 'prompt 1'] and absent == 5\n"
        "    return [a + len(r) for a, r in zip(answer, responses)]\n"
    )
    assert reward(tmp_path, code).score(PROMPTS, ["ab", ""]) == [3.0, 2.0]


def test_a_column_that_has_the_name_of_the_first_argument_is_not_given_twice(
    tmp_path: Path,
) -> None:
    prompts = plain_prompts({"prompts": "mine", "n": 3})
    found = reward(tmp_path, HEAD + "    return columns['n'] if len(columns) == 1 else None")
    assert found.score(prompts, ["a"]) == [3.0]


def test_one_response_that_makes_it_raise_does_not_cost_the_others_their_scores(
    tmp_path: Path,
) -> None:
    """open-r1 PR#134 made such a score 0; others lost the whole batch."""
    found = reward(tmp_path, HEAD + "\n    return [10 / len(r) for r in responses]")
    good, bad = found.score(PROMPTS, ["ab", ""])
    assert good == 5.0
    assert reason(bad) == f"{tmp_path}/reward.py:3: ZeroDivisionError: division by zero"


HANGS = "import time\n" + HEAD + "    time.sleep(600 if 'hang' in responses else 0)\n"


def test_a_function_that_hangs_gives_no_scores_and_does_not_hold_the_run(tmp_path: Path) -> None:
    """It was waited for until the end of days."""
    found = reward(tmp_path, HANGS + "    return [1 for _ in responses]", timeout=0.2)
    began = time.monotonic()
    first, second = found.score(PROMPTS, ["hang", "b"])
    assert time.monotonic() - began < 5, "not asked again one by one"
    assert reason(first) == reason(second) == "no answer in 0.2 s"
    assert found.score(PROMPTS, ["a", "b"]) == [1.0, 1.0], "it may answer the next time"


def test_with_a_timeout_errors_are_told_as_without(tmp_path: Path) -> None:
    code = HEAD + "    raise TimeoutError('of its own')"
    (missing,) = reward(tmp_path, code, timeout=5).score(PROMPTS[:1], ["a"])
    assert reason(missing) == f"{tmp_path}/reward.py:2: TimeoutError: of its own"


def test_a_function_that_hangs_at_once_is_refused_before_the_run(tmp_path: Path) -> None:
    code = "import time\n" + HEAD + "    time.sleep(600)"
    with pytest.raises(UserError, match=r"gave no answer on an empty response.* 0\.2 s"):
        reward(tmp_path, code, timeout=0.2).check(PROMPTS)


def test_the_line_that_is_told_is_the_users_even_when_a_library_raised(tmp_path: Path) -> None:
    found = reward(
        tmp_path, "import json\n" + HEAD + "    return [json.loads(r) for r in responses]"
    )
    assert reason(found.score(PROMPTS[:1], ["{"])[0]).startswith(f"{tmp_path}/reward.py:3: JSON")


def test_a_function_that_ends_the_program_does_not_end_the_run_with_success(tmp_path: Path) -> None:
    found = reward(tmp_path, "import sys\n" + HEAD + "    sys.exit(0)")
    assert "SystemExit: 0" in reason(found.score(PROMPTS[:1], ["a"])[0])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("None", "no score (None)"),
        ("float('nan')", "the score is nan"),
        ("-float('inf')", "the score is -inf"),
        ("'1'", "'1' is not a number"),
        ("{}", "{} is not a number"),
        ("[1]", "[1] is not a number"),
    ],
)
def test_what_is_no_finite_number_is_missing_and_never_0(
    value: str, said: str, tmp_path: Path
) -> None:
    """ms-swift#8123: one None made the whole batch NaN, and the run "finished"."""
    found = reward(tmp_path, HEAD + f"    return [2, {value}]").score(PROMPTS, ["a", "b"])
    assert found[0] == 2.0 and reason(found[1]) == said


def test_numbers_of_other_libraries_are_numbers(tmp_path: Path) -> None:
    code = "import numpy, torch\n" + HEAD
    found = reward(tmp_path, code + "    return [torch.tensor(2.5), numpy.float32(1.5)]")
    assert found.score(PROMPTS, ["a", "b"]) == [2.5, 1.5]
    assert as_score(True) == 1.0
    found = reward(tmp_path, code + "    return torch.tensor([1.0, float('nan')])")
    assert isinstance(found.score(PROMPTS, ["a", "b"])[1], Missing)


def test_too_few_scores_stop_at_once_because_nobody_knows_whose_they_are(tmp_path: Path) -> None:
    found = reward(tmp_path, HEAD + "    return [1.0]")
    with pytest.raises(UserError, match="returned 1 scores for 2 responses"):
        found.score(PROMPTS, ["a", "b"])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def score(prompts): pass", r"takes \(prompts\)"),
        ("async def score(prompts, responses): pass", "plain function"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("def score(prompts, responses, a, b, /): pass", "plain function"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_when_it_is_loaded(
    code: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        reward(tmp_path, code)
    assert "here.path" in str(caught.value) and "reward.py" in str(caught.value)


def test_a_column_that_it_needs_must_stand_in_every_row(tmp_path: Path) -> None:
    found = reward(tmp_path, "def score(prompts, responses, extra): return [0.0] * len(extra)")
    found.check(PROMPTS[:1])
    with pytest.raises(UserError, match="needs the column 'extra', but test:1 has none"):
        found.check(PROMPTS)


def test_a_dataclass_in_the_users_file_works(tmp_path: Path) -> None:
    """A module that `sys.modules` does not hold cannot resolve its own annotations."""
    code = (
        "from __future__ import annotations\nfrom dataclasses import dataclass, field\n"
        "from typing import ClassVar\n@dataclass\nclass A:\n    x: ClassVar[int] = 4\n"
    )
    assert reward(tmp_path, code + HEAD + "    return [A.x]").score(PROMPTS[:1], ["a"]) == [4.0]
