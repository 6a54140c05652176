"""GAE: the recursion against its sum, and what it becomes at both ends of lambda."""

from __future__ import annotations

import pytest
import torch
from helpers import ragged_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ppo.algorithm.advantages import gae


def gae_by_sum(rewards: Tensor, values: Tensor, lengths: list[int], gamma: float, lam: float):
    """A_t = sum over k of (gamma lambda)^k delta_{t+k}, row by row, in Python floats."""
    advantages = torch.zeros_like(rewards)
    for row, length in enumerate(lengths):
        r, v = rewards[row].tolist(), [*values[row, :length].tolist(), 0.0]
        for t in range(length):
            advantages[row, t] = sum(
                (gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k])
                for k in range(t, length)
            )
    return advantages


def random_rollout(lengths: list[int], width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), width)
    rewards = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return rewards, values, ragged_mask(lengths, width)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_gae_is_its_own_quadratic_sum(
    lengths: list[int], gamma: float, lam: float, seed: int
) -> None:
    rewards, values, mask = random_rollout(lengths, 9, seed)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    expected = gae_by_sum(rewards, values, lengths, gamma, lam)
    torch.testing.assert_close(advantages, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        returns, torch.where(mask, expected + values, 0.0), rtol=1e-10, atol=1e-10
    )


def test_lambda_0_is_the_one_step_advantage() -> None:
    rewards, values, mask = random_rollout([4], 4)
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=0.0)
    for t in range(3):
        expected = rewards[0, t] + 0.9 * values[0, t + 1] - values[0, t]
        torch.testing.assert_close(advantages[0, t], expected)
    torch.testing.assert_close(advantages[0, 3], rewards[0, 3] - values[0, 3])


def test_lambda_1_is_monte_carlo_minus_the_value() -> None:
    rewards, values, mask = random_rollout([5, 2], 5)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    for row, length in ((0, 5), (1, 2)):
        for t in range(length):
            left = rewards[row, t:length].sum()
            torch.testing.assert_close(returns[row, t], left)
            torch.testing.assert_close(advantages[row, t], left - values[row, t])


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_junk_in_the_padding_never_reaches_an_advantage(junk: float) -> None:
    rewards, values, mask = random_rollout([3, 6, 1], 6)
    clean = gae(rewards, values, mask, 0.99, 0.95)
    dirty = gae(rewards.masked_fill(~mask, junk), values.masked_fill(~mask, junk), mask, 0.99, 0.95)
    for one, other in zip(clean, dirty, strict=True):
        assert torch.equal(one, other)
        assert bool((one[~mask] == 0).all())


def test_expected_advantage_of_a_tiny_token_mdp_by_enumeration() -> None:
    """With the true V, the mean advantage of a token is Q - V, computed by listing all episodes."""
    first, second = (0.3, 0.7), ((0.6, 0.4), (0.1, 0.9))
    reward = {(a, b): 1.0 + 2 * a - 3 * a * b + 0.5 * b for a in (0, 1) for b in (0, 1)}
    v1 = [sum(second[a][b] * reward[a, b] for b in (0, 1)) for a in (0, 1)]
    v0 = sum(first[a] * v1[a] for a in (0, 1))
    episodes = [(a, b) for a in (0, 1) for b in (0, 1)]
    rewards = torch.tensor([[0.0, reward[e]] for e in episodes], dtype=torch.float64)
    values = torch.tensor([[v0, v1[a]] for a, _ in episodes], dtype=torch.float64)
    mask = torch.ones(4, 2, dtype=torch.bool)
    advantages, _ = gae(rewards, values, mask, 1.0, 0.5)
    for a in (0, 1):
        mean = sum(second[a][b] * float(advantages[episodes.index((a, b)), 0]) for b in (0, 1))
        assert mean == pytest.approx(v1[a] - v0)
