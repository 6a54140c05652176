"""Both sides of both clips by hand, and gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlhf_ppo.algorithm.losses import (
    clipped_policy_loss,
    ppo_loss,
    probability_ratio,
    value_loss,
)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "has_gradient"),
    [
        (1.5, 2.0, -2.4, False),  # good token, already much likelier: clipped at 1.2
        (0.5, 2.0, -1.0, True),  # good token, less likely: push it up
        (1.5, -2.0, 3.0, True),  # bad token, likelier: push it down
        (0.5, -2.0, 1.6, False),  # bad token, already much less likely: clipped at 0.8
        (1.1, 2.0, -2.2, True),  # inside
    ],
)
def test_clipped_policy_loss_by_hand(
    ratio: float, advantage: float, expected: float, has_gradient: bool
) -> None:
    new = torch.tensor([[math.log(ratio) - 1.0]], requires_grad=True)
    loss = clipped_policy_loss(new, torch.tensor([[-1.0]]), torch.tensor([[advantage]]), 0.2)
    assert loss.item() == pytest.approx(expected)
    loss.sum().backward()
    assert new.grad is not None
    assert bool(new.grad.any()) == has_gradient


@pytest.mark.parametrize(
    ("new", "target", "expected", "has_gradient"),
    [
        (1.1, 3.0, 0.5 * 1.9**2, True),  # within 0.2 of the old value 1: plain
        (2.0, 3.0, 0.5 * 1.8**2, False),  # ran ahead towards the target: judged at 1.2
        (0.0, 3.0, 0.5 * 3.0**2, True),  # ran away from it: the plain error is larger
        (1.1, 1.1, 0.0, False),
    ],
)
def test_value_clip_by_hand(new: float, target: float, expected: float, has_gradient: bool) -> None:
    values = torch.tensor([[new]], requires_grad=True)
    loss = value_loss(values, torch.tensor([[1.0]]), torch.tensor([[target]]), 0.2)
    assert loss.item() == pytest.approx(expected)
    loss.sum().backward()
    assert values.grad is not None
    assert bool(values.grad.any()) == has_gradient


def test_without_a_clip_the_value_loss_is_half_the_squared_error() -> None:
    loss = value_loss(torch.tensor([[5.0]]), torch.tensor([[1.0]]), torch.tensor([[3.0]]), None)
    assert float(loss) == 2.0


def batch(seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(6))


def test_gradients_agree_with_finite_differences() -> None:
    new_logprobs, new_values, shift, values, advantages, returns = batch()
    logprobs = new_logprobs + 0.3 * shift
    inputs = (new_logprobs.requires_grad_(), new_values.requires_grad_())

    def loss(new_logprobs: Tensor, new_values: Tensor) -> Tensor:
        return ppo_loss(
            new_logprobs,
            new_values,
            logprobs,
            values,
            advantages,
            returns,
            clip_range=0.2,
            value_clip_range=0.5,
            value_coefficient=0.7,
        ).loss

    assert torch.autograd.gradcheck(loss, inputs)


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    terms = ppo_loss(*batch(), clip_range=0.2, value_clip_range=None, value_coefficient=0.25)
    torch.testing.assert_close(terms.loss, terms.policy + 0.25 * terms.value)


def test_clip_flags_mark_the_tokens_whose_gradient_the_clip_took() -> None:
    new_logprobs, new_values, shift, values, advantages, returns = batch(1)
    new_logprobs.requires_grad_(), new_values.requires_grad_()
    terms = ppo_loss(
        new_logprobs,
        new_values,
        new_logprobs.detach() + 0.5 * shift,
        values,
        advantages,
        returns,
        clip_range=0.2,
        value_clip_range=0.5,
        value_coefficient=1.0,
    )
    terms.loss.sum().backward()
    assert new_logprobs.grad is not None and new_values.grad is not None
    assert 0 < int(terms.policy_clipped.sum()) < 12
    assert 0 < int(terms.value_clipped.sum()) < 12
    assert torch.equal(terms.policy_clipped, new_logprobs.grad == 0)
    assert torch.equal(terms.value_clipped, new_values.grad == 0)


def test_ratio_is_a_ratio_of_probabilities_and_never_overflows() -> None:
    new, old = torch.tensor([0.3]).log(), torch.tensor([0.2]).log()
    assert float(probability_ratio(new, old)) == pytest.approx(1.5)
    assert bool(probability_ratio(torch.tensor(0.0), torch.tensor(-1e9)).isfinite())
