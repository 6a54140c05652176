"""Why the states of an old policy may be kept: the lemma, its error, and TRPO's bound, exactly."""

from __future__ import annotations

from itertools import product

import pytest
from token_mdp import (
    TokenMDP,
    assert_equal,
    distance,
    gradient,
    kl_of_states,
    random_problem,
    random_table,
)
from torch import Tensor

problems = pytest.mark.parametrize(("seed", "gamma"), list(product(range(3), (1.0, 0.9))))
STEPS = (0.01, 0.1, 0.5, 1.0, 2.0)


def gains(mdp: TokenMDP, old: Tensor, new: Tensor, gamma: float) -> Tensor:
    """Mean advantage, by the old policy's measure, of the new one's token at each state, (S,)."""
    return (new.softmax(dim=1) * mdp.advantage_table(old, gamma)).sum(dim=1)


def surrogate(mdp: TokenMDP, old: Tensor, new: Tensor, gamma: float) -> Tensor:
    """The same over the states that the old policy meets."""
    return (mdp.visitation(old, gamma) * gains(mdp, old, new, gamma)).sum()


def gap(mdp: TokenMDP, old: Tensor, new: Tensor, gamma: float) -> Tensor:
    """By how much the objective rises less than the surrogate says."""
    risen = mdp.objective(new, gamma) - mdp.objective(old, gamma)
    return surrogate(mdp, old, new, gamma) - risen


def moved(old: Tensor, seed: int, step: float) -> Tensor:
    return old + step * random_table(old.shape, 300 + seed)


@problems
def test_the_performance_difference_is_the_advantage_over_the_new_policys_states(
    seed: int, gamma: float
) -> None:
    """Kakade and Langford 2002, lemma 6.1: exact for any two policies."""
    mdp, old = random_problem(seed)
    new = moved(old, seed, 1.5)
    over_new_states = (mdp.visitation(new, gamma) * gains(mdp, old, new, gamma)).sum()
    assert_equal(over_new_states, mdp.objective(new, gamma) - mdp.objective(old, gamma))
    # Negative control: over the old policy's states it is another number.
    assert distance(over_new_states, surrogate(mdp, old, new, gamma)) > 1e-3


@problems
def test_keeping_the_old_states_costs_nothing_to_first_order(seed: int, gamma: float) -> None:
    """Same value and gradient at the old policy; the error falls with the square of the step."""
    mdp, old = random_problem(seed)
    exact = gradient(lambda theta: mdp.objective(theta, gamma), old)
    assert_equal(gradient(lambda theta: surrogate(mdp, old, theta, gamma), old), exact)
    small, half = (float(gap(mdp, old, moved(old, seed, step), gamma)) for step in (2e-3, 1e-3))
    assert small / half == pytest.approx(4.0, abs=0.1)


@problems
@pytest.mark.parametrize("step", STEPS)
def test_the_error_is_bounded_by_the_largest_kl_at_any_state(
    seed: int, gamma: float, step: float
) -> None:
    """T (T - 1) max |A| max KL(old || new) for responses of at most T tokens; and TRPO's own bound.

    Schulman et al. 2015, theorem 1 and equation 9: 4 epsilon gamma / (1 - gamma)^2 times the KL.
    """
    mdp, old = random_problem(seed)
    new = moved(old, seed, step)
    tokens = mdp.mask.shape[1]
    largest = float(mdp.advantage_table(old, gamma).abs().max())
    kl = float(kl_of_states(old, new).max())
    error = abs(float(gap(mdp, old, new, gamma)))
    assert 0 < error <= tokens * (tokens - 1) * largest * kl
    if gamma < 1:
        assert error <= 4 * largest * gamma / (1 - gamma) ** 2 * kl
    # With the total variation, which is what the proof bounds before it takes the KL.
    apart = float((old.softmax(1) - new.softmax(1)).abs().sum(dim=1).max()) / 2
    assert error <= 2 * tokens * (tokens - 1) * largest * apart**2


def test_far_from_the_old_policy_the_surrogate_promises_what_is_not_kept() -> None:
    """A policy that the surrogate says is better and that is worse: why steps are held small."""
    found = 0
    for seed, step in product(range(12), (1.0, 2.0, 4.0)):
        mdp, old = random_problem(seed)
        new = moved(old, seed, step)
        promised = float(surrogate(mdp, old, new, 1.0))
        kept = float(mdp.objective(new) - mdp.objective(old))
        found += promised > 0 > kept
    assert found > 0
