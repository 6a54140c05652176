"""The limits of each sign on both sides, by hand, and what a finding is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_ppo.diagnostics import Diagnosis, diagnose, read_metrics
from rlhf_ppo.diagnostics import signs as s
from rlhf_ppo.diagnostics.signs import Seen

NAN = math.nan


def seen(steps: int = 0, **columns: Any) -> Seen:
    """Lines from step 1 on; a column is a number, or one number a step; `a__b` stands for `a/b`."""
    lists = [value for value in columns.values() if isinstance(value, list)]
    found = Seen()
    for step in range(1, (steps or len(lists[0])) + 1):
        line = {"step": float(step)}
        for name, value in columns.items():
            number = value[step - 1] if isinstance(value, list) else value
            line[name.replace("__", "/")] = number
        found.add(line)
    return found


def test_the_newest_values_are_given_or_none() -> None:
    found = seen(x=[1.0, 2.0, 3.0, 4.0])
    assert found.last(3, "x") == [2.0, 3.0, 4.0]
    assert found.last(5, "x") == [] == found.last(2, "y")
    assert seen(x=[1.0, 2.0, NAN]).last(3, "x") == [] == seen(x=[1.0, math.inf]).last(2, "x")
    assert found.now("x") == 4.0 and math.isnan(found.now("y"))
    assert found.start("x") == 2.0  # of the first three


def test_the_best_window_is_the_one_with_the_highest_mean() -> None:
    scores = [0.0] * 10 + [5.0] * 10 + [1.0] * 10
    found = seen(score__mean=scores)
    assert [line["step"] for line in found.best_score] == list(range(11, 21))


@pytest.mark.parametrize(
    ("check", "quiet", "loud"),
    [
        (s.kl_runaway, {"kl__ref": 19.9, "response__length": 20.0},
         {"kl__ref": 20.1, "response__length": 20.0}),
        (s.kl_runaway, {"kl__ref": 9.9, "response__length": 2.0},
         {"kl__ref": 10.1, "response__length": 2.0}),
        (s.kl_runaway, {"kl__ref": 100.0, "response__length": 200.0},
         {"kl__ref": 100.0, "response__length": 50.0}),
        (s.ratio, {"policy__ratio_first_error": 0.0009, "policy__sampler_gap": 0.0},
         {"policy__ratio_first_error": 0.0011, "policy__sampler_gap": 0.0}),
        (s.ratio, {"policy__ratio_first_error": 0.29, "policy__sampler_gap": 0.1},
         {"policy__ratio_first_error": 0.31, "policy__sampler_gap": 0.1}),
        (s.ratio, {"policy__ratio_first_error": 0.0009, "policy__sampler_gap": 0.6},
         {"policy__ratio_first_error": 0.1, "policy__sampler_gap": 0.6}),
        (s.sampler, {"policy__sampler_gap": 0.49}, {"policy__sampler_gap": 0.51}),
        (s.clip_high, {"policy__clip_fraction": 0.29}, {"policy__clip_fraction": 0.31}),
        (s.stops, {"response__stopped": 0.51}, {"response__stopped": 0.49}),
        (s.identical, {"group__identical": 0.49, "group__equal_scores": 0.9},
         {"group__identical": 0.51, "group__equal_scores": 0.9}),
        (s.equal_scores, {"group__equal_scores": 0.49, "group__identical": 0.1},
         {"group__equal_scores": 0.51, "group__identical": 0.1}),
        (s.equal_scores, {"group__equal_scores": 0.9, "group__identical": 0.6},
         {"group__equal_scores": 0.9, "group__identical": 0.5}),
        (s.skipped, {"update__skipped": 0}, {"update__skipped": 1}),
        (s.dropped, {"reward__dropped": 0}, {"reward__dropped": 1}),
        (s.values, {"value__explained_variance": 0.06}, {"value__explained_variance": 0.04}),
    ],
)  # fmt: skip
def test_each_limit_has_two_sides(
    check: Callable[[Seen], str | None], quiet: dict[str, Any], loud: dict[str, Any]
) -> None:
    assert check(seen(45, **quiet)) is None
    assert check(seen(45, **loud)) is not None


def test_a_value_function_has_forty_steps_to_learn() -> None:
    assert s.values(seen(39, value__explained_variance=0.0)) is None
    assert s.values(seen(40, value__explained_variance=0.0)) is not None


def test_one_step_that_clips_much_is_noise() -> None:
    assert s.clip_high(seen(policy__clip_fraction=[0.0, 0.0, 0.0, 0.8])) is None
    assert s.clip_high(seen(policy__clip_fraction=[0.0, 0.3, 0.3, 0.4])) is not None


def from_to(start: float, end: float) -> list[float]:
    return [start] * 5 + [end] * 5


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [(1.0, 0.11, False), (1.0, 0.09, True), (2.0, 0.21, False), (2.0, 0.19, True)],
)
def test_entropy_below_a_tenth_of_the_start_is_a_collapse(
    start: float, end: float, said: bool
) -> None:
    found = s.entropy_collapse(seen(policy__entropy=from_to(start, end)))
    assert (found is not None) == said


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [(1.0, 1.49, False), (1.0, 1.51, True), (0.1, 0.19, False), (0.1, 0.21, True)],
)
def test_entropy_must_rise_by_half_and_by_a_tenth_of_a_nat(
    start: float, end: float, said: bool
) -> None:
    assert (s.entropy_rise(seen(policy__entropy=from_to(start, end))) is not None) == said


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [(20.0, 39.0, False), (20.0, 41.0, True), (20.0, 10.5, False), (20.0, 9.5, True)],
)
def test_lengths_may_move_by_a_factor_of_two_either_way(
    start: float, end: float, said: bool
) -> None:
    assert (s.length(seen(response__length=from_to(start, end))) is not None) == said


def test_nothing_is_clipped_only_where_something_could_be() -> None:
    """Several optimizer steps, a policy that moves, and ten steps without one clip."""
    base: dict[str, Any] = {"policy__clip_fraction": 0.0, "kl__update": 1e-4,
                            "policy__optimizer_steps": 2}  # fmt: skip
    assert s.clip_zero(seen(10, **base)) is not None
    assert s.clip_zero(seen(9, **base)) is None
    for name, value in (
        ("policy__optimizer_steps", 1),
        ("policy__clip_fraction", [0.0] * 9 + [0.01]),
        ("kl__update", [1e-4] * 9 + [0.0]),
    ):
        assert s.clip_zero(seen(10, **base | {name: value})) is None, name


def norms(before: list[float], last: float) -> str | None:
    return s.gradient(seen(grad_norm=[*before, last]))


def test_a_gradient_is_held_against_the_median_of_ten_or_more_before_it() -> None:
    assert norms([1.0] * 10, 21.0) is not None
    assert norms([1.0] * 10, 19.0) is None
    assert norms([1.0] * 9, 999.0) is None  # too few to know what is usual
    assert norms([1.0] * 9 + [30.0], 21.0) is not None  # an earlier one does not excuse it
    assert norms([0.0] * 10, 5.0) is None
    assert norms([*[1.0] * 6, *[2.0] * 5], 21.0) is not None  # the median is 1
    assert norms([*[1.0] * 5, *[2.0] * 6], 39.0) is None  # the median is 2


def hacked(gold: float, score: float, noise: float = 0.01, rise: float = 1.0) -> str | None:
    """Gold climbs from 0 to `rise`, then falls by `gold`; the score changes by `score` then."""
    golds, scores = [0.0] * 3, [0.0] * 3
    for place in range(10):
        golds.append(rise + noise * (-1) ** place)
        scores.append(1.0)
    for place in range(10):
        golds.append(rise - gold + noise * (-1) ** place)
        scores.append(1.0 + score)
    return s.hacking(seen(gold__mean=golds, score__mean=scores))


def test_a_reward_is_cheated_when_gold_falls_while_the_score_holds() -> None:
    assert hacked(gold=0.5, score=0.1) is not None
    assert hacked(gold=0.5, score=-0.1) is None  # both fell: the policy got worse
    assert hacked(gold=0.15, score=0.1) is None  # less than a fifth of what was gained
    assert hacked(gold=0.15, score=0.1, rise=0.5) is not None
    assert hacked(gold=0.5, score=0.1, noise=0.5) is None  # four standard errors of the means: .95
    assert hacked(gold=0.5, score=0.1, noise=0.2) is not None  # .38


@pytest.mark.parametrize(("deviation", "said"), [(1.0, True), (3.0, False)])
def test_a_score_that_fell_is_measured_in_its_own_deviations(deviation: float, said: bool) -> None:
    """By one, from the best ten steps, which were not the first."""
    scores = [0.0] * 5 + [3.0] * 10 + [2.0] * 10
    found = s.score_fell(seen(score__mean=scores, score__std=deviation))
    assert (found is not None) == said
    assert s.score_fell(seen(score__mean=[3.0] * 10 + [2.6] * 10, score__std=1.0)) is None


# ---- findings


def test_a_finding_is_made_once_at_its_step_and_all_are_kept() -> None:
    diagnosis = Diagnosis()
    first = diagnosis.add({"step": 30, "update/skipped": 2})
    assert [(f.name, f.step) for f in first] == [("skipped_updates", 30)]
    assert diagnosis.add({"step": 31, "update/skipped": 2}) == []
    second = diagnosis.add({"step": 32, "update/skipped": 0, "reward/dropped": 1})
    assert [(f.name, f.step) for f in second] == [("dropped_rewards", 32)]
    assert diagnosis.findings == first + second


def at_the_end(
    rate: tuple[float, float, float], policy: Any, reference: Any, **more: Any
) -> list[str]:
    names = ("low", "mean", "high")
    summary = {
        "win_rate": {"score": dict(zip(names, rate, strict=True))},
        "policy": {k: dict(zip(names, v, strict=True)) for k, v in policy.items()},
        "reference": {k: dict(zip(names, v, strict=True)) for k, v in reference.items()},
    }
    found = diagnose([{"step": 7.0}], summary | more)
    assert all(finding.step == 7 for finding in found)
    return [finding.name for finding in found]


UP = {"score": (2.0, 2.5, 3.0)}
DOWN = {"score": (0.0, 0.5, 1.0)}
WON = (0.7, 0.8, 0.9)


def test_the_end_is_judged_by_intervals_and_not_by_means() -> None:
    assert at_the_end(WON, UP, DOWN) == []
    assert at_the_end((0.49, 0.6, 0.7), UP, DOWN) == ["no_gain"]
    assert at_the_end((0.5, 0.6, 0.7), UP, DOWN) == ["no_gain"]
    assert at_the_end((0.51, 0.6, 0.7), UP, DOWN) == []
    low, high = {"gold": (0.0, 0.2, 0.4)}, {"gold": (0.3, 0.5, 0.7)}

    def hacked(score: tuple[float, float, float], gold: tuple[float, float, float]) -> list[str]:
        """By the paired changes: the intervals of the two sides may meet all the same."""
        names = ("low", "mean", "high")
        change = {"score": dict(zip(names, score, strict=True))}
        change["gold"] = dict(zip(names, gold, strict=True))
        return at_the_end(WON, UP | low, DOWN | high, change=change)

    assert hacked((1.5, 2.0, 2.5), (-0.5, -0.3, -0.1)) == ["reward_hacking"]
    assert hacked((1.5, 2.0, 2.5), (0.1, 0.3, 0.5)) == []
    assert hacked((1.5, 2.0, 2.5), (-0.7, -0.3, 0.1)) == []  # gold may have stayed
    assert hacked((-0.1, 0.3, 0.7), (-0.5, -0.3, -0.1)) == []  # nothing was won
    assert at_the_end(WON, UP | low, DOWN | high) == []  # nothing was paired


def test_findings_of_the_run_stay_beside_those_of_the_end() -> None:
    summary = {"policy": {}, "reference": {}, "exploited": [
        {"part": "flaws", "change": {"mean": 0.5}}]}  # fmt: skip
    found = diagnose([{"step": 3, "update/skipped": 1}, {"step": 4}], summary)
    assert [(f.name, f.step) for f in found] == [("skipped_updates", 3), ("parts_exploited", 4)]
    assert "flaws (+0.50)" in found[1].message


def test_lines_after_half_a_line_are_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2, "x"\n{"step": 2}\n', encoding="utf-8")
    assert [line["step"] for line in read_metrics(file)] == [1, 2]
    assert read_metrics(tmp_path / "none.jsonl") == []
