"""The yardstick itself: two ways to each exact number."""

from __future__ import annotations

import pytest
import torch
from token_mdp import (
    STOP,
    assert_equal,
    gradient,
    kl_of_responses,
    kl_of_states,
    random_mdp,
    random_problem,
    random_table,
    score_function_gradient,
)

SEEDS = (0, 1, 2)


def test_every_response_is_listed_once_and_none_goes_on_after_the_stop() -> None:
    mdp = random_mdp(seed=0, vocabulary=4, limit=3)
    lengths = mdp.mask.sum(dim=1).tolist()
    responses = {tuple(i[:n]) for i, n in zip(mdp.ids.tolist(), lengths, strict=True)}
    assert len(responses) == len(mdp.ids) == 1 + 3 + 9 * 4
    for response in responses:
        assert STOP not in response[:-1]
        assert response[-1] == STOP or len(response) == 3


def test_states_are_prefixes_and_follow_one_another() -> None:
    mdp = random_mdp(seed=0, vocabulary=3, limit=4)
    assert len(mdp.children) == 1 + 2 + 4 + 8
    for row in range(len(mdp.ids)):
        length = int(mdp.mask[row].sum())
        states = [*mdp.states[row, :length].tolist(), len(mdp.children)]
        assert states[0] == 0
        for t in range(length):
            assert int(mdp.children[states[t], mdp.ids[row, t]]) == states[t + 1]
            assert int(mdp.depths[states[t]]) == t


def test_padding_is_junk_in_all_that_the_library_gets() -> None:
    mdp, theta = random_problem(0)
    for tensor in (mdp.rewards, mdp.logprobs(theta), mdp.at_states(mdp.state_values(theta))):
        assert torch.equal(tensor.isnan(), ~mdp.mask)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_the_objective_is_the_mean_discounted_reward_of_the_listed_responses(
    seed: int, gamma: float
) -> None:
    mdp, theta = random_problem(seed)
    probabilities = mdp.probabilities(theta)
    assert_equal(probabilities.sum(), torch.tensor(1.0, dtype=torch.float64), 1e-14)
    mean = mdp.expectation(probabilities, mdp.discounts(gamma) * mdp.rewards)
    assert_equal(mean, mdp.objective(theta, gamma), 1e-13)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_autograd_differentiates_the_objective_as_finite_differences_do(gamma: float) -> None:
    mdp, theta = random_problem(0)
    theta.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mdp.objective(x, gamma), theta)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_the_policy_gradient_theorem_joins_visitation_advantages_and_the_gradient(
    seed: int, gamma: float
) -> None:
    mdp, theta = random_problem(seed)
    exact = gradient(lambda x: mdp.objective(x, gamma), theta)
    weights = mdp.visitation(theta, gamma)[:, None] * theta.softmax(dim=1)
    assert_equal(weights * mdp.advantage_table(theta, gamma), exact)
    advantages = mdp.at_tokens(mdp.advantage_table(theta, gamma))
    assert_equal(score_function_gradient(mdp, theta, advantages, gamma), exact)


@pytest.mark.parametrize("seed", SEEDS)
def test_visitation_is_the_share_of_responses_that_meet_a_state(seed: int) -> None:
    mdp, theta = random_problem(seed)
    probabilities = mdp.probabilities(theta)
    share = torch.stack(
        [
            probabilities[((mdp.states == state) & mdp.mask).any(dim=1)].sum()
            for state in range(len(mdp.children))
        ]
    )
    assert_equal(mdp.visitation(theta), share, 1e-14)
    assert_equal(mdp.visitation(theta, 0.9), 0.9**mdp.depths * share, 1e-14)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_values_are_the_mean_discounted_rewards_that_follow(seed: int, gamma: float) -> None:
    mdp, theta = random_problem(seed)
    rewards = torch.where(mdp.mask, mdp.rewards, 0.0)
    width = rewards.shape[1]
    left = torch.stack(
        [(rewards[:, t:] * mdp.discounts(gamma)[: width - t]).sum(dim=1) for t in range(width)], 1
    )
    probabilities = mdp.probabilities(theta)
    assert_equal(mdp.mean_at_states(probabilities, left), mdp.state_values(theta, gamma))
    assert_equal(mdp.mean_at_tokens(probabilities, left), mdp.action_values(theta, gamma))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_kl_of_responses_is_the_kl_of_states_at_the_states_that_are_met(seed: int) -> None:
    mdp, theta = random_problem(seed)
    other = random_table(theta.shape, seed + 50)
    by_states = (mdp.visitation(theta) * kl_of_states(theta, other)).sum()
    assert_equal(kl_of_responses(mdp, theta, other), by_states)
