"""The clips by hand: which side binds, what the loss is, and where its gradient ends."""

from __future__ import annotations

import math

import pytest
import torch
from token_mdp import JUNK, assert_equal
from torch import Tensor

from rlhf_ppo.algorithm.batch import TokenOutputs, Tokens, TrainBatch
from rlhf_ppo.algorithm.kl import MAX_LOG_RATIO
from rlhf_ppo.algorithm.losses import (
    LossSettings,
    clipped_policy_loss,
    kl_penalty_loss,
    policy_gradient_loss,
    ppo_loss,
    surrogate_loss,
    value_loss,
)


def number(x: float) -> Tensor:
    return torch.tensor([[x]], dtype=torch.float64)


def at_ratio(ratio: float) -> tuple[Tensor, Tensor]:
    """New log-probability, with gradient, and old one of a token with that ratio."""
    old = number(-1.3)
    return (old + math.log(ratio)).requires_grad_(), old


def assert_value_and_slope(loss: Tensor, by: Tensor, value: float, slope: float) -> None:
    """Slope: d loss / d log pi_new."""
    assert_equal(loss, number(value), 1e-12)
    assert_equal(torch.autograd.grad(loss.sum(), by)[0], number(slope), 1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.5, 2.0, -2.4, 0.0),  # likelier and good: enough, clipped at 1.2
        (1.5, -2.0, 3.0, 3.0),  # likelier and bad: the whole ratio counts
        (0.5, 2.0, -1.0, -1.0),  # rarer and good: the whole ratio counts
        (0.5, -2.0, 1.6, 0.0),  # rarer and bad: enough, clipped at 0.8
        (1.1, 2.0, -2.2, -2.2),  # within the range nothing clips
        (1.1, -2.0, 2.2, 2.2),
        (0.9, 2.0, -1.8, -1.8),
        (0.9, -2.0, 1.8, 1.8),
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_four_corners_of_the_clip(
    ratio: float, advantage: float, value: float, slope: float
) -> None:
    new, old = at_ratio(ratio)
    loss = clipped_policy_loss(new, old, number(advantage), 0.2)
    assert_value_and_slope(loss, new, value, slope)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.3, 2.0, -2.6, -2.6),  # beyond low, within high
        (1.5, 2.0, -2.8, 0.0),
        (1.5, -2.0, 3.0, 3.0),
        (0.85, -2.0, 1.8, 0.0),  # within high, beyond low
        (0.85, 2.0, -1.7, -1.7),
        (0.95, -2.0, 1.9, 1.9),
    ],
)
def test_corners_with_a_low_and_a_high_of_their_own(
    ratio: float, advantage: float, value: float, slope: float
) -> None:
    new, old = at_ratio(ratio)
    loss = clipped_policy_loss(new, old, number(advantage), 0.1, clip_range_high=0.4)
    assert_value_and_slope(loss, new, value, slope)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (2.5, -2.0, 5.0, 5.0),  # likelier and bad, not yet by the factor 3
        (4.0, -2.0, 6.0, 0.0),  # beyond it the loss stays
        (0.5, -2.0, 1.6, 0.0),  # the ordinary clip is untouched
        (1.0, -2.0, 2.0, 2.0),
        (4.0, 2.0, -2.4, 0.0),  # good tokens too
        (0.1, 2.0, -0.2, -0.2),
    ],
)
def test_the_dual_clip_bounds_the_loss_of_a_bad_token(
    ratio: float, advantage: float, value: float, slope: float
) -> None:
    new, old = at_ratio(ratio)
    loss = clipped_policy_loss(new, old, number(advantage), 0.2, dual_clip=3.0)
    assert_value_and_slope(loss, new, value, slope)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("advantage", [-2.0, 2.0])
def test_the_other_objectives_by_hand(ratio: float, advantage: float) -> None:
    new, old = at_ratio(ratio)
    a = number(advantage)
    log_new = float(new.detach())
    assert_value_and_slope(policy_gradient_loss(new, a), new, -log_new * advantage, -advantage)
    plain = -ratio * advantage
    assert_value_and_slope(surrogate_loss(new, old, a), new, plain, plain)
    moved = ratio - 1 - math.log(ratio)  # mean under old: KL(old || new)
    loss = kl_penalty_loss(new, old, a, penalty=3.0)
    assert_value_and_slope(loss, new, plain + 3 * moved, plain + 3 * (ratio - 1))


