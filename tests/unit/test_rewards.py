"""From scores to per-token rewards, by hand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import ragged_mask

from rlhf_ppo.algorithm.kl import Estimator
from rlhf_ppo.algorithm.rewards import (
    Moments,
    Normalization,
    clip_scores,
    normalize_scores,
    penalize_length,
    settle_unstopped,
    shape_rewards,
)

LOGPROBS = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 7.0], [-2.0, 7.0, 7.0]])
REFERENCE = torch.tensor([[-1.5, -2.0, -1.0], [-4.0, -1.0, 9.0], [-2.5, 9.0, 9.0]])
SCORES = torch.tensor([10.0, 20.0, 30.0])
MASK = ragged_mask([3, 2, 1], 3)


def test_score_lands_on_last_token_even_when_cut() -> None:
    # Row 0 fills the width (as a response that was cut does); rows 1 and 2 end before it.
    rewards = shape_rewards(SCORES, LOGPROBS, REFERENCE, MASK, beta=0.1)
    expected = torch.tensor(
        [[-0.1 * 0.5, 0.0, 10.0 + 0.1 * 2.0], [-0.1 * 3.0, 20.0, 0.0], [30.0 - 0.1 * 0.5, 0.0, 0.0]]
    )
    torch.testing.assert_close(rewards, expected)


@pytest.mark.parametrize(
    ("estimator", "kls"),
    [
        ("k1", (0.5 + 0.0 - 2.0, 3.0, 0.5)),
        ("k2", (0.125 + 2.0, 4.5, 0.125)),
        (
            "k3",
            (math.exp(-0.5) - 0.5 + math.exp(2) - 3, math.exp(-3) + 2, math.exp(-0.5) - 0.5),
        ),
    ],
)
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_a_response_reward_is_its_score_minus_beta_times_its_kl(
    estimator: Estimator, kls: tuple[float, ...], beta: float
) -> None:
    rewards = shape_rewards(SCORES, LOGPROBS, REFERENCE, MASK, beta, estimator)
    torch.testing.assert_close(rewards.sum(dim=1), SCORES - beta * torch.tensor(kls))


def test_a_response_without_tokens_gets_no_reward() -> None:
    rewards = shape_rewards(SCORES, LOGPROBS, REFERENCE, ragged_mask([3, 0, 1], 3), 0.1)
    assert rewards[1].tolist() == [0, 0, 0]


def test_unstopped_responses_lose_the_penalty() -> None:
    stopped = torch.tensor([True, False, True])
    assert settle_unstopped(SCORES, stopped, 1.5, None).tolist() == [10.0, 18.5, 30.0]


def test_unstopped_responses_get_the_fixed_score_zero_included() -> None:
    stopped = torch.tensor([True, False, False])
    assert settle_unstopped(SCORES, stopped, 0.0, -1.0).tolist() == [10.0, -1.0, -1.0]
    assert settle_unstopped(SCORES, stopped, 0.0, 0.0).tolist() == [10.0, 0.0, 0.0]


def test_moments_by_hand() -> None:
    one = Moments().add(torch.tensor([1.0, 3.0]))
    assert one == Moments(count=2, mean=2.0, squares=2.0)
    assert one.deviation == 1.0
    two = one.add(torch.tensor([8.0]))
    assert (two.count, two.mean) == (3, pytest.approx(4.0))
    assert two.squares == pytest.approx(9 + 1 + 16)
    assert two.deviation == pytest.approx(math.sqrt(26 / 3))


def test_moments_of_nothing_have_no_deviation_and_travel_as_json() -> None:
    assert Moments().deviation == 0.0
    moments = Moments().add(SCORES)
    assert Moments(**json.loads(json.dumps(asdict(moments)))) == moments


@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=9), min_size=1))
@settings(max_examples=50, deadline=None)
def test_moments_are_those_of_all_scores_however_they_came(parts: list[list[float]]) -> None:
    moments = Moments()
    for part in parts:
        moments = moments.add(torch.tensor(part))
    whole = torch.tensor([score for part in parts for score in part]).double()
    assert moments.count == len(whole)
    assert moments.mean == pytest.approx(float(whole.mean()), abs=1e-9)
    assert moments.squares == pytest.approx(
        float(((whole - whole.mean()) ** 2).sum()), abs=1e-7, rel=1e-9
    )
    deviation = float(whole.std(correction=0))
    assert moments.deviation == pytest.approx(deviation, abs=1e-4, rel=1e-9)


def test_moments_are_taken_in_float64() -> None:
    many = torch.full((1000,), 16_777_216.0)
    many[0] += 2
    assert Moments().add(many).squares == pytest.approx(4 - 4 / 1000)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("none", [10.0, 20.0, 30.0]),
        ("center", [-5.0, 5.0, 15.0]),
        ("scale", [2.5, 5.0, 7.5]),
        ("standardize", [-1.25, 1.25, 3.75]),
    ],
)
def test_scores_are_normalized_by_hand(how: Normalization, expected: list[float]) -> None:
    moments = Moments(count=2, mean=15.0, squares=32.0)  # deviation 4
    assert normalize_scores(SCORES, moments, how).tolist() == expected


def test_scores_that_never_varied_are_not_scaled() -> None:
    """Over a floor of 1e-6 a first step of equal scores made a million of each."""
    moments = Moments().add(torch.full((3,), 3.0))
    assert normalize_scores(torch.full((3,), 3.0), moments, "standardize").tolist() == [0, 0, 0]
    assert normalize_scores(torch.full((3,), 3.0), moments, "scale").tolist() == [3, 3, 3]


def test_scores_are_clipped_on_both_sides_or_not_at_all() -> None:
    scores = torch.tensor([-30.0, -10.0, 1.0, 19.0])
    assert clip_scores(scores, 10.0).tolist() == [-10, -10, 1, 10]
    assert clip_scores(scores, None).tolist() == [-30, -10, 1, 19]


def test_each_token_beyond_the_free_ones_has_its_price() -> None:
    found = penalize_length(SCORES, MASK, penalty=0.5, free_tokens=1)
    assert found.tolist() == [10 - 2 * 0.5, 20 - 0.5, 30]
    assert penalize_length(SCORES, MASK, 0.5, free_tokens=10).tolist() == SCORES.tolist()


def test_the_overlong_penalty_of_dapo_runs_from_0_to_1_over_the_cache() -> None:
    mask = ragged_mask([4, 6, 8, 10], 10)
    found = penalize_length(torch.zeros(4), mask, penalty=1 / 4, free_tokens=6)
    assert found.tolist() == [0, 0, -0.5, -1]
