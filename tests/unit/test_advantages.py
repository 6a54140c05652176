"""Every advantage estimate by hand on two short responses, and against its defining sum."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import mask_of, normal, ragged, ragged_mask
from torch import Tensor

from rlhf_ppo.algorithm.advantages import (
    AdvantageSettings,
    Kind,
    decoupled_gae,
    estimate_advantages,
    gae,
    grpo,
    length_adaptive_lambda,
    monte_carlo,
    n_step,
    one_step,
    reinforce_plus_plus,
    reward_to_go,
    rloo,
    td_errors,
)

# Two responses of three tokens and one; gamma = 0.5 throughout; NaN in the padding.
REWARDS = ragged([1, 2, 3], [4])
VALUES = ragged([10, 20, 30], [40])
MASK = mask_of([1, 2, 3], [4])
GAMMA = 0.5
DELTA = ([1 + 0.5 * 20 - 10, 2 + 0.5 * 30 - 20, 3 - 30], [4 - 40])
TO_GO = ([1 + 0.5 * 2 + 0.25 * 3, 2 + 0.5 * 3, 3], [4])


def assert_rows(found: Tensor, *rows: list[float]) -> None:
    """Equal to these rows, and 0 in the padding."""
    torch.testing.assert_close(found, ragged(*rows, padding=0.0), rtol=1e-6, atol=1e-9)


def test_td_errors_by_hand() -> None:
    assert_rows(td_errors(REWARDS, VALUES, MASK, GAMMA), *DELTA)


def test_reward_to_go_by_hand() -> None:
    assert_rows(reward_to_go(REWARDS, MASK, GAMMA), *TO_GO)


def test_monte_carlo_by_hand() -> None:
    advantages, returns = monte_carlo(REWARDS, VALUES, MASK, GAMMA)
    assert_rows(advantages, [2.75 - 10, 3.5 - 20, 3 - 30], [4 - 40])
    assert_rows(returns, *TO_GO)


def test_one_step_by_hand() -> None:
    advantages, returns = one_step(REWARDS, VALUES, MASK, GAMMA)
    assert_rows(advantages, *DELTA)
    assert_rows(returns, [1 + 10, 2 + 15, 3], [4])


@pytest.mark.parametrize(
    ("n", "returns"),
    [
        (1, ([11, 17, 3], [4])),
        (2, ([1 + 0.5 * 2 + 0.25 * 30, 3.5, 3], [4])),
        (3, TO_GO),
        (100, TO_GO),
    ],
)
def test_n_step_by_hand(n: int, returns: tuple[list[float], list[float]]) -> None:
    advantages, found = n_step(REWARDS, VALUES, MASK, GAMMA, n)
    assert_rows(found, *returns)
    assert_rows(found - advantages, [10, 20, 30], [40])


def test_gae_by_hand() -> None:
    advantages, returns = gae(REWARDS, VALUES, MASK, GAMMA, lam=0.5)
    second = -3 + 0.25 * -27
    assert_rows(advantages, [1 + 0.25 * second, second, -27], [-36])
    assert_rows(returns, [11 + 0.25 * second, 20 + second, 3], [4])


def test_each_response_may_have_its_own_lambda() -> None:
    rewards, values, mask = random_rollout([4, 2, 6], 6)
    lam = torch.tensor([0.0, 0.3, 0.9], dtype=torch.float64)
    advantages, returns = gae(rewards, values, mask, 0.9, lam)
    for row in range(3):
        one = (rewards[row : row + 1], values[row : row + 1], mask[row : row + 1])
        alone = gae(*one, 0.9, float(lam[row]))
        torch.testing.assert_close(advantages[row : row + 1], alone[0])
        torch.testing.assert_close(returns[row : row + 1], alone[1])


def test_decoupled_gae_takes_advantages_by_one_lambda_and_returns_by_the_other() -> None:
    advantages, returns = decoupled_gae(REWARDS, VALUES, MASK, GAMMA, lam=0.5, value_lam=1.0)
    assert_rows(advantages, [1 + 0.25 * -9.75, -9.75, -27], [-36])
    assert_rows(returns, *TO_GO)
    advantages, returns = decoupled_gae(REWARDS, VALUES, MASK, GAMMA, lam=1.0, value_lam=0.0)
    assert_rows(advantages, [2.75 - 10, 3.5 - 20, 3 - 30], [4 - 40])
    assert_rows(returns, [11, 17, 3], [4])


def test_length_adaptive_lambda_looks_a_share_of_the_response_ahead() -> None:
    mask = ragged_mask([1, 2, 10, 0], 10)
    assert length_adaptive_lambda(mask, 0.5).tolist() == pytest.approx([0, 0, 0.8, 0])
    assert length_adaptive_lambda(mask, 2.0).tolist() == pytest.approx([0.5, 0.75, 0.95, 0.5])


def test_rloo_compares_each_response_with_the_mean_of_the_others() -> None:
    scores = torch.tensor([1.0, 2.0, 6.0, 10.0, 10.0, 10.0])
    assert rloo(scores, 3).tolist() == [1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0]
    assert rloo(scores, 2).tolist() == [-1, 1, -4, 4, 0, 0]


def test_grpo_by_hand_scaled_and_not() -> None:
    scores = torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0, 30.0], dtype=torch.float64)
    assert grpo(scores, 3, scale=False).tolist() == [-2, -1, 3, -10, 0, 10]
    first, second = math.sqrt((4 + 1 + 9) / 2) + 1e-6, math.sqrt((100 + 100) / 2) + 1e-6
    expected = [-2 / first, -1 / first, 3 / first, -10 / second, 0, 10 / second]
    assert grpo(scores, 3).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("score", [0.1, 0.7, 1000.1])
@pytest.mark.parametrize("scale", [True, False])
def test_equal_scores_give_exactly_no_advantage_and_leave_other_groups_alone(
    score: float, scale: bool
) -> None:
    scores = torch.tensor([score] * 3 + [1.0, 2.0, 6.0])
    found = grpo(scores, 3, scale)
    assert found[:3].tolist() == [0, 0, 0]
    assert found[3:].tolist() == grpo(scores[3:], 3, scale).tolist()
    assert float(found[5]) > 1


def test_two_equal_scores_of_three_are_no_group_of_equals() -> None:
    assert grpo(torch.tensor([1.0, 1.0, 4.0]), 3, scale=False).tolist() == [-1, -1, 2]


@pytest.mark.parametrize("function", [rloo, grpo])
@pytest.mark.parametrize("group_size", [-1, 0, 1, 4, 7])
def test_scores_that_make_no_groups_are_refused_with_the_numbers(
    function: object, group_size: int
) -> None:
    with pytest.raises(ValueError, match=rf"6 scores do not split into groups of {group_size};"):
        function(torch.ones(6), group_size)  # type: ignore[operator]


def test_reinforce_plus_plus_refuses_what_makes_no_groups() -> None:
    mask = torch.ones(6, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="6 scores do not split into groups of 4;"):
        reinforce_plus_plus(torch.ones(6, 2), mask, GAMMA, group_size=4)


def test_reinforce_plus_plus_whitens_the_reward_to_go_by_hand() -> None:
    rewards, mask = ragged([0, 2], [4]), mask_of([0, 2], [4])
    # To go with gamma = 0.5: 1, 2, 4; mean 7/3; squared distances 16/9, 1/9, 25/9.
    scale = math.sqrt(42 / 27 + 1e-8)
    rows = [(1 - 7 / 3) / scale, (2 - 7 / 3) / scale], [(4 - 7 / 3) / scale]
    assert_rows(reinforce_plus_plus(rewards, mask, GAMMA), *rows)
    assert_rows(reinforce_plus_plus(rewards, mask, GAMMA, group_size=1), *rows)


def test_reinforce_plus_plus_with_groups_subtracts_the_groups_mean_total() -> None:
    rows = ([0, 2], [4], [10], [5, 15])
    # To go with gamma = 0.5: 1, 2 | 4 | 10 | 12.5, 15; mean totals 3 (first two) and 15.
    left = [1 - 3, 2 - 3, 4 - 3, 10 - 15, 12.5 - 15, 15 - 15]
    mean = sum(left) / 6
    scale = math.sqrt(sum((x - mean) ** 2 for x in left) / 6 + 1e-8)
    a, b, c, d, e, f = ((x - mean) / scale for x in left)
    found = reinforce_plus_plus(ragged(*rows), mask_of(*rows), GAMMA, group_size=2)
    assert_rows(found, [a, b], [c], [d], [e, f])


@pytest.mark.parametrize("kind", get_args(Kind))
def test_responses_of_one_token_are_responses_too(kind: Kind) -> None:
    rewards, values = torch.tensor([[3.0], [1.0]]), torch.tensor([[0.5], [2.0]])
    wanted = AdvantageSettings(kind, group_size=2, scale_groups=False)
    advantages, returns = estimate_advantages(rewards, values, torch.ones(2, 1) > 0, wanted)
    baseline = {"rloo": [2.0, -2.0], "grpo": [1.0, -1.0], "reinforce_pp": [1.0, -1.0]}
    plain = [3.0, 1.0] if kind == "reward_to_go" else [2.5, -1.0]
    assert advantages.flatten().tolist() == pytest.approx(baseline.get(kind, plain))
    assert returns.flatten().tolist() == [3.0, 1.0]


def random_rollout(lengths: list[int], width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rewards, values = normal(2, len(lengths), width, seed=seed)
    return rewards, values, ragged_mask(lengths, width)


def by_the_sum(
    rewards: Tensor, values: Tensor, lengths: list[int], gamma: float, lam: float, n: int
) -> list[list[float]]:
    """A_t = sum over k < n of (gamma lambda)^k delta_{t+k}, row by row, in Python floats."""
    rows = []
    for row, length in enumerate(lengths):
        r, v = rewards[row].tolist(), [*values[row, :length].tolist(), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        rows.append(
            [
                sum((gamma * lam) ** k * d for k, d in enumerate(delta[t : t + n]))
                for t in range(length)
            ]
        )
    return rows


LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=5)


@given(lengths=LENGTHS, gamma=st.floats(0, 1), lam=st.floats(0, 1), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_gae_is_its_own_quadratic_sum(
    lengths: list[int], gamma: float, lam: float, seed: int
) -> None:
    rewards, values, mask = random_rollout(lengths, 9, seed)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    rows = by_the_sum(rewards, values, lengths, gamma, lam, n=9)
    expected = ragged(*rows, padding=0.0, width=9)
    torch.testing.assert_close(advantages, expected, rtol=1e-10, atol=1e-10)
    expected = torch.where(mask, expected + values, 0.0)
    torch.testing.assert_close(returns, expected, rtol=1e-10, atol=1e-10)


@given(lengths=LENGTHS, gamma=st.floats(0, 1), n=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_n_step_is_n_rewards_and_then_the_value(
    lengths: list[int], gamma: float, n: int, seed: int
) -> None:
    rewards, values, mask = random_rollout(lengths, 9, seed)
    advantages, returns = n_step(rewards, values, mask, gamma, n)
    rows = []
    for row, length in enumerate(lengths):
        r, v = rewards[row].tolist(), values[row].tolist()
        rows.append([0.0] * length)
        for t in range(length):
            end = min(t + n, length)
            rows[row][t] = sum(gamma ** (k - t) * r[k] for k in range(t, end))
            if end < length:
                rows[row][t] += gamma**n * v[end]
    expected = ragged(*rows, padding=0.0, width=9)
    torch.testing.assert_close(returns, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        advantages, torch.where(mask, expected - values, 0.0), rtol=1e-10, atol=1e-10
    )