@pytest.mark.parametrize(
    ("new", "old", "target", "value", "slope"),
    [
        (1.5, 1.0, 2.0, 0.32, 0.0),  # moved towards the target, further than 0.2: enough
        (0.5, 1.0, 2.0, 1.125, -1.5),  # moved away: the whole error counts
        (1.5, 1.0, 0.0, 1.125, 1.5),
        (0.5, 1.0, 0.0, 0.32, 0.0),
        (1.1, 1.0, 2.0, 0.405, -0.9),  # within the range
        (4.0, 1.0, 2.0, 2.0, 2.0),  # beyond the target: the plain error is the larger
    ],
)
def test_corners_of_the_value_clip(
    new: float, old: float, target: float, value: float, slope: float
) -> None:
    by = number(new).requires_grad_()
    loss = value_loss(by, number(old), number(target), clip_range=0.2)
    assert_value_and_slope(loss, by, value, slope)


def test_the_value_loss_without_a_clip_is_half_the_squared_error() -> None:
    by = number(1.5).requires_grad_()
    loss = value_loss(by, number(1.0), number(2.0), clip_range=None)
    assert_value_and_slope(loss, by, 0.125, -0.5)


def test_a_ratio_beyond_all_reason_is_held_at_e_to_the_20() -> None:
    new, old = at_ratio(math.exp(50))
    bound = 2 * math.exp(MAX_LOG_RATIO)
    assert_value_and_slope(surrogate_loss(new, old, number(-2.0)), new, bound, 0.0)
    loss = clipped_policy_loss(new, old, number(-2.0), 0.2, dual_clip=3.0)
    assert_value_and_slope(loss, new, 6.0, 0.0)


RATIOS = (1.5, 1.5, 0.5, 0.5, 1.1, 4.0)
ADVANTAGES = (2.0, -2.0, 2.0, -2.0, -2.0, -2.0)


def one_row(values: tuple[float, ...]) -> Tensor:
    """A row of these, then two entries of junk."""
    return torch.tensor([[*values, JUNK, JUNK]], dtype=torch.float64)


def row_of_corners() -> tuple[TokenOutputs, TrainBatch]:
    old = one_row((-1.3,) * 6)
    new = old + one_row(RATIOS).log()
    mask = ~old.isnan()
    ids = torch.ones(1, 8, dtype=torch.int64)
    tokens = Tokens(ids[:, :1], torch.ones(1, dtype=torch.int64), ids, mask)
    batch = TrainBatch(
        tokens=tokens,
        logprobs=old,
        ref_logprobs=one_row((-1.0,) * 6),
        values=one_row((1.0,) * 6),
        advantages=one_row(ADVANTAGES),
        returns=one_row((2.0, 2.0, 0.0, 0.0, 2.0, 2.0)),
    )
    new_values = one_row((1.5, 0.5, 1.5, 0.5, 1.1, 4.0))
    return TokenOutputs(new, new_values, one_row((0.7,) * 6)), batch


def test_loss_terms_say_where_a_clip_decided() -> None:
    outputs, batch = row_of_corners()
    terms = ppo_loss(outputs, batch, LossSettings(dual_clip=3.0))
    yes, no = True, False
    assert terms.policy_clipped.tolist() == [[yes, no, no, yes, no, yes, no, no]]
    assert terms.value_clipped.tolist() == [[yes, no, no, yes, no, no, no, no]]
    policy = torch.tensor([[-2.4, 3.0, -1.0, 1.6, 2.2, 6.0, 0, 0]], dtype=torch.float64)
    value = torch.tensor([[0.32, 1.125, 1.125, 0.32, 0.405, 2.0, 0, 0]], dtype=torch.float64)
    assert_equal(terms.policy, policy, 1e-12)
    assert_equal(terms.value, value, 1e-12)
    assert_equal(terms.loss, policy + 0.1 * value, 1e-12)
    assert_equal(terms.ratio[:, :6], torch.tensor([RATIOS], dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("objective", ["policy_gradient", "surrogate", "kl_penalty"])
def test_an_objective_without_a_clip_reports_none(objective: str) -> None:
    outputs, batch = row_of_corners()
    terms = ppo_loss(outputs, batch, LossSettings(objective=objective))  # type: ignore[arg-type]
    assert not bool(terms.policy_clipped.any())


def test_each_part_of_the_loss_enters_with_its_own_coefficient() -> None:
    outputs, batch = row_of_corners()
    mask = batch.tokens.response_mask
    settings = LossSettings(
        value_coefficient=0.5, entropy_coefficient=0.3, kl_coefficient=0.2, kl_estimator="k1"
    )
    terms = ppo_loss(outputs, batch, settings)
    ratio = torch.tensor([RATIOS], dtype=torch.float64)
    k1 = ratio * (ratio.log() - 1.3 + 1.0)
    assert_equal(terms.kl[:, :6], k1, 1e-12)
    expected = terms.policy[:, :6] + 0.5 * terms.value[:, :6] - 0.3 * 0.7 + 0.2 * k1
    assert_equal(terms.loss[:, :6], expected, 1e-12)
    for part in (terms.loss, terms.policy, terms.value, terms.kl):
        assert bool((part[~mask] == 0).all())
