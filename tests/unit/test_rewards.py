"""From scores to per-token rewards, by hand."""

from __future__ import annotations

import torch
from helpers import ragged_mask

from rlhf_ppo.algorithm.rewards import settle_unstopped, shape_rewards

LOGPROBS = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 7.0], [-2.0, 7.0, 7.0]])
REFERENCE = torch.tensor([[-1.5, -2.0, -1.0], [-4.0, -1.0, 9.0], [-2.5, 9.0, 9.0]])
SCORES = torch.tensor([10.0, 20.0, 30.0])


def test_score_lands_on_last_token_even_when_cut() -> None:
    # Row 0 fills the width (as a response that was cut does); rows 1 and 2 end before it.
    mask = ragged_mask([3, 2, 1], 3)
    rewards = shape_rewards(SCORES, LOGPROBS, REFERENCE, mask, beta=0.1)
    expected = torch.tensor(
        [[-0.1 * 0.5, 0.0, 10.0 + 0.1 * 2.0], [-0.1 * 3.0, 20.0, 0.0], [30.0 - 0.1 * 0.5, 0.0, 0.0]]
    )
    torch.testing.assert_close(rewards, expected)


def test_a_response_reward_is_its_score_minus_beta_times_its_kl() -> None:
    mask = ragged_mask([3, 2, 1], 3)
    for beta in (0.0, 0.5):
        rewards = shape_rewards(SCORES, LOGPROBS, REFERENCE, mask, beta)
        kl = torch.tensor([0.5 + 0.0 - 2.0, 3.0, 0.5])
        torch.testing.assert_close(rewards.sum(dim=1), SCORES - beta * kl)


def test_nan_in_the_padding_stays_out_of_the_rewards() -> None:
    mask = ragged_mask([3, 2, 1], 3)
    clean = shape_rewards(SCORES, LOGPROBS, REFERENCE, mask, 0.1, "k3")
    nan = float("nan")
    dirty = shape_rewards(
        SCORES, LOGPROBS.masked_fill(~mask, nan), REFERENCE.masked_fill(~mask, nan), mask, 0.1, "k3"
    )
    assert torch.equal(clean, dirty)


def test_unstopped_responses_lose_the_penalty() -> None:
    stopped = torch.tensor([True, False, True])
    assert settle_unstopped(SCORES, stopped, 1.5, None).tolist() == [10.0, 18.5, 30.0]


def test_unstopped_responses_get_the_fixed_score_zero_included() -> None:
    stopped = torch.tensor([True, False, False])
    assert settle_unstopped(SCORES, stopped, 0.0, -1.0).tolist() == [10.0, -1.0, -1.0]
    assert settle_unstopped(SCORES, stopped, 0.0, 0.0).tolist() == [10.0, 0.0, 0.0]
