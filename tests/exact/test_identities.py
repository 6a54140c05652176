"""How the advantage estimates are made of one another: ragged rows, junk in the padding."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from token_mdp import JUNK, assert_equal, random_table
from torch import Tensor

from rlhf_ppo.algorithm.advantages import (
    decoupled_gae,
    discounted_sum,
    gae,
    length_adaptive_lambda,
    monte_carlo,
    n_step,
    one_step,
    reward_to_go,
    td_errors,
)

LENGTHS = (7, 1, 3, 0, 6, 2)
WIDTH = 8  # a column more than the longest
MASK = torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]
LAMS = torch.tensor([0.0, 0.3, 0.95, 0.5, 1.0, 0.7], dtype=torch.float64)

tables = pytest.mark.parametrize(("seed", "gamma"), list(product(range(3), (1.0, 0.9, 0.0))))


def rollout(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values, mask."""
    rewards, values = random_table((2, *MASK.shape), seed)
    return torch.where(MASK, rewards, JUNK), torch.where(MASK, values, JUNK), MASK


def assert_same_pair(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    """Advantages and returns agree, and hold 0 in the padding."""
    for left, right in zip(one, other, strict=True):
        assert_equal(left, right, 1e-12)
        assert bool((left[~MASK] == 0).all())


@tables
def test_td_errors_by_hand(seed: int, gamma: float) -> None:
    rewards, values, mask = rollout(seed)
    expected = torch.zeros(MASK.shape, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        v = [*values[row, :length].tolist(), 0.0]
        for t in range(length):
            expected[row, t] = float(rewards[row, t]) + gamma * v[t + 1] - v[t]
    assert_equal(td_errors(rewards, values, mask, gamma), expected, 1e-12)


@tables
def test_discounted_sum_is_its_quadratic_sum(seed: int, gamma: float) -> None:
    x, _, mask = rollout(seed)
    expected = torch.zeros(MASK.shape, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            expected[row, t] = sum(gamma ** (k - t) * float(x[row, k]) for k in range(t, length))
    assert_equal(discounted_sum(x, mask, gamma), expected, 1e-12)
    assert_equal(reward_to_go(x, mask, gamma), expected, 1e-12)


@tables
def test_lambda_0_is_the_one_step_advantage(seed: int, gamma: float) -> None:
    data = (*rollout(seed), gamma)
    assert_same_pair(gae(*data, 0.0), one_step(*data))


@tables
def test_lambda_1_is_monte_carlo(seed: int, gamma: float) -> None:
    data = (*rollout(seed), gamma)
    assert_same_pair(gae(*data, 1.0), monte_carlo(*data))


@tables
def test_one_step_is_n_step_with_n_1(seed: int, gamma: float) -> None:
    data = (*rollout(seed), gamma)
    assert_same_pair(n_step(*data, 1), one_step(*data))


@tables
@pytest.mark.parametrize("n", [WIDTH - 1, WIDTH, WIDTH + 1, 1000])
def test_n_step_beyond_the_longest_response_is_monte_carlo(seed: int, gamma: float, n: int) -> None:
    data = (*rollout(seed), gamma)
    assert_same_pair(n_step(*data, n), monte_carlo(*data))


@tables
@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_n_step_by_its_textbook_formula(seed: int, gamma: float, n: int) -> None:
    """n rewards, then the discounted value of where they led, 0 beyond the end."""
    rewards, values, mask = rollout(seed)
    expected = torch.zeros(MASK.shape, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        r, v = rewards[row, :length].tolist(), values[row, :length].tolist()
        for t in range(length):
            seen = sum(gamma**k * r[t + k] for k in range(min(n, length - t)))
            led_to = gamma**n * v[t + n] if t + n < length else 0.0
            expected[row, t] = seen + led_to
    advantages = torch.where(MASK, expected - values, 0.0)
    assert_same_pair(n_step(rewards, values, mask, gamma, n), (advantages, expected))


@tables
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_gae_is_the_geometric_mean_of_the_n_step_advantages(
    seed: int, gamma: float, lam: float
) -> None:
    """Weights (1 - lam) lam^(n-1) for n below the row's length, the rest on Monte Carlo."""
    data = (*rollout(seed), gamma)
    steps = [n_step(*data, n) for n in range(1, WIDTH)]
    full = monte_carlo(*data)
    expected = []
    for kind in (0, 1):  # advantages, returns: V cancels, because the weights sum to 1
        total = torch.zeros(MASK.shape, dtype=torch.float64)
        for row, length in enumerate(LENGTHS):
            if length:
                for n in range(1, length):
                    total[row] += (1 - lam) * lam ** (n - 1) * steps[n - 1][kind][row]
                total[row] += lam ** (length - 1) * full[kind][row]
        expected.append(total)
    assert_same_pair(gae(*data, lam), (expected[0], expected[1]))


@tables
def test_gae_is_the_geometric_mean_of_the_steps_left_at_each_token(seed: int, gamma: float) -> None:
    """The same with the weights cut at the end of the response, token by token, in floats."""
    rewards, values, mask = rollout(seed)
    lam = 0.8
    expected = torch.zeros(MASK.shape, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        r, v = rewards[row, :length].tolist(), [*values[row, :length].tolist(), 0.0]
        for t in range(length):
            left = length - t
            estimates = [
                sum(gamma**k * r[t + k] for k in range(n)) + gamma**n * v[t + n] - v[t]
                for n in range(1, left + 1)
            ]
            weights = [(1 - lam) * lam ** (n - 1) for n in range(1, left)] + [lam ** (left - 1)]
            expected[row, t] = sum(w * a for w, a in zip(weights, estimates, strict=True))
    returns = torch.where(MASK, expected + values, 0.0)
    assert_same_pair(gae(rewards, values, mask, gamma, lam), (expected, returns))


@tables
@pytest.mark.parametrize(("lam", "value_lam"), [(0.3, 1.0), (0.95, 0.95), (1.0, 0.0)])
def test_decoupled_gae_is_two_halves_of_gae(
    seed: int, gamma: float, lam: float, value_lam: float
) -> None:
    data = (*rollout(seed), gamma)
    halves = (gae(*data, lam)[0], gae(*data, value_lam)[1])
    assert_same_pair(decoupled_gae(*data, lam, value_lam), halves)


@tables
def test_gae_with_a_lambda_per_row_is_gae_row_by_row(seed: int, gamma: float) -> None:
    rewards, values, mask = rollout(seed)
    rows = [
        gae(rewards[i : i + 1], values[i : i + 1], mask[i : i + 1], gamma, float(LAMS[i]))
        for i in range(len(LAMS))
    ]
    expected = (torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows]))
    assert_same_pair(gae(rewards, values, mask, gamma, LAMS), expected)
    decoupled = decoupled_gae(rewards, values, mask, gamma, LAMS, LAMS)
    assert_same_pair(decoupled, expected)


def test_length_adaptive_lambda_by_hand() -> None:
    lam = length_adaptive_lambda(MASK, alpha=0.5)
    expected = [1 - 1 / 3.5, 0.0, 1 - 1 / 1.5, 0.0, 1 - 1 / 3, 0.0]
    assert lam.tolist() == pytest.approx(expected, abs=1e-7)
    long = torch.ones(1, 200, dtype=torch.bool)
    assert float(length_adaptive_lambda(long, alpha=0.05)) == pytest.approx(0.9)


@pytest.mark.parametrize(("length", "alpha"), [(4, 1.0), (40, 0.05), (100, 0.1)])
def test_length_adaptive_lambda_looks_alpha_times_the_length_ahead(
    length: int, alpha: float
) -> None:
    lam = float(length_adaptive_lambda(torch.ones(1, length, dtype=torch.bool), alpha))
    mean = sum(n * (1 - lam) * lam ** (n - 1) for n in range(1, 2000))
    assert mean == pytest.approx(alpha * length, rel=1e-5)


@tables
def test_gae_is_linear_in_rewards_and_values(seed: int, gamma: float) -> None:
    """Advantages are linear: those of rewards plus those of values alone."""
    rewards, values, mask = rollout(seed)
    zeros = torch.zeros_like(values)
    together, _ = gae(rewards, values, mask, gamma, 0.7)
    apart = gae(rewards, zeros, mask, gamma, 0.7)[0] + gae(zeros, values, mask, gamma, 0.7)[0]
    assert_equal(together, apart, 1e-12)
