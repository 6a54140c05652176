"""The guard's verdict, by hand: silent on a healthy run, loud beyond each limit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rlhf_ppo.config import GuardConfig
from rlhf_ppo.training.guard import Rounding, Watch, first_step_trouble, observe, trouble


def watched(scores: list[float], deviation: float = 1.0, kl: float = 0.0) -> Watch:
    watch = Watch()
    for score in scores:
        watch = observe(watch, kl, score, deviation, skipped=0)
    return watch


def test_the_running_score_is_a_mean_that_forgets_by_a_fifth_a_step() -> None:
    watch = watched([1.0, 2.0, -3.0])
    assert watch.score == pytest.approx(0.8 * (0.8 * 1.0 + 0.2 * 2.0) + 0.2 * -3.0)
    assert watch.best_score == pytest.approx(1.2)


@pytest.mark.parametrize(("drop", "found"), [(0.99, False), (1.01, True)])
def test_a_score_may_fall_so_many_deviations_below_its_best(drop: float, found: bool) -> None:
    watch = Watch(score=5.0 - 2 * drop, best_score=5.0, deviation=2.0)
    assert (trouble(GuardConfig(max_score_drop=1.0), watch) is not None) == found
    assert trouble(GuardConfig(), watch) is None


def test_one_bad_step_is_not_a_collapse_and_five_are() -> None:
    guard, healthy = GuardConfig(max_score_drop=1.0), [0.1 * n for n in range(20)]
    assert trouble(guard, watched([*healthy, healthy[-1] - 3.0])) is None
    reason = trouble(guard, watched([*healthy, *[healthy[-1] - 3.0] * 5]))
    assert reason is not None and "guard.max_score_drop = 1" in reason


def test_a_reward_that_does_not_vary_at_first_is_measured_by_what_it_varies_later() -> None:
    """With the deviation of the first step, 0, every fall would be a collapse, or none."""
    watch = observe(Watch(), 0.0, 0.0, 0.0, 0)
    watch = observe(watch, 0.0, 0.2, 0.4, 0)
    assert watch.deviation == 0.4
    assert trouble(GuardConfig(max_score_drop=0.5), observe(watch, 0.0, 0.0, 0.0, 0)) is None


@pytest.mark.parametrize(("kl", "found"), [(9.9, False), (10.1, True), (math.inf, True)])
def test_the_kl_has_a_limit_in_nats_a_response(kl: float, found: bool) -> None:
    watch = watched([0.0], kl=kl)
    reason = trouble(GuardConfig(max_kl=10.0), watch)
    assert (reason is not None) == found
    assert trouble(GuardConfig(), watch) is None
    if reason is not None:
        assert "guard.max_kl = 10" in reason


def test_skipped_steps_in_a_row_have_a_limit_always() -> None:
    assert trouble(GuardConfig(), Watch(skipped=4)) is None
    assert "guard.max_skipped = 5" in str(trouble(GuardConfig(), Watch(skipped=5)))


def test_numbers_that_are_not_finite_leave_the_watch_as_it_was() -> None:
    before = watched([1.0, 2.0], kl=3.0)
    assert observe(before, math.nan, math.nan, math.nan, 0) == before


def test_a_score_that_rises_and_settles_is_never_trouble() -> None:
    guard = GuardConfig(max_score_drop=0.5, max_kl=20.0)
    watch: Any = Watch()
    for step in range(200):
        score = 2 * (1 - math.exp(-step / 20)) + 0.3 * math.sin(step * 12.9898)
        watch = observe(watch, 5.0, score, 1.6, 0)
        assert trouble(guard, watch) is None


SINGLE, HALF = Rounding("rounding in float32", False), Rounding("rounding in bfloat16", True)


@pytest.mark.parametrize(
    ("rounding", "differences", "found"),
    [
        (SINGLE, [0.0, 1e-4, -1e-4], False),  # rounding
        (SINGLE, [0.0, 0.0, -0.011], True),  # one token is enough: dropout, a wrong position
        (HALF, [0.02, -0.03, 0.01], False),
        (HALF, [0.0] * 99 + [2.0], False),  # one token that went to another expert
        (HALF, [0.12, -0.12, 0.12], True),  # all of them, up or down
        (SINGLE, [math.nan, 1.0], False),  # that is for max_skipped
        (SINGLE, [], False),
    ],
)
def test_the_first_step_may_be_off_by_rounding_alone(
    rounding: Rounding, differences: list[float], found: bool
) -> None:
    reason = first_step_trouble(rounding, {"so it is": torch.tensor(differences)})
    assert (reason is not None) == found
    if reason is not None:
        assert "so it is" in reason and rounding.name in reason


def test_infinite_numbers_are_a_kl_and_no_score_and_no_deviation() -> None:
    """An infinite deviation would allow any fall for ever, an infinite score never be beaten."""
    before = watched([1.0, 2.0], deviation=0.5, kl=3.0)
    after = observe(before, math.inf, math.inf, math.inf, 0)
    assert after.kl == math.inf
    assert (after.score, after.best_score) == (before.score, before.best_score)
    assert after.deviation == 0.5


def test_what_is_seen_is_the_skips_as_they_stand_and_the_rollbacks_of_before() -> None:
    """`skipped` counts the row already: it is not added to that of the step before."""
    watch = observe(Watch(skipped=3, rollbacks=2), 0.0, 1.0, 1.0, skipped=4)
    assert (watch.skipped, watch.rollbacks) == (4, 2)
    assert observe(watch, 0.0, 1.0, 1.0, skipped=0).skipped == 0


def test_the_limits_themselves_are_allowed() -> None:
    """The highest KL and the farthest fall that may be."""
    guard = GuardConfig(max_kl=10.0, max_score_drop=1.0)
    assert trouble(guard, Watch(kl=10.0)) is None
    assert trouble(guard, Watch(score=3.0, best_score=5.0, deviation=2.0)) is None
    assert trouble(guard, Watch(score=5.0, best_score=3.0, deviation=1.0)) is None  # a rise
