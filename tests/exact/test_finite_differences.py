"""Gradients of every loss against finite differences, away from the kinks of the clips."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from token_mdp import JUNK, assert_equal, random_table
from torch import Tensor

from rlhf_ppo.algorithm.batch import TokenOutputs, Tokens, TrainBatch
from rlhf_ppo.algorithm.kl import Estimator, estimate_kl, kl_loss, kl_of_update
from rlhf_ppo.algorithm.losses import (
    LossSettings,
    clipped_policy_loss,
    kl_penalty_loss,
    policy_gradient_loss,
    ppo_loss,
    surrogate_loss,
    value_loss,
)

# No ratio within 0.01 of a clip: they stand at 0.7, 0.8, 0.9, 1.2, 1.3 and 2.0.
RATIOS = torch.tensor([0.3, 0.75, 0.85, 0.95, 1.05, 1.25, 1.6, 2.5], dtype=torch.float64)
ADVANTAGES = torch.tensor([-2.0, -0.3, 0.4, 1.7], dtype=torch.float64)
OLD = -0.5 - random_table((4, 8), 0).abs()
NEW = OLD + RATIOS.log()
REFERENCE = -0.5 - random_table((4, 8), 1).abs()
A = ADVANTAGES[:, None].expand(4, 8)

MASK = torch.arange(8) < torch.tensor([8, 6, 3, 7])[:, None]

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "policy_gradient": lambda new: policy_gradient_loss(new, A),
    "surrogate": lambda new: surrogate_loss(new, OLD, A),
    "kl_penalty": lambda new: kl_penalty_loss(new, OLD, A, 0.7),
    "clipped": lambda new: clipped_policy_loss(new, OLD, A, 0.2),
    "clipped, high": lambda new: clipped_policy_loss(new, OLD, A, 0.1, 0.3),
    "clipped, dual": lambda new: clipped_policy_loss(new, OLD, A, 0.2, dual_clip=2.0),
    "k1": lambda new: kl_loss(new, OLD, REFERENCE, "k1"),
    "k3": lambda new: kl_loss(new, OLD, REFERENCE, "k3"),
    "estimate k1": lambda new: estimate_kl(new, REFERENCE, "k1"),
    "estimate k2": lambda new: estimate_kl(new, REFERENCE, "k2"),
    "estimate k3": lambda new: estimate_kl(new, REFERENCE, "k3"),
    "update": lambda new: kl_of_update(new, OLD),
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_has_the_gradient_of_its_value(name: str) -> None:
    assert torch.autograd.gradcheck(LOSSES[name], NEW.clone().requires_grad_())


def test_kl_loss_by_k2_holds_the_ratio_fixed_as_documented() -> None:
    """Not the derivative of its value: ratio log(new / reference), the mean of which is right."""
    new = NEW.clone().requires_grad_()
    loss = kl_loss(new, OLD, REFERENCE, "k2")
    x = NEW - REFERENCE
    assert_equal(loss, RATIOS * x**2 / 2, 1e-12)
    assert_equal(torch.autograd.grad(loss.sum(), new)[0], RATIOS * x, 1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_loss_by_k1_and_k3_by_hand(estimator: Estimator) -> None:
    """d(rho k) = rho (k + k') d log pi: k' is 1 for k1, 1 - reference / new for k3."""
    new = NEW.clone().requires_grad_()
    x = NEW - REFERENCE
    value, slope = (x, x * 0 + 1) if estimator == "k1" else ((-x).exp() - 1 + x, 1 - (-x).exp())
    loss = kl_loss(new, OLD, REFERENCE, estimator)
    assert_equal(loss, RATIOS * value, 1e-12)
    assert_equal(torch.autograd.grad(loss.sum(), new)[0], RATIOS * (value + slope), 1e-12)


@pytest.mark.parametrize("clip_range", [None, 0.2])
def test_the_value_loss_has_the_gradient_of_its_value(clip_range: float | None) -> None:
    old = torch.zeros(4, 6, dtype=torch.float64)
    moves = torch.tensor([-0.9, -0.3, -0.1, 0.1, 0.3, 0.9], dtype=torch.float64)
    returns = torch.tensor([-1.7, -0.33, 0.46, 2.1], dtype=torch.float64)[:, None].expand(4, 6)
    new = moves.repeat(4, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: value_loss(v, old, returns, clip_range), new)


def junk(x: Tensor) -> Tensor:
    return torch.where(MASK, x, JUNK)


def train_batch() -> TrainBatch:
    ids = torch.ones(4, 8, dtype=torch.int64)
    return TrainBatch(
        tokens=Tokens(ids[:, :2], torch.full((4,), 2), ids, MASK),
        logprobs=junk(OLD),
        ref_logprobs=junk(REFERENCE),
        values=junk(random_table((4, 8), 2)),
        advantages=junk(A),
        returns=junk(random_table((4, 8), 3)),
    )


SETTINGS = {
    "policy_gradient": LossSettings("policy_gradient"),
    "surrogate, k1": LossSettings("surrogate", kl_coefficient=0.3, kl_estimator="k1"),
    "kl_penalty": LossSettings("kl_penalty", penalty=0.7, entropy_coefficient=0.2),
    "clipped": LossSettings("clipped", value_clip_range=None),
    "clipped, all": LossSettings(
        "clipped",
        clip_range=0.1,
        clip_range_high=0.3,
        dual_clip=2.0,
        value_coefficient=0.5,
        entropy_coefficient=0.2,
        kl_coefficient=0.3,
        kl_estimator="k3",
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_full_loss_has_the_gradient_of_its_value_and_none_in_the_padding(name: str) -> None:
    """The padding of all that goes in is NaN, and every derivative there is 0."""
    batch, settings = train_batch(), SETTINGS[name]

    def loss(new: Tensor, values: Tensor, entropy: Tensor) -> Tensor:
        outputs = TokenOutputs(junk(new), junk(values), junk(entropy))
        return ppo_loss(outputs, batch, settings).loss

    inputs = [NEW, random_table((4, 8), 4), random_table((4, 8), 5).abs()]
    leaves = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(loss, leaves)
    total = loss(*leaves)
    assert bool((total[~MASK] == 0).all())
    for slope in torch.autograd.grad(total.sum(), leaves, allow_unused=True):
        if slope is not None:
            assert bool((slope[~MASK] == 0).all())


@pytest.mark.parametrize("objective", ["surrogate", "clipped"])
def test_junk_in_a_leaf_of_the_full_loss_leaves_its_gradient_clean(objective: str) -> None:
    """The NaN stands in the tensor that is differentiated, not behind a `where` of the test."""
    settings = LossSettings(
        objective=objective,  # type: ignore[arg-type]
        entropy_coefficient=0.2,
        kl_coefficient=0.3,
    )
    tensors = (NEW, random_table((4, 8), 4), random_table((4, 8), 5).abs())
    leaves = [junk(x).requires_grad_() for x in tensors]
    loss = ppo_loss(TokenOutputs(*leaves), train_batch(), settings).loss
    for slope in torch.autograd.grad(loss.sum(), leaves):
        assert bool((slope[~MASK] == 0).all())
        assert bool(slope[MASK].isfinite().all())


def test_without_a_value_coefficient_the_values_get_no_gradient() -> None:
    values = junk(random_table((4, 8), 4)).requires_grad_()
    outputs = TokenOutputs(junk(NEW).requires_grad_(), values, junk(NEW))
    loss = ppo_loss(outputs, train_batch(), LossSettings(value_coefficient=0.0)).loss
    assert_equal(torch.autograd.grad(loss.sum(), values)[0], torch.zeros_like(NEW), 0.0)


def test_what_is_watched_carries_no_gradient() -> None:
    outputs = TokenOutputs(junk(NEW).requires_grad_(), junk(NEW).requires_grad_(), junk(NEW))
    terms = ppo_loss(outputs, train_batch(), LossSettings())
    assert terms.loss.requires_grad
    for watched in (terms.policy, terms.value, terms.kl, terms.ratio):
        assert not watched.requires_grad
