"""Each part of the loss by hand: objectives, clips, value, entropy, KL, and the weights."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import mask_of, normal, ragged, ragged_mask, token_outputs, train_batch
from torch import Tensor

from rlhf_ppo.algorithm.kl import Estimator
from rlhf_ppo.algorithm.losses import (
    Aggregation,
    LossSettings,
    LossTerms,
    Objective,
    clipped_policy_loss,
    kl_penalty_loss,
    policy_gradient_loss,
    ppo_loss,
    response_weights,
    surrogate_loss,
    value_loss,
)
from rlhf_ppo.algorithm.masked import masked_sum

OLD = torch.tensor([[-1.0]], dtype=torch.float64)


def at_ratio(ratio: float) -> Tensor:
    """A new log-probability that stands at this ratio to the old one, with gradient."""
    return (OLD + math.log(ratio)).requires_grad_()


def one(x: float) -> Tensor:
    return torch.tensor([[x]], dtype=torch.float64)


def assert_loss(loss: Tensor, leaf: Tensor, expected: float, gradient: float) -> None:
    """The value of a loss of one token, and its slope in the leaf."""
    assert loss.item() == pytest.approx(expected)
    loss.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.item() == pytest.approx(gradient)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_unclipped_objectives_by_hand(ratio: float, advantage: float) -> None:
    new = at_ratio(ratio)
    plain = policy_gradient_loss(new, one(advantage))
    assert_loss(plain, new, -(math.log(ratio) - 1) * advantage, -advantage)
    new = at_ratio(ratio)
    surrogate = surrogate_loss(new, OLD, one(advantage))
    assert_loss(surrogate, new, -ratio * advantage, -ratio * advantage)
    new = at_ratio(ratio)
    penalized = kl_penalty_loss(new, OLD, one(advantage), 0.7)
    kl = ratio - 1 - math.log(ratio)
    slope = -ratio * advantage + 0.7 * (ratio - 1)
    assert_loss(penalized, new, -ratio * advantage + 0.7 * kl, slope)


@pytest.mark.parametrize(
    ("ratio", "advantage", "high", "dual", "expected", "has_gradient"),
    [
        (1.25, 2.0, None, None, -2.4, False),  # without clip-higher: clipped at 1.2
        (1.25, 2.0, 0.3, None, -2.5, True),  # with it there is room
        (1.35, 2.0, 0.3, None, -2.6, False),
        (1.35, -2.0, 0.3, None, 2.7, True),  # a bad token grew likelier: push it down
        (0.75, -2.0, 0.3, None, 1.6, False),  # the lower side is as it was
        (0.75, 2.0, 0.3, None, -1.5, True),
        (1.15, 2.0, 0.1, None, -2.2, False),  # high may also be smaller than low
        (4.0, -2.0, None, 3.0, 6.0, False),  # dual clip: no more than 3 times 2
        (2.5, -2.0, None, 3.0, 5.0, True),
        (4.0, 2.0, None, 3.0, -2.4, False),  # good tokens know no dual clip
        (0.5, 2.0, None, 3.0, -1.0, True),
        (0.5, -2.0, None, 3.0, 1.6, False),
    ],
)
def test_clip_higher_and_dual_clip_by_hand(
    ratio: float,
    advantage: float,
    high: float | None,
    dual: float | None,
    expected: float,
    has_gradient: bool,
) -> None:
    new = at_ratio(ratio)
    loss = clipped_policy_loss(new, OLD, one(advantage), 0.2, high, dual)
    assert_loss(loss, new, expected, -ratio * advantage if has_gradient else 0.0)
    clips = {"clip_range": 0.2, "clip_range_high": high, "dual_clip": dual}
    mask = torch.ones(1, 1, dtype=torch.bool)
    outputs, batch = token_outputs(mask, logprobs=new), train_batch(mask, logprobs=OLD)
    batch = replace(batch, advantages=one(advantage))
    terms = ppo_loss(outputs, batch, LossSettings(value_coefficient=0.0, **clips))  # type: ignore[arg-type]
    assert terms.loss.item() == pytest.approx(expected)
    assert bool(terms.policy_clipped) == (not has_gradient)


@pytest.mark.parametrize(
    ("new", "target", "expected", "slope"),
    [
        (1.1, 3.0, 0.5 * 1.9**2, -1.9),  # within 0.2 of the old value 1: plain
        (2.0, 3.0, 0.5 * 1.8**2, 0.0),  # ran ahead towards the target: judged at 1.2
        (0.0, -1.0, 0.5 * 1.8**2, 0.0),  # the same downward: judged at 0.8
        (0.0, 3.0, 0.5 * 3.0**2, -3.0),  # ran away from it: the plain error is larger
        (2.0, -1.0, 0.5 * 3.0**2, 3.0),
        (1.1, 1.1, 0.0, 0.0),
    ],
)
def test_value_clip_by_hand(new: float, target: float, expected: float, slope: float) -> None:
    values = one(new).requires_grad_()
    assert_loss(value_loss(values, one(1.0), one(target), 0.2), values, expected, slope)


def test_without_a_clip_the_value_loss_is_half_the_squared_error() -> None:
    values = one(5.0).requires_grad_()
    assert_loss(value_loss(values, one(1.0), one(3.0), None), values, 2.0, 2.0)


# Two ragged responses; NaN in the padding of all that the loss reads.
ROWS = ([0.0, 0.0, 0.0], [0.0])
MASK = mask_of(*ROWS)
NEW = ragged([-1.0, -2.0, -3.0], [-0.5])
BATCH = train_batch(
    MASK,
    logprobs=NEW - ragged([0.1, 0.5, -0.5], [0.0]),
    ref_logprobs=NEW - ragged([1.0, -1.0, 2.0], [0.25]),
    values=ragged([1.0, 1.0, 1.0], [1.0]),
    advantages=ragged([2.0, 2.0, 2.0], [-1.0]),
    returns=ragged([3.0, 3.0, 1.0], [0.0]),
)
OUTPUTS = token_outputs(
    MASK,
    logprobs=NEW,
    values=ragged([1.1, 2.0, 1.0], [0.5]),
    entropy=ragged([0.5, 1.0, 2.0], [3.0]),
)
POLICY = ragged(
    [-2 * math.exp(0.1), -2 * 1.2, -2 * math.exp(-0.5)], [1.0], padding=0.0
)  # clip_range 0.2
VALUE = ragged([0.5 * 1.9**2, 0.5 * 1.8**2, 0.0], [0.5 * 0.8**2], padding=0.0)


def test_loss_terms_of_ragged_responses_by_hand() -> None:
    terms = ppo_loss(OUTPUTS, BATCH, LossSettings(value_coefficient=0.25))
    torch.testing.assert_close(terms.policy, POLICY)
    torch.testing.assert_close(terms.value, VALUE)
    torch.testing.assert_close(terms.loss, POLICY + 0.25 * VALUE)
    ratio = ragged([math.exp(0.1), math.exp(0.5), math.exp(-0.5)], [1.0])
    torch.testing.assert_close(terms.ratio[MASK], ratio[MASK])
    kl = ragged([math.exp(0.1), -math.exp(0.5), 2 * math.exp(-0.5)], [0.25], padding=0.0)
    torch.testing.assert_close(terms.kl, kl)
    assert terms.policy_clipped.tolist() == [[False, True, False], [False, False, False]]
    assert terms.value_clipped.tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize("coefficient", [0.3, -0.3])
def test_the_entropy_bonus_lowers_the_loss_by_its_coefficient(coefficient: float) -> None:
    entropy = OUTPUTS.entropy.clone().requires_grad_()
    loss_settings = LossSettings(value_coefficient=0.25, entropy_coefficient=coefficient)
    terms = ppo_loss(replace(OUTPUTS, entropy=entropy), BATCH, loss_settings)
    bonus = ragged([0.5, 1.0, 2.0], [3.0], padding=0.0)
    torch.testing.assert_close(terms.loss.detach(), POLICY + 0.25 * VALUE - coefficient * bonus)
    terms.loss.sum().backward()
    assert entropy.grad is not None
    torch.testing.assert_close(entropy.grad, -coefficient * MASK.double())


def test_without_a_coefficient_nobody_looks_at_the_entropy() -> None:
    nobody = torch.full_like(NEW, math.nan).requires_grad_()
    terms = ppo_loss(replace(OUTPUTS, entropy=nobody), BATCH, LossSettings())
    assert bool(terms.loss.isfinite().all())
    assert not terms.loss.requires_grad


@pytest.mark.parametrize(
    ("estimator", "first"),
    [("k1", 1.0), ("k2", 0.5), ("k3", math.exp(-1.0))],
)
def test_the_kl_to_the_reference_enters_the_loss_by_its_coefficient(
    estimator: Estimator, first: float
) -> None:
    loss_settings = LossSettings(
        value_coefficient=0.25, kl_coefficient=0.6, kl_estimator=estimator, entropy_coefficient=0.1
    )
    terms = ppo_loss(OUTPUTS, BATCH, loss_settings)
    assert float(terms.kl[0, 0]) == pytest.approx(math.exp(0.1) * first)
    bonus = ragged([0.5, 1.0, 2.0], [3.0], padding=0.0)
    torch.testing.assert_close(terms.loss, POLICY + 0.25 * VALUE - 0.1 * bonus + 0.6 * terms.kl)


@pytest.mark.parametrize("objective", ["policy_gradient", "surrogate", "kl_penalty", "clipped"])
def test_the_settings_name_the_objective_and_only_the_clipped_one_clips(
    objective: Objective,
) -> None:
    loss_settings = LossSettings(objective, penalty=0.7, value_coefficient=0.0)
    terms = ppo_loss(OUTPUTS, BATCH, loss_settings)
    ratio = math.exp(0.5)
    second = {
        "policy_gradient": 2.0 * 2.0,
        "surrogate": -ratio * 2.0,
        "kl_penalty": -ratio * 2.0 + 0.7 * (ratio - 1 - 0.5),
        "clipped": -1.2 * 2.0,
    }
    assert float(terms.policy[0, 1]) == pytest.approx(second[objective])
    assert bool(terms.policy_clipped.any()) == (objective == "clipped")
    assert torch.equal(terms.loss, terms.policy)


def test_nothing_that_is_watched_carries_a_gradient() -> None:
    leaf = NEW.clone().requires_grad_()
    values = OUTPUTS.values.clone().requires_grad_()
    terms = ppo_loss(replace(OUTPUTS, logprobs=leaf, values=values), BATCH, LossSettings())
    watched = {field.name for field in fields(LossTerms)} - {"loss"}
    assert terms.loss.requires_grad
    assert not any(getattr(terms, name).requires_grad for name in watched)


def test_every_term_is_0_in_the_padding() -> None:
    terms = ppo_loss(OUTPUTS, BATCH, LossSettings())
    for name in ("loss", "policy", "value", "kl", "policy_clipped", "value_clipped"):
        assert not bool(getattr(terms, name)[~MASK].any()), name


def test_the_ratio_is_1_in_the_padding() -> None:
    assert bool((ppo_loss(OUTPUTS, BATCH, LossSettings()).ratio[~MASK] == 1).all())


@given(
    seed=st.integers(0, 1000),
    low=st.floats(0.05, 0.5),
    high=st.none() | st.floats(0.05, 0.9),
    dual=st.none() | st.floats(1.5, 3.0),
    value_clip=st.none() | st.floats(0.2, 1.0),
)
@settings(max_examples=50, deadline=None)
def test_clip_flags_mark_exactly_the_tokens_whose_gradient_a_clip_took(
    seed: int, low: float, high: float | None, dual: float | None, value_clip: float | None
) -> None:
    mask = ragged_mask([5, 2, 7, 4], 7)
    logprobs, shift, values, advantages, returns = normal(5, 4, 7, seed=seed)
    new, new_values = logprobs.clone().requires_grad_(), shift.clone().requires_grad_()
    batch = train_batch(
        mask,
        logprobs=logprobs + 0.7 * shift,
        values=values,
        advantages=advantages,
        returns=returns,
    )
    loss_settings = LossSettings("clipped", low, high, dual, value_clip_range=value_clip)
    outputs = token_outputs(mask, logprobs=new, values=new_values)
    terms = ppo_loss(outputs, batch, loss_settings)
    terms.loss.sum().backward()
    assert new.grad is not None and new_values.grad is not None
    assert torch.equal(terms.policy_clipped, (new.grad == 0) & mask)
    assert torch.equal(terms.value_clipped, (new_values.grad == 0) & mask)


def test_rounding_clips_no_value() -> None:
    """value + (new - value) is not new: that way of clipping flagged one value in ten."""
    mask = torch.ones(50, 50, dtype=torch.bool)
    new, values, returns = 0.1 * normal(3, 50, 50, seed=0, dtype=torch.float32)
    outputs = token_outputs(mask, values=new)
    batch = train_batch(mask, values=values, returns=returns)
    terms = ppo_loss(outputs, batch, LossSettings(value_clip_range=5.0))
    assert not bool(terms.value_clipped.any())


LOSS = ragged([1.0, 2.0, 3.0], [4.0])


@pytest.mark.parametrize(
    ("aggregation", "weights", "loss"),
    [
        ("token", [1 / 4, 1 / 4], 10 / 4),
        ("sequence", [1 / 6, 1 / 2], (2 + 4) / 2),
        ("fixed", [1 / 10, 1 / 10], 10 / 10),
    ],
)
def test_weights_of_ragged_responses_by_hand(
    aggregation: Aggregation, weights: list[float], loss: float
) -> None:
    found = response_weights(MASK, aggregation, fixed_length=5)
    assert found.tolist() == pytest.approx(weights)
    assert float(masked_sum(LOSS * found[:, None], MASK)) == pytest.approx(loss)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    aggregation=st.sampled_from(["token", "sequence"]),
)
@settings(max_examples=50, deadline=None)
def test_weights_of_all_tokens_sum_to_1(lengths: list[int], aggregation: Aggregation) -> None:
    mask = ragged_mask(lengths, 9)
    weights = response_weights(mask, aggregation, fixed_length=3)
    assert float(masked_sum(weights[:, None].expand(mask.shape), mask)) == pytest.approx(1.0)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed"])
def test_weights_of_nothing_are_finite(aggregation: Aggregation) -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    assert bool(response_weights(mask, aggregation, fixed_length=5).isfinite().all())
