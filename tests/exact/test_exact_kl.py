"""KL estimators, their gradients and best-of-n against exact divergences."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest
import torch
from token_mdp import (
    TokenMDP,
    assert_equal,
    distance,
    gradient,
    kl_of_responses,
    kl_of_states,
    random_problem,
    random_table,
)
from torch import Tensor

from rlhf_ppo.algorithm.kl import (
    Estimator,
    best_of_n_kl,
    estimate_kl,
    kl_loss,
    kl_of_update,
)

seeds = pytest.mark.parametrize("seed", range(3))
estimators = pytest.mark.parametrize("estimator", get_args(Estimator))


def three_policies(seed: int) -> tuple[TokenMDP, Tensor, Tensor, Tensor]:
    """MDP, the policy that sampled, the policy now, the reference."""
    mdp, old = random_problem(seed)
    new = old + 0.7 * random_table(old.shape, 100 + seed)
    return mdp, old, new, random_table(old.shape, 200 + seed)


def state_mean(theta: Tensor, table: Tensor) -> Tensor:
    """E[table(s, token) | s] for tokens of theta, (S,)."""
    return (theta.softmax(dim=1) * table).sum(dim=1)


def estimate_table(theta: Tensor, other: Tensor, estimator: Estimator) -> Tensor:
    """The estimate that each token of each state would give, (S, V)."""
    return estimate_kl(theta.log_softmax(dim=1), other.log_softmax(dim=1), estimator)


@seeds
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_mean_sum_of_k1_and_k3_is_the_exact_kl_of_responses(
    seed: int, estimator: Estimator
) -> None:
    mdp, theta, _, reference = three_policies(seed)
    per_token = estimate_kl(mdp.logprobs(theta), mdp.logprobs(reference), estimator)
    mean = mdp.expectation(mdp.probabilities(theta), per_token)
    assert_equal(mean, kl_of_responses(mdp, theta, reference))


@seeds
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_mean_of_k1_and_k3_is_the_exact_kl_at_each_state(
    seed: int, estimator: Estimator
) -> None:
    mdp, theta, _, reference = three_policies(seed)
    table = estimate_table(theta, reference, estimator)
    assert_equal(state_mean(theta, table), kl_of_states(theta, reference))
    per_token = estimate_kl(mdp.logprobs(theta), mdp.logprobs(reference), estimator)
    by_listing = mdp.mean_at_states(mdp.probabilities(theta), per_token)
    assert_equal(by_listing, kl_of_states(theta, reference))


@seeds
def test_k2_and_k3_are_never_negative_and_k1_is(seed: int) -> None:
    _, theta, _, reference = three_policies(seed)
    assert float(estimate_table(theta, reference, "k1").min()) < 0
    assert float(estimate_table(theta, reference, "k2").min()) >= 0
    assert float(estimate_table(theta, reference, "k3").min()) >= 0


@seeds
def test_the_bias_of_k2_is_half_the_second_moment_less_the_first(seed: int) -> None:
    _, theta, _, reference = three_policies(seed)
    x = theta.log_softmax(dim=1) - reference.log_softmax(dim=1)
    mean = state_mean(theta, estimate_table(theta, reference, "k2"))
    bias = mean - kl_of_states(theta, reference)
    assert_equal(bias, state_mean(theta, x**2 / 2 - x))
    assert float(bias.abs().min()) > 1e-4


@seeds
def test_the_bias_of_k2_is_a_sixth_of_the_third_moment_once_the_policies_are_near(
    seed: int,
) -> None:
    """E[exp(-x)] = 1 makes E[x] = E[x^2]/2 - E[x^3]/6 + ...; each halving halves what is left."""
    _, theta, _, reference = three_policies(seed)
    errors = []
    for halvings in range(3, 9):
        near = theta + (reference - theta) * 0.5**halvings
        x = theta.log_softmax(dim=1) - near.log_softmax(dim=1)
        bias = state_mean(theta, estimate_table(theta, near, "k2")) - kl_of_states(theta, near)
        errors.append((bias / (state_mean(theta, x**3) / 6) - 1).abs().median())
    for larger, smaller in pairwise(errors):
        assert float(smaller / larger) == pytest.approx(0.5, abs=0.1)
    assert float(errors[-1]) < 0.02


@seeds
def test_k2_is_exact_to_second_order(seed: int) -> None:
    """Halving the distance leaves a quarter of the KL, and an eighth of the bias."""
    _, theta, _, reference = three_policies(seed)
    biases, kls = [], []
    for halvings in (6, 7):
        near = theta + (reference - theta) * 0.5**halvings
        kls.append(kl_of_states(theta, near))
        biases.append(state_mean(theta, estimate_table(theta, near, "k2")) - kls[-1])
    assert float((kls[1] / kls[0]).median()) == pytest.approx(1 / 4, rel=0.05)
    assert float((biases[1] / biases[0]).median()) == pytest.approx(1 / 8, rel=0.05)


@seeds
def test_the_kl_of_an_update_is_exact_under_the_old_policy(seed: int) -> None:
    mdp, old, new, _ = three_policies(seed)
    table = kl_of_update(new.log_softmax(dim=1), old.log_softmax(dim=1))
    assert_equal(state_mean(old, table), kl_of_states(new, old))
    assert float(table.min()) >= 0
    per_token = kl_of_update(mdp.logprobs(new), mdp.logprobs(old))
    by_listing = mdp.mean_at_states(mdp.probabilities(old), per_token)
    assert_equal(by_listing, kl_of_states(new, old))


@seeds
@estimators
def test_kl_loss_has_the_exact_gradient_under_another_policys_tokens(
    seed: int, estimator: Estimator
) -> None:
    mdp, old, new, reference = three_policies(seed)
    logprobs, ref_logprobs = mdp.logprobs(old), mdp.logprobs(reference)
    visits = mdp.visitation(old)

    def loss(theta: Tensor) -> Tensor:
        per_token = kl_loss(mdp.logprobs(theta), logprobs, ref_logprobs, estimator)
        return mdp.expectation(mdp.probabilities(old), per_token)

    def exact(theta: Tensor) -> Tensor:
        return (visits * kl_of_states(theta, reference)).sum()

    assert_equal(gradient(loss, new), gradient(exact, new))
    if estimator != "k2":
        assert_equal(loss(new), exact(new))


@seeds
def test_kl_loss_by_k2_has_the_value_of_k2_under_the_new_policy(seed: int) -> None:
    _, old, new, reference = three_policies(seed)
    now, before, there = (theta.log_softmax(dim=1) for theta in (new, old, reference))
    loss = kl_loss(now, before, there, "k2")
    assert_equal(state_mean(old, loss), state_mean(new, (now - there) ** 2 / 2))


def mean_gradient_of_the_estimator_alone(
    mdp: TokenMDP, theta: Tensor, reference: Tensor, estimator: Estimator
) -> Tensor:
    ref_logprobs = mdp.logprobs(reference)

    def value(x: Tensor) -> Tensor:
        per_token = estimate_kl(mdp.logprobs(x), ref_logprobs, estimator)
        return mdp.expectation(mdp.probabilities(theta), per_token)

    return gradient(value, theta)


@seeds
def test_differentiating_k1_alone_gives_nothing(seed: int) -> None:
    """Negative control: the mean of grad log pi is 0."""
    mdp, theta, _, reference = three_policies(seed)
    alone = mean_gradient_of_the_estimator_alone(mdp, theta, reference, "k1")
    assert_equal(alone, torch.zeros_like(theta))


@seeds
def test_differentiating_k3_alone_gives_the_gradient_of_the_reversed_kl(seed: int) -> None:
    """Negative control: the right value, the gradient of another divergence."""
    mdp, theta, _, reference = three_policies(seed)
    visits = mdp.visitation(theta)
    reversed_kl = gradient(lambda x: (visits * kl_of_states(reference, x)).sum(), theta)
    wanted = gradient(lambda x: (visits * kl_of_states(x, reference)).sum(), theta)
    alone = mean_gradient_of_the_estimator_alone(mdp, theta, reference, "k3")
    assert_equal(alone, reversed_kl)
    assert distance(alone, wanted) > 1e-3


@seeds
def test_differentiating_k2_alone_gives_the_gradient_of_the_kl(seed: int) -> None:
    mdp, theta, _, reference = three_policies(seed)
    visits = mdp.visitation(theta)
    wanted = gradient(lambda x: (visits * kl_of_states(x, reference)).sum(), theta)
    assert_equal(mean_gradient_of_the_estimator_alone(mdp, theta, reference, "k2"), wanted)


def kl_of_best_of_n(base: Tensor, n: int) -> float:
    """Of M outcomes, base (M,) their probabilities from the worst score to the best."""
    below = base.cumsum(dim=0)
    best = below**n - torch.cat([below.new_zeros(1), below[:-1]]) ** n
    return float(torch.xlogy(best, best / base).sum())


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_best_of_n_on_many_distinct_scores_has_the_kl_of_the_formula(n: int) -> None:
    count = 100_000
    grid = torch.arange(count + 1, dtype=torch.float64) / count
    best = grid[1:] ** n - grid[:-1] ** n
    exact = float(torch.xlogy(best, best * count).sum())
    assert abs(exact - best_of_n_kl(n)) < 1e-3
    assert exact <= best_of_n_kl(n) + 1e-10


@seeds
@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_best_of_n_of_listed_responses_never_exceeds_the_formula(seed: int, n: int) -> None:
    """Few responses of uneven probability, distinct scores: the formula is an upper bound."""
    mdp, theta = random_problem(seed)
    order = random_table((len(mdp.ids),), 900 + seed).argsort()
    exact = kl_of_best_of_n(mdp.probabilities(theta)[order], n)
    assert exact <= best_of_n_kl(n) + 1e-10
    if n > 1:
        assert exact > 0


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_best_of_n_of_a_coin_by_hand(halvings: int) -> None:
    """Two outcomes: the worse one is the best of n only if all n are."""
    worse = 0.5**halvings
    base = torch.tensor([worse, 1 - worse], dtype=torch.float64)
    p = torch.tensor([worse**2, 1 - worse**2], dtype=torch.float64)
    assert kl_of_best_of_n(base, 2) == pytest.approx(float((p * (p / base).log()).sum()))
    assert kl_of_best_of_n(base, 2) < best_of_n_kl(2)
