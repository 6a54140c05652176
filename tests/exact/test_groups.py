"""RLOO and GRPO against the exact gradient, by listing every group of independent responses.

Both have one reward a response, its undiscounted total, so the gradient is that at gamma = 1.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from token_mdp import (
    TokenMDP,
    assert_equal,
    distance,
    gradient,
    random_mdp,
    random_problem,
    random_table,
)
from torch import Tensor

from rlhf_ppo.algorithm.advantages import AdvantageSettings, estimate_advantages, grpo, rloo

pairs = pytest.mark.parametrize("seed", range(3))


def small_problem(seed: int) -> tuple[TokenMDP, Tensor]:
    """15 responses, so that there are only 3375 triples."""
    mdp = random_mdp(seed, vocabulary=3, limit=3)
    return mdp, random_table(mdp.children.shape, seed)


def all_groups(probabilities: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rows (groups, size) of every ordered group, and its probability (groups,)."""
    rows = torch.cartesian_prod(*[torch.arange(len(probabilities))] * size)
    return rows, probabilities[rows].prod(dim=1)


def totals(mdp: TokenMDP) -> Tensor:
    return torch.where(mdp.mask, mdp.rewards, 0.0).sum(dim=1)


def mean_advantages(mdp: TokenMDP, rows: Tensor, weights: Tensor, advantages: Tensor) -> Tensor:
    """E[advantages; row i was drawn], averaged over the members of a group, (N, ...)."""
    members = rows.flatten()
    size = rows.shape[1]
    shape = (-1,) + (1,) * (advantages.dim() - 1)
    shares = weights.repeat_interleave(size).view(shape) / size
    zeros = torch.zeros((len(mdp.ids), *advantages.shape[1:]), dtype=torch.float64)
    return zeros.index_add(0, members, shares * advantages)


def group_gradient(mdp: TokenMDP, theta: Tensor, drawn: Tensor) -> Tensor:
    """Gradient of the mean of log pi * A, where `drawn` (N,) or (N, R) is p(row) E[A | row]."""
    if drawn.dim() == 1:
        drawn = drawn[:, None].expand(mdp.mask.shape)
    ones = torch.ones(len(drawn), dtype=torch.float64)
    return gradient(lambda x: mdp.expectation(ones, mdp.logprobs(x) * drawn), theta)


def estimate(mdp: TokenMDP, theta: Tensor, size: int, kind: str, scale: bool = False) -> Tensor:
    rows, weights = all_groups(mdp.probabilities(theta), size)
    function = rloo if kind == "rloo" else partial(grpo, scale=scale)
    advantages = function(totals(mdp)[rows].flatten(), size)
    return group_gradient(mdp, theta, mean_advantages(mdp, rows, weights, advantages))


@pairs
def test_rloo_over_all_pairs_is_the_exact_gradient(seed: int) -> None:
    mdp, theta = random_problem(seed)
    assert_equal(estimate(mdp, theta, 2, "rloo"), gradient(mdp.objective, theta))


@pairs
def test_rloo_over_all_triples_is_the_exact_gradient(seed: int) -> None:
    mdp, theta = small_problem(seed)
    assert_equal(estimate(mdp, theta, 3, "rloo"), gradient(mdp.objective, theta))


@pairs
def test_unscaled_grpo_is_the_exact_gradient_times_its_share_of_others(seed: int) -> None:
    """The mean includes the response itself, which costs 1 / G of the gradient."""
    mdp, theta = random_problem(seed)
    assert_equal(estimate(mdp, theta, 2, "grpo"), gradient(mdp.objective, theta) / 2)
    mdp, theta = small_problem(seed)
    assert_equal(estimate(mdp, theta, 3, "grpo"), gradient(mdp.objective, theta) * 2 / 3)


@pairs
def test_scaled_grpo_does_not_point_along_the_exact_gradient(seed: int) -> None:
    """Negative control: dividing by a deviation that the response itself moved is a bias."""
    mdp, theta = small_problem(seed)
    scaled = estimate(mdp, theta, 3, "grpo", scale=True)
    exact = gradient(mdp.objective, theta)
    assert distance(scaled / scaled.norm(), exact / exact.norm()) > 1e-3


@pairs
@pytest.mark.parametrize(("kind", "share"), [("rloo", 1.0), ("grpo", 2 / 3)])
def test_kinds_by_name_give_the_same_from_rewards_that_stand_at_every_token(
    seed: int, kind: str, share: float
) -> None:
    mdp, theta = small_problem(seed)
    rows, weights = all_groups(mdp.probabilities(theta), 3)
    members = rows.flatten()
    settings = AdvantageSettings(kind=kind, group_size=3, scale_groups=False)  # type: ignore[arg-type]
    rewards, mask = mdp.rewards[members], mdp.mask[members]
    advantages, returns = estimate_advantages(rewards, rewards * torch.nan, mask, settings)
    drawn = mean_advantages(mdp, rows, weights, advantages)
    assert_equal(group_gradient(mdp, theta, drawn), share * gradient(mdp.objective, theta))
    probabilities = mdp.probabilities(theta)
    expected_returns = mean_advantages(mdp, rows, weights, returns) / probabilities[:, None]
    means = mdp.mean_at_states(probabilities, expected_returns)
    assert_equal(means, mdp.state_values(theta))


def test_rloo_by_hand() -> None:
    scores = torch.tensor([1.0, 2.0, 6.0, -1.0, -1.0, 5.0], dtype=torch.float64)
    expected = torch.tensor([-3.0, -1.5, 4.5, -3.0, -3.0, 6.0], dtype=torch.float64)
    assert_equal(rloo(scores, 3), expected, 1e-14)


def test_grpo_by_hand() -> None:
    scores = torch.tensor([1.0, 2.0, 6.0, 4.0, 4.0, 4.0], dtype=torch.float64)
    centred = torch.tensor([-2.0, -1.0, 3.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert_equal(grpo(scores, 3, scale=False), centred, 1e-14)
    deviation = ((4 + 1 + 9) / 2) ** 0.5
    assert_equal(grpo(scores, 3), centred / (deviation + 1e-6), 1e-14)
