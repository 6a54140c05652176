"""Reductions under a mask."""

from __future__ import annotations

import pytest
import torch
from tensors import normal, ragged_mask

from rlhf_ppo.algorithm.masked import (
    explained_variance,
    last_token,
    masked_mean,
    masked_sum,
    masked_variance,
    whiten,
    zero_padding,
)

X = torch.tensor([[1.0, 2.0, float("nan")], [4.0, float("nan"), float("inf")]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_padding_becomes_0_whatever_stood_there() -> None:
    assert zero_padding(X, MASK).tolist() == [[1, 2, 0], [4, 0, 0]]


def test_masked_reductions_ignore_nan_in_the_padding() -> None:
    assert float(masked_sum(X, MASK)) == 7.0
    assert float(masked_mean(X, MASK)) == pytest.approx(7 / 3)
    assert float(masked_variance(X, MASK)) == pytest.approx((1 + 4 + 16) / 3 - (7 / 3) ** 2)


def test_mean_and_variance_of_one_number() -> None:
    mask = torch.zeros_like(MASK)
    mask[1, 0] = True
    assert float(masked_mean(X, mask)) == 4.0
    assert float(masked_variance(X, mask)) == 0.0


def test_mean_of_nothing_is_zero() -> None:
    assert float(masked_mean(X, torch.zeros_like(MASK))) == 0.0


def test_no_gradient_flows_into_the_padding() -> None:
    x = X.clone().requires_grad_()
    masked_sum(x * 2, MASK).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[2, 2, 0], [2, 0, 0]]


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitened_numbers_have_variance_1_and_mean_0_or_their_own(shift_mean: bool) -> None:
    mask = ragged_mask([5, 2, 7, 1], 7)
    x = normal(4, 7, seed=0) * 3 + 10
    white = whiten(x.masked_fill(~mask, float("nan")), mask, shift_mean)
    kept = white[mask]
    mean = 0.0 if shift_mean else float(x[mask].mean())
    assert float(kept.mean()) == pytest.approx(mean, abs=1e-9)
    assert float(((kept - kept.mean()) ** 2).mean()) == pytest.approx(1.0, abs=1e-6)
    assert bool((white[~mask] == 0).all())
    assert torch.equal(kept.argsort(), x[mask].argsort())


def test_whitening_shifts_the_mean_unless_told_otherwise() -> None:
    x = torch.tensor([[1.0, 3.0, 99.0], [2.0, 99.0, 99.0]])
    assert torch.equal(whiten(x, MASK), whiten(x, MASK, shift_mean=True))


def test_whitening_almost_a_constant_divides_by_the_floor() -> None:
    x = torch.tensor([[1e-5, -1e-5]], dtype=torch.float64)
    white = whiten(x, torch.ones(1, 2, dtype=torch.bool))
    assert white[0].tolist() == pytest.approx([1e-5 / (1e-10 + 1e-8) ** 0.5, -0.0995037190])


@pytest.mark.parametrize("value", [100.1, 1000.1, -3.3e5])
def test_whitening_equal_rewards_gives_no_opinion(value: float) -> None:
    """In float32 the rounding of the mean, over the floor, came to .88."""
    found = whiten(torch.full((64, 37), value), torch.ones(64, 37, dtype=torch.bool))
    assert float(found.abs().max()) < 1e-3


def test_whitening_a_constant_leaves_it_at_its_mean() -> None:
    five = torch.full((2, 3), 5.0)
    assert whiten(five, MASK).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert whiten(five, MASK, shift_mean=False).tolist() == [[5, 5, 0], [5, 0, 0]]


def test_explained_variance_is_1_when_perfect_and_0_when_constant() -> None:
    returns = torch.tensor([[1.0, 2.0, 99.0], [3.0, 99.0, 99.0]])
    assert float(explained_variance(returns, returns, MASK)) == pytest.approx(1.0)
    assert float(explained_variance(returns + 7, returns, MASK)) == pytest.approx(1.0)
    assert float(explained_variance(torch.ones(2, 3), returns, MASK)) == pytest.approx(0.0)
    assert float(explained_variance(0.5 * returns, returns, MASK)) == pytest.approx(0.75)
    assert float(explained_variance(-returns, returns, MASK)) == pytest.approx(-3.0)
    assert float(explained_variance(returns, torch.ones(2, 3), MASK)) == 0.0


def test_last_token_of_full_cut_and_empty_rows() -> None:
    mask = ragged_mask([3, 1, 0], 3)
    assert last_token(mask).tolist() == [
        [False, False, True],
        [True, False, False],
        [False, False, False],
    ]
