"""Score and KL penalty as rewards: the gradient of E[score] - beta KL(policy || reference)."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from token_mdp import (
    JUNK,
    TokenMDP,
    assert_equal,
    distance,
    gradient,
    kl_of_responses,
    kl_of_states,
    random_problem,
    random_table,
    score_function_gradient,
)
from torch import Tensor

from rlhf_ppo.algorithm.advantages import gae, monte_carlo, rloo
from rlhf_ppo.algorithm.kl import Estimator
from rlhf_ppo.algorithm.rewards import shape_rewards

seeds = pytest.mark.parametrize("seed", range(3))
betas = pytest.mark.parametrize("beta", [0.0, 0.05, 1.0])


def scored_problem(seed: int) -> tuple[TokenMDP, Tensor, Tensor, Tensor]:
    """MDP, policy, reference, and an arbitrary score of each response, (N,)."""
    mdp, theta = random_problem(seed)
    reference = theta + random_table(theta.shape, 600 + seed)
    return mdp, theta, reference, random_table((len(mdp.ids),), 700 + seed)


def shaped(
    mdp: TokenMDP,
    theta: Tensor,
    reference: Tensor,
    scores: Tensor,
    beta: float,
    estimator: Estimator = "k1",
) -> Tensor:
    """Per-token rewards by the library, junk put back into their padding."""
    ours, others = mdp.logprobs(theta), mdp.logprobs(reference)
    return mdp.with_junk(shape_rewards(scores, ours, others, mdp.mask, beta, estimator))


def exact_gradient(
    mdp: TokenMDP, theta: Tensor, reference: Tensor, scores: Tensor, beta: float
) -> Tensor:
    def objective(x: Tensor) -> Tensor:
        return (mdp.probabilities(x) * scores).sum() - beta * kl_of_responses(mdp, x, reference)

    return gradient(objective, theta)


def test_shaped_rewards_by_hand() -> None:
    """The score on the last token, stop or not, the price of each token's KL, 0 in the padding."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    ours = torch.tensor([[-1.0, -2.0, -0.5], [-0.7, JUNK, JUNK]], dtype=torch.float64)
    others = torch.tensor([[-1.5, -1.0, -0.5], [-0.9, JUNK, JUNK]], dtype=torch.float64)
    scores = torch.tensor([10.0, -4.0], dtype=torch.float64)
    expected = {
        "k1": [[-0.1 * 0.5, 0.1 * 1.0, 10.0], [-4.0 - 0.1 * 0.2, 0.0, 0.0]],
        "k2": [[-0.1 * 0.125, -0.1 * 0.5, 10.0], [-4.0 - 0.1 * 0.02, 0.0, 0.0]],
        "k3": [
            [-0.1 * (math.exp(-0.5) - 0.5), -0.1 * (math.exp(1.0) - 2.0), 10.0],
            [-4.0 - 0.1 * (math.exp(-0.2) - 0.8), 0.0, 0.0],
        ],
    }
    for estimator in get_args(Estimator):
        rewards = shape_rewards(scores, ours, others, mask, 0.1, estimator)
        assert_equal(rewards, torch.tensor(expected[estimator], dtype=torch.float64), 1e-14)


@seeds
@betas
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_mean_reward_is_score_minus_beta_times_the_exact_kl(
    seed: int, beta: float, estimator: Estimator
) -> None:
    mdp, theta, reference, scores = scored_problem(seed)
    rewards = shaped(mdp, theta, reference, scores, beta, estimator)
    probabilities = mdp.probabilities(theta)
    kl = kl_of_responses(mdp, theta, reference)
    exact = (probabilities * scores).sum() - beta * kl
    assert_equal(mdp.expectation(probabilities, rewards), exact)


@seeds
@betas
def test_k1_rewards_with_monte_carlo_give_the_exact_gradient_of_score_minus_kl(
    seed: int, beta: float
) -> None:
    mdp, theta, reference, scores = scored_problem(seed)
    rewards = shaped(mdp, theta, reference, scores, beta)
    values = mdp.at_states(random_table(mdp.depths.shape, 800 + seed))
    advantages, _ = monte_carlo(rewards, values, mdp.mask, gamma=1.0)
    estimate = score_function_gradient(mdp, theta, advantages)
    assert_equal(estimate, exact_gradient(mdp, theta, reference, scores, beta))


@seeds
@pytest.mark.parametrize("lam", [0.0, 0.95])
def test_k1_rewards_with_gae_and_the_true_value_give_the_exact_gradient(
    seed: int, lam: float
) -> None:
    mdp, theta, reference, scores = scored_problem(seed)
    rewards = shaped(mdp, theta, reference, scores, 0.3)
    left = torch.where(mdp.mask, rewards, 0.0).flip(1).cumsum(dim=1).flip(1)
    true = mdp.mean_at_states(mdp.probabilities(theta), left)
    advantages, _ = gae(rewards, mdp.at_states(true), mdp.mask, 1.0, lam)
    estimate = score_function_gradient(mdp, theta, advantages)
    assert_equal(estimate, exact_gradient(mdp, theta, reference, scores, 0.3))


@seeds
def test_k1_rewards_with_rloo_give_the_exact_gradient(seed: int) -> None:
    mdp, theta, reference, scores = scored_problem(seed)
    rewards = shaped(mdp, theta, reference, scores, 0.3)
    totals = torch.where(mdp.mask, rewards, 0.0).sum(dim=1)
    probabilities = mdp.probabilities(theta)
    pairs = torch.cartesian_prod(*[torch.arange(len(totals))] * 2)
    weights = probabilities[pairs].prod(dim=1)
    advantages = rloo(totals[pairs].flatten(), 2).view(-1, 2)
    of_first = torch.zeros_like(totals).index_add(0, pairs[:, 0], weights * advantages[:, 0])
    mean = (of_first / probabilities)[:, None].expand(mdp.mask.shape)
    estimate = score_function_gradient(mdp, theta, mean)
    assert_equal(estimate, exact_gradient(mdp, theta, reference, scores, 0.3))


@seeds
def test_k3_rewards_add_the_gradient_of_the_reversed_kl_and_are_biased(seed: int) -> None:
    """What k3 in the reward costs, exactly.

    The gradient of E[sum of k3] has two parts: that through the probabilities of the tokens, which
    a reward brings, and that through k3 itself, which it does not. The mean of the second is the
    gradient of KL(reference || policy) at the states met, and is missing. k1's second part is 0.
    """
    mdp, theta, reference, scores = scored_problem(seed)
    beta = 0.3
    rewards = shaped(mdp, theta, reference, scores, beta, "k3")
    advantages, _ = monte_carlo(rewards, torch.zeros_like(rewards), mdp.mask, gamma=1.0)
    estimate = score_function_gradient(mdp, theta, advantages)
    visits = mdp.visitation(theta)
    missing = gradient(lambda x: (visits * kl_of_states(reference, x)).sum(), theta)
    exact = exact_gradient(mdp, theta, reference, scores, beta)
    assert_equal(estimate, exact + beta * missing)
    assert distance(estimate, exact) > 1e-3
