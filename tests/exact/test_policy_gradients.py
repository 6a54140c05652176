"""Advantage estimates against the exact policy gradient, by listing every response.

With a discount the exact gradient of J = E[sum of gamma^t r_t] weighs token t by gamma^t, so these
tests do too. (The library, as all of practice, leaves that weight out: at gamma < 1 it climbs
something that is no objective's gradient. At gamma = 1 there is nothing to leave out.)
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from token_mdp import (
    JUNK,
    TokenMDP,
    assert_equal,
    distance,
    gradient,
    random_problem,
    random_table,
    score_function_gradient,
)
from torch import Tensor

from rlhf_ppo.algorithm.advantages import (
    AdvantageSettings,
    decoupled_gae,
    estimate_advantages,
    gae,
    length_adaptive_lambda,
    monte_carlo,
    n_step,
    one_step,
    reward_to_go,
)

GAMMAS = (1.0, 0.9)
problems = pytest.mark.parametrize(("seed", "gamma"), list(product(range(3), GAMMAS)))


def exact_gradient(mdp: TokenMDP, theta: Tensor, gamma: float) -> Tensor:
    return gradient(lambda x: mdp.objective(x, gamma), theta)


def true_values(mdp: TokenMDP, theta: Tensor, gamma: float) -> Tensor:
    return mdp.at_states(mdp.state_values(theta, gamma))


def random_values(mdp: TokenMDP, seed: int) -> Tensor:
    return mdp.at_states(random_table(mdp.depths.shape, 2000 + seed))


def assert_gradient(
    mdp: TokenMDP, theta: Tensor, advantages: Tensor, gamma: float, tolerance: float = 1e-10
) -> None:
    estimate = score_function_gradient(mdp, theta, advantages, gamma)
    assert_equal(estimate, exact_gradient(mdp, theta, gamma), tolerance)


@problems
def test_reward_to_go_gives_the_exact_gradient(seed: int, gamma: float) -> None:
    mdp, theta = random_problem(seed)
    advantages = reward_to_go(mdp.rewards, mdp.mask, gamma)
    assert_gradient(mdp, theta, advantages, gamma)
    means = mdp.mean_at_tokens(mdp.probabilities(theta), advantages)
    assert_equal(means, mdp.action_values(theta, gamma))


@problems
def test_monte_carlo_gives_the_exact_gradient_whatever_the_baseline(
    seed: int, gamma: float
) -> None:
    mdp, theta = random_problem(seed)
    baseline = random_values(mdp, seed)
    advantages, returns = monte_carlo(mdp.rewards, baseline, mdp.mask, gamma)
    assert_gradient(mdp, theta, advantages, gamma)
    means = mdp.mean_at_states(mdp.probabilities(theta), returns)
    assert_equal(means, mdp.state_values(theta, gamma))


@problems
def test_gae_at_lambda_1_gives_the_exact_gradient_whatever_the_values(
    seed: int, gamma: float
) -> None:
    mdp, theta = random_problem(seed)
    advantages, returns = gae(mdp.rewards, random_values(mdp, seed), mdp.mask, gamma, 1.0)
    assert_gradient(mdp, theta, advantages, gamma)
    means = mdp.mean_at_states(mdp.probabilities(theta), returns)
    assert_equal(means, mdp.state_values(theta, gamma))


@problems
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_gae_with_the_true_value_is_unbiased_at_any_lambda(
    seed: int, gamma: float, lam: float
) -> None:
    mdp, theta = random_problem(seed)
    advantages, returns = gae(mdp.rewards, true_values(mdp, theta, gamma), mdp.mask, gamma, lam)
    assert_gradient(mdp, theta, advantages, gamma)
    probabilities = mdp.probabilities(theta)
    token_means = mdp.mean_at_tokens(probabilities, advantages)
    assert_equal(token_means, mdp.advantage_table(theta, gamma))
    state_means = mdp.mean_at_states(probabilities, returns)
    assert_equal(state_means, mdp.state_values(theta, gamma))


@problems
@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_n_step_with_the_true_value_is_unbiased_at_any_n(seed: int, gamma: float, n: int) -> None:
    mdp, theta = random_problem(seed)
    advantages, returns = n_step(mdp.rewards, true_values(mdp, theta, gamma), mdp.mask, gamma, n)
    assert_gradient(mdp, theta, advantages, gamma)
    probabilities = mdp.probabilities(theta)
    token_means = mdp.mean_at_tokens(probabilities, advantages)
    assert_equal(token_means, mdp.advantage_table(theta, gamma))
    state_means = mdp.mean_at_states(probabilities, returns)
    assert_equal(state_means, mdp.state_values(theta, gamma))


@problems
def test_one_step_with_the_true_value_is_unbiased(seed: int, gamma: float) -> None:
    mdp, theta = random_problem(seed)
    values = true_values(mdp, theta, gamma)
    advantages, returns = one_step(mdp.rewards, values, mdp.mask, gamma)
    assert_gradient(mdp, theta, advantages, gamma)
    state_means = mdp.mean_at_states(mdp.probabilities(theta), returns)
    assert_equal(state_means, mdp.state_values(theta, gamma))


@problems
def test_decoupled_gae_has_an_unbiased_half_for_each_of_its_readers(
    seed: int, gamma: float
) -> None:
    """True values: no lambda biases the policy. Wrong values: value_lam = 1 saves the returns."""
    mdp, theta = random_problem(seed)
    advantages, _ = decoupled_gae(
        mdp.rewards, true_values(mdp, theta, gamma), mdp.mask, gamma, 0.3, 0.8
    )
    assert_gradient(mdp, theta, advantages, gamma)
    _, returns = decoupled_gae(mdp.rewards, random_values(mdp, seed), mdp.mask, gamma, 0.3, 1.0)
    means = mdp.mean_at_states(mdp.probabilities(theta), returns)
    assert_equal(means, mdp.state_values(theta, gamma))


@problems
def test_gae_with_a_lambda_per_response_is_unbiased_if_the_lambdas_were_drawn_beforehand(
    seed: int, gamma: float
) -> None:
    """Every response meets every lambda: one batch of copies, a random order of lambdas in it."""
    mdp, theta = random_problem(seed)
    lams = (0.2, 0.7, 1.0)
    rows = len(mdp.ids)
    order = torch.randperm(len(lams) * rows, generator=torch.Generator().manual_seed(seed))
    copies = order % rows
    per_row = torch.tensor(lams, dtype=torch.float64)[order // rows]
    values = true_values(mdp, theta, gamma)
    shuffled, _ = gae(mdp.rewards[copies], values[copies], mdp.mask[copies], gamma, per_row)
    mean = torch.zeros_like(shuffled[:rows]).index_add(0, copies, shuffled) / len(lams)
    assert_gradient(mdp, theta, mean, gamma)


@problems
def test_a_lambda_that_knows_the_length_is_biased_even_with_the_true_value(
    seed: int, gamma: float
) -> None:
    """Negative control: the length is news from the future, and the sum of errors is chosen by it.

    The price of `length_alpha` (VAPO): the errors of the true V have mean 0, but no longer once
    their weights depend on how the response ended.
    """
    mdp, theta = random_problem(seed)
    lam = length_adaptive_lambda(mdp.mask, alpha=0.5)
    assert float(lam.min()) < float(lam.max())
    values = true_values(mdp, theta, gamma)
    advantages, _ = gae(mdp.rewards, values, mdp.mask, gamma, lam)
    estimate = score_function_gradient(mdp, theta, advantages, gamma)
    assert distance(estimate, exact_gradient(mdp, theta, gamma)) > 1e-3


@problems
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95])
def test_gae_below_lambda_1_with_wrong_values_is_biased(
    seed: int, gamma: float, lam: float
) -> None:
    """Negative control: these tests can tell a biased estimate."""
    mdp, theta = random_problem(seed)
    advantages, _ = gae(mdp.rewards, random_values(mdp, seed), mdp.mask, gamma, lam)
    estimate = score_function_gradient(mdp, theta, advantages, gamma)
    assert distance(estimate, exact_gradient(mdp, theta, gamma)) > 1e-3


@problems
@pytest.mark.parametrize("n", [1, 2])
def test_n_step_with_wrong_values_is_biased(seed: int, gamma: float, n: int) -> None:
    mdp, theta = random_problem(seed)
    advantages, _ = n_step(mdp.rewards, random_values(mdp, seed), mdp.mask, gamma, n)
    estimate = score_function_gradient(mdp, theta, advantages, gamma)
    assert distance(estimate, exact_gradient(mdp, theta, gamma)) > 1e-3


def test_a_gradient_without_the_weight_gamma_to_the_t_is_not_that_of_the_discounted_reward() -> (
    None
):
    mdp, theta = random_problem(0)
    advantages = reward_to_go(mdp.rewards, mdp.mask, 0.9)
    unweighted = score_function_gradient(mdp, theta, advantages, gamma=1.0)
    assert distance(unweighted, exact_gradient(mdp, theta, 0.9)) > 1e-2


@problems
@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "reward_to_go"},
        {"kind": "monte_carlo"},
        {"kind": "one_step"},
        {"kind": "n_step", "n": 2},
        {"kind": "gae", "lam": 0.95},
        {"kind": "gae", "lam": 0.5, "value_lam": 1.0},
    ],
    ids=str,
)
def test_every_kind_by_name_gives_the_exact_gradient_with_the_true_value(
    seed: int, gamma: float, settings: dict[str, object]
) -> None:
    mdp, theta = random_problem(seed)
    chosen = AdvantageSettings(gamma=gamma, **settings)  # type: ignore[arg-type]
    values = true_values(mdp, theta, gamma)
    if chosen.kind == "reward_to_go":
        values = torch.full_like(values, JUNK)
    advantages, returns = estimate_advantages(mdp.rewards, values, mdp.mask, chosen)
    assert_gradient(mdp, theta, advantages, gamma)
    state_means = mdp.mean_at_states(mdp.probabilities(theta), returns)
    assert_equal(state_means, mdp.state_values(theta, gamma))
