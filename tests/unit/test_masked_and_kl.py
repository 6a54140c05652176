"""Reductions under a mask, KL estimators and the adaptive controller."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import ragged_mask

from rlhf_ppo.algorithm.kl import AdaptiveController, FixedController, estimate_kl
from rlhf_ppo.algorithm.masked import (
    explained_variance,
    last_token,
    masked_mean,
    masked_sum,
    masked_variance,
    whiten,
)

X = torch.tensor([[1.0, 2.0, float("nan")], [4.0, float("nan"), float("inf")]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_masked_reductions_ignore_nan_in_the_padding() -> None:
    assert float(masked_sum(X, MASK)) == 7.0
    assert float(masked_mean(X, MASK)) == pytest.approx(7 / 3)
    assert float(masked_variance(X, MASK)) == pytest.approx((1 + 4 + 16) / 3 - (7 / 3) ** 2)


def test_mean_of_nothing_is_zero() -> None:
    assert float(masked_mean(X, torch.zeros_like(MASK))) == 0.0


def test_no_gradient_flows_into_the_padding() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    masked_sum(x * X.nan_to_num(), MASK).backward()
    assert x.grad is not None
    assert torch.equal(x.grad != 0, MASK)


def test_whitened_numbers_have_mean_0_and_variance_1_under_the_mask() -> None:
    mask = ragged_mask([5, 2, 7, 1], 7)
    x = torch.randn(4, 7, dtype=torch.float64) * 3 + 10
    white = whiten(x.masked_fill(~mask, float("nan")), mask)
    kept = white[mask]
    assert float(kept.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(((kept - kept.mean()) ** 2).mean()) == pytest.approx(1.0, abs=1e-6)
    assert bool((white[~mask] == 0).all())
    assert torch.equal(kept.argsort(), x[mask].argsort())


def test_whitening_a_constant_gives_zeros() -> None:
    assert torch.equal(whiten(torch.full((2, 3), 5.0), MASK), torch.zeros(2, 3))


def test_explained_variance_is_1_when_perfect_and_0_when_constant() -> None:
    returns = torch.tensor([[1.0, 2.0, 99.0], [3.0, 99.0, 99.0]])
    assert float(explained_variance(returns, returns, MASK)) == pytest.approx(1.0)
    assert float(explained_variance(torch.ones(2, 3), returns, MASK)) == pytest.approx(0.0)
    assert float(explained_variance(-returns, returns, MASK)) == pytest.approx(-3.0)
    assert float(explained_variance(returns, torch.ones(2, 3), MASK)) == 0.0


def test_last_token_of_full_cut_and_empty_rows() -> None:
    mask = ragged_mask([3, 1, 0], 3)
    assert last_token(mask).tolist() == [
        [False, False, True],
        [True, False, False],
        [False, False, False],
    ]


def test_k1_and_k3_are_unbiased_for_the_exact_kl() -> None:
    policy = torch.tensor([0.5, 0.2, 0.25, 0.05], dtype=torch.float64)
    reference = torch.tensor([0.1, 0.3, 0.4, 0.2], dtype=torch.float64)
    exact = sum(
        p * math.log(p / q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True)
    )
    for estimator in ("k1", "k3"):
        each = estimate_kl(policy.log(), reference.log(), estimator)  # type: ignore[arg-type]
        assert float((policy * each).sum()) == pytest.approx(exact)


def test_k3_is_never_negative_and_k1_may_be() -> None:
    logprobs, ref_logprobs = torch.randn(100) - 2, torch.randn(100) - 2
    assert float(estimate_kl(logprobs, ref_logprobs, "k3").min()) >= 0
    assert float(estimate_kl(logprobs, ref_logprobs, "k1").min()) < 0


def test_k2_by_hand_and_all_are_zero_for_equal_models() -> None:
    assert float(estimate_kl(torch.tensor(-1.0), torch.tensor(-4.0), "k2")) == 4.5
    for estimator in ("k1", "k2", "k3"):
        same = torch.tensor([-0.5, -3.0])
        assert estimate_kl(same, same, estimator).tolist() == [0, 0]  # type: ignore[arg-type]


def test_k3_of_an_impossible_token_stays_finite() -> None:
    found = estimate_kl(torch.tensor(-900.0), torch.tensor(-0.1), "k3")
    assert bool(found.isfinite())


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.1 * (1 + 0.1 * 64 / 1000)),  # 10 % above
        (60.0, 0.1 * (1 + 0.2 * 64 / 1000)),  # far above: the error is clipped
        (0.0, 0.1 * (1 - 0.2 * 64 / 1000)),
        (-3.0, 0.1 * (1 - 0.2 * 64 / 1000)),  # an estimate may be negative
    ],
)
def test_adaptive_controller_by_hand(kl: float, expected: float) -> None:
    controller = AdaptiveController(beta=0.1, target=6.0, horizon=1000).update(kl, 64)
    assert controller.beta == pytest.approx(expected)
    assert (controller.target, controller.horizon) == (6.0, 1000)


def test_fixed_controller_keeps_beta() -> None:
    assert FixedController(0.3).update(100.0, 64).beta == 0.3
