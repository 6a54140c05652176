"""Intervals, win rates and diversity."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_ppo.evaluation.diversity import distinct_n
from rlhf_ppo.evaluation.statistics import (
    bootstrap_mean,
    flip_test,
    paired_change,
    t_interval,
    win_rate,
)


def test_bootstrap_interval_of_a_normal_sample_is_the_textbook_one() -> None:
    sample = torch.randn(400, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = bootstrap_mean(sample.tolist(), 4000, seed=1)
    mean, error = float(sample.mean()), float(sample.std()) / math.sqrt(400)
    assert found["mean"] == pytest.approx(mean)
    assert found["low"] == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert found["high"] == pytest.approx(mean + 1.96 * error, abs=0.15 * error)


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for seed in range(200):
        sample = torch.randn(50, generator=generator, dtype=torch.float64) + 2
        found = bootstrap_mean(sample.tolist(), 500, seed)
        hits += found["low"] <= 2 <= found["high"]
    assert 180 <= hits <= 198


def test_one_value_and_equal_values_have_no_width() -> None:
    assert bootstrap_mean([3.0], 100, 0) == {"mean": 3.0, "low": 3.0, "high": 3.0}
    assert bootstrap_mean([1.0] * 9, 100, 0) == {"mean": 1.0, "low": 1.0, "high": 1.0}


@pytest.mark.parametrize("samples", [1, 1000, 1001])
def test_any_number_of_resamples_works_and_is_reproducible(samples: int) -> None:
    values = [0.0, 1.0, 5.0]
    assert bootstrap_mean(values, samples, 7) == bootstrap_mean(values, samples, 7)


def test_ties_count_half_and_pairs_stay_paired() -> None:
    policy, reference = torch.tensor([1.0, 2.0, 5.0, 0.0]), torch.tensor([0.0, 2.0, 2.0, 9.0])
    assert win_rate(policy, reference, 100, 0)["mean"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert win_rate(reference, policy, 100, 0)["mean"] == pytest.approx((0 + 0.5 + 0 + 1) / 4)


def test_the_same_model_twice_wins_exactly_half() -> None:
    scores = torch.randn(20)
    found = win_rate(scores, scores, 100, 0)
    assert (found["mean"], found["ties"], found["p"]) == (0.5, 1.0, 1.0)


def test_distinct_2_by_hand() -> None:
    # bigrams: (a b) (b c) | (a b) (b a): 3 different of 4
    assert distinct_n(["a b c", "A b a"])["mean"] == 0.75
    assert distinct_n(["a b c d", "e f"])["mean"] == 1.0
    assert distinct_n(["one", ""]) == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert distinct_n(["a b a b a"])["mean"] == 0.5


def test_distinct_n_jackknife_by_hand() -> None:
    texts = ["a b c", "a b a", "x y"]
    found = distinct_n(texts)
    without = [distinct_n(texts[:i] + texts[i + 1 :])["mean"] for i in range(3)]
    assert without == pytest.approx([1.0, 1.0, 0.75])  # left out: first, second, third
    mean = sum(without) / 3
    error = math.sqrt(2 / 3 * sum((value - mean) ** 2 for value in without))
    assert found["mean"] == pytest.approx(4 / 5)
    assert found["low"] == pytest.approx(4 / 5 - 1.96 * error)
    assert found["high"] >= found["mean"]


def test_distinct_n_is_a_share_and_so_is_its_interval() -> None:
    found = distinct_n(["a b c d e f", "a b a b a b", "x y z", "a b"])
    assert 0 <= found["low"] <= found["mean"] <= found["high"] <= 1


@pytest.mark.parametrize(
    ("count", "quantile"), [(2, 12.7062), (3, 4.3027), (10, 2.2622), (11, 2.2281), (31, 2.0423)]
)
def test_the_t_interval_has_the_quantiles_of_the_tables(count: int, quantile: float) -> None:
    values = [float(n) for n in range(count)]
    mean = sum(values) / count
    deviation = (sum((value - mean) ** 2 for value in values) / (count - 1)) ** 0.5
    found = t_interval(values)
    assert found["mean"] == pytest.approx(mean)
    assert found["high"] - mean == pytest.approx(quantile * deviation / count**0.5, rel=2e-3)
    assert mean - found["low"] == pytest.approx(found["high"] - mean)


def test_a_change_of_a_share_is_the_difference_of_the_shares() -> None:
    """3 of 4 after 1 of 4: two prompts were gained, none lost, p = 2 / 2^2."""
    after, before = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 0.0])
    found = paired_change(after, before, 100, 0, share=True)
    assert found["mean"] == 0.5 and found["p"] == pytest.approx(0.5)
    assert found["low"] <= 0.0 < 0.5 < found["high"] <= 1.0  # two gains claim no direction
    back = paired_change(before, after, 100, 0, share=True)
    assert [back[name] for name in ("mean", "low", "high")] == pytest.approx(
        [-found[name] for name in ("mean", "high", "low")]
    )


def test_drawn_signs_never_give_a_p_of_0() -> None:
    """The observed signs are one more draw: 1 / 10,001 is the least that 10,000 can claim."""
    data = torch.linspace(1, 2, 40, dtype=torch.float64)[:, None]
    assert float(flip_test(data, 1)[0]) == pytest.approx(1 / 10_001)
