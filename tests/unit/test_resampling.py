"""Intervals against a second implementation: plain Python, numpy and the formulas of the papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_ppo.evaluation.length_control import length_controlled
from rlhf_ppo.evaluation.statistics import (
    bootstrap_mean,
    interval,
    resampled_means,
    resamples,
    student_quantile,
    t_interval,
    win_rate,
    wins,
)

NORMAL = NormalDist()
# 97.5 % quantiles of Student's t, from a table.
TABLE = {1: 12.706, 2: 4.303, 5: 2.571, 9: 2.262, 10: 2.228, 12: 2.179, 20: 2.086, 30: 2.042,
         60: 2.000, 120: 1.980}  # fmt: skip


@pytest.mark.parametrize(("freedom", "quantile"), TABLE.items())
def test_quantiles_of_students_t_are_those_of_the_table(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, abs=0.004)


def test_the_expansion_has_its_second_term() -> None:
    """At 10 degrees of freedom it is .055; the true quantile is 2.22814."""
    assert student_quantile(10) == pytest.approx(2.22814, abs=0.004)
    assert student_quantile(40) == pytest.approx(2.02108, abs=0.0005)


def bca(value: float, replicates: Sequence[float], influence: Sequence[float]) -> Any:
    """Efron 1987 at Hesterberg's levels, by hand."""
    n, r = len(influence), np.asarray(replicates)
    z = student_quantile(n - 1) * math.sqrt(n / (n - 1))
    below = np.mean(r < value) + 0.5 * np.mean(r == value)
    bias = NORMAL.inv_cdf(float(below))
    i = np.asarray(influence)
    skew = (i**3).sum() / (6 * (i**2).sum() ** 1.5)
    levels = [NORMAL.cdf(bias + (bias + side) / (1 - skew * (bias + side))) for side in (-z, z)]
    return [float(np.quantile(r, level)) for level in levels]


SKEWED = [0.0, 0.0, 0.1, 0.2, 0.2, 0.5, 0.7, 1.5, 3.0, 9.0]


def test_an_interval_is_bca_at_expanded_levels() -> None:
    """Skewed data, a biased estimate, replicates that tie with it."""
    generator = torch.Generator().manual_seed(0)
    data = torch.tensor(SKEWED, dtype=torch.float64)
    replicates = (torch.randn(2001, generator=generator).double() * 5).round() / 10
    for value in (0.0, 0.2, -0.1):
        found = interval(value, replicates, data - data.mean())
        low, high = bca(value, replicates.tolist(), (data - data.mean()).tolist())
        assert found["mean"] == value
        assert found["low"] == pytest.approx(min(low, value))
        assert found["high"] == pytest.approx(max(high, value))


def test_a_bootstrapped_mean_is_bca_of_the_resampled_means() -> None:
    found = bootstrap_mean(SKEWED, samples=1500, seed=3)
    counts = torch.cat(list(resamples(len(SKEWED), 1500, 3)))
    mean = sum(SKEWED) / 10
    means = [float(np.dot(row, SKEWED)) / 10 for row in counts.numpy()]
    low, high = bca(mean, means, [x - mean for x in SKEWED])
    assert found["mean"] == pytest.approx(mean)
    assert (found["low"], found["high"]) == pytest.approx((low, high), rel=1e-6)


@pytest.mark.parametrize("samples", [1, 999, 1000, 2500])
def test_resamples_are_as_many_as_asked_each_of_all_prompts_drawn_with_replacement(
    samples: int,
) -> None:
    counts = torch.cat(list(resamples(7, samples, seed=5)))
    assert counts.shape == (samples, 7)
    assert counts.sum(dim=1).unique().tolist() == [7.0]
    if samples > 900:  # each prompt as often as any other; some drawn twice and some not at all
        assert counts.mean(dim=0).tolist() == pytest.approx([1.0] * 7, abs=0.15)
        assert float((counts == 0).double().mean()) == pytest.approx((6 / 7) ** 7, abs=0.02)
    other = torch.cat(list(resamples(7, samples, seed=6)))
    assert not torch.equal(counts, other) or samples == 1
    data = torch.arange(14.0).view(7, 2)
    torch.testing.assert_close(resampled_means(data, samples, 5), counts @ data.double() / 7)


def test_wins_by_hand() -> None:
    policy, reference = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([0.0, 2, 4, 4, 1])
    assert wins(policy, reference).tolist() == [1.0, 0.5, 0.0, 0.5, 1.0]
    found = win_rate(policy, reference, 500, 0)
    assert found["mean"] == pytest.approx(0.6) and found["ties"] == pytest.approx(0.4)


def test_students_interval_over_seeds_by_hand() -> None:
    """1, 2, 6: mean 3, deviation sqrt(7), half width 4.303 sqrt(7 / 3)."""
    found = t_interval([1.0, 2.0, 6.0])
    half = 4.303 * math.sqrt(7 / 3)
    assert found == pytest.approx({"mean": 3.0, "low": 3 - half, "high": 3 + half})


# ---- the win rate at equal length

WINS = [1.0, 1.0, 0.5, 0.0, 1.0, 0.0, 1.0, 1.0, 0.5, 0.0, 1.0, 0.0]
LONGER = [30.0, 12.0, 5.0, -20.0, 44.0, -3.0, 8.0, -9.0, 0.0, 2.0, 61.0, -30.0]


def regress(weights: Any, worth: Any, x: Any) -> Any:
    """Intercept and slope with the prior and the added pair, by damped Newton steps in numpy."""
    a, b = 0.0, 0.0
    for _ in range(200):
        p = 1 / (1 + np.exp(-(a + b * x)))
        middle = 1 / (1 + math.exp(-a))
        gradient = np.array(
            [(weights * (p - worth)).sum() + middle - 0.5,
             (weights * (p - worth) * x).sum() + b / 2.5**2]
        )  # fmt: skip
        curve = weights * p * (1 - p)
        hessian = np.array(
            [[curve.sum() + middle * (1 - middle), (curve * x).sum()],
             [(curve * x).sum(), (curve * x * x).sum() + 1 / 2.5**2]]
        )  # fmt: skip
        step = np.linalg.solve(hessian, gradient)
        a, b = a - float(step[0]), b - float(step[1])
    return a, b


def test_the_win_rate_at_equal_length_is_that_of_a_second_regression() -> None:
    worth, longer = np.array(WINS), np.array(LONGER)
    x = np.tanh(longer / longer.std())
    once = np.ones(len(worth))
    intercept, slope = regress(once, worth, x)
    assert slope > 0.5  # length pays here, so the correction is felt
    found = length_controlled(torch.tensor(WINS), torch.tensor(LONGER), 300, 4)
    value = 1 / (1 + math.exp(-intercept))
    assert found["mean"] == pytest.approx(value, abs=1e-6)
    assert found["mean"] < sum(WINS) / len(WINS) - 0.01
    counts = torch.cat(list(resamples(len(WINS), 300, 4))).numpy()
    replicates = [1 / (1 + math.exp(-regress(row, worth, x)[0])) for row in counts]
    influence = []
    for place in range(len(WINS)):
        more = once.copy()
        more[place] += 1e-4
        influence.append((regress(more, worth, x)[0] - intercept) / 1e-4)
    low, high = bca(value, replicates, influence)
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-4)


def test_without_length_differences_it_is_the_wins_and_one_more_pair() -> None:
    found = length_controlled(torch.tensor(WINS), torch.zeros(len(WINS)), 200, 0)
    assert found["mean"] == pytest.approx((sum(WINS) + 0.5) / (len(WINS) + 1))
