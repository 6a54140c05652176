"""From one score a response to one reward a token.

In this order: normalise, clip, rule for responses that did not stop, length penalty, then spread
over the tokens together with the KL penalty, then whiten.
"""

import math
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from rlhf_ppo.algorithm.kl import Estimator, estimate_kl
from rlhf_ppo.algorithm.masked import last_token, zero_padding

Normalization = Literal["none", "center", "scale", "standardize"]


@dataclass(frozen=True)
class Moments:
    """Count, mean and spread of the scores seen so far; plain numbers, so that JSON keeps them."""

    count: int = 0
    mean: float = 0.0  # reward units
    squares: float = 0.0  # sum of squared distances from the mean

    @property
    def deviation(self) -> float:
        """Biased standard deviation, reward units."""
        return math.sqrt(self.squares / max(self.count, 1))

    def add(self, scores: Tensor) -> "Moments":
        """With more scores (B,), in float64 (Chan et al. 1979, pairwise update)."""
        scores = scores.double()
        mean, count = float(scores.mean()), self.count + len(scores)
        squares = float(((scores - mean) ** 2).sum())
        distance, share = mean - self.mean, len(scores) / count
        return Moments(
            count=count,
            mean=self.mean + distance * share,
            squares=self.squares + squares + distance**2 * self.count * share,
        )


def normalize_scores(scores: Tensor, moments: Moments, how: Normalization) -> Tensor:
    """Scores (B,) shifted and scaled by moments.

    Args:
        scores: (B,) reward units.
        moments: of the reference's responses, or of all so far.
        how: "center" subtracts the mean, "scale" divides by the deviation, "standardize" both;
            scores that never varied are divided by 1.
    """
    deviation = moments.deviation if moments.deviation > 1e-6 else 1.0
    match how:
        case "none":
            return scores
        case "center":
            return scores - moments.mean
        case "scale":
            return scores / deviation
        case "standardize":
            return (scores - moments.mean) / deviation
        case _:
            assert_never(how)


def clip_scores(scores: Tensor, clip_range: float | None) -> Tensor:
    """Scores (B,) held within +-clip_range (reward units); None: as they are."""
    return scores if clip_range is None else scores.clamp(-clip_range, clip_range)


def settle_unstopped(
    scores: Tensor, stopped: Tensor, penalty: float, fixed_score: float | None
) -> Tensor:
    """Scores (B,) after the rule for responses that did not end by themselves.

    Args:
        scores: (B,) reward units.
        stopped: (B,) bool.
        penalty: subtracted where not stopped.
        fixed_score: if given, the score where not stopped (Huang et al. 2024, detail 23: the
            "EOS trick").
    """
    unstopped = scores - penalty
    if fixed_score is not None:
        unstopped = torch.full_like(scores, fixed_score)
    return torch.where(stopped, scores, unstopped)


def penalize_length(scores: Tensor, mask: Tensor, penalty: float, free_tokens: int) -> Tensor:
    """Scores (B,) minus a price for each token beyond a free allowance.

    DAPO's overlong penalty (Yu et al. 2025, equation 13) is free_tokens = limit - cache with
    penalty = 1 / cache.

    Args:
        scores: (B,) reward units.
        mask: (B, R) bool, True on sampled tokens.
        penalty: reward units a token.
        free_tokens: tokens that cost nothing.
    """
    return scores - penalty * (mask.sum(dim=1) - free_tokens).clamp(min=0)


def shape_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    beta: float,
    estimator: Estimator = "k1",
) -> Tensor:
    """Reward of each token: -beta * KL, plus the score on the last one (B, R), reward units.

    Ziegler et al. 2019, equation 2, spread over the tokens. The score lands on the last True of
    `mask`, whether the response ended by itself or was cut.

    Args:
        scores: (B,) reward units.
        logprobs: (B, R) nats, under the policy that sampled.
        ref_logprobs: (B, R) nats, under the reference.
        mask: (B, R) bool, True on sampled tokens.
        beta: reward units per nat; 0 when the penalty stands in the loss.
        estimator: of the per-token KL. Only k1 gives the gradient of score - beta KL: a k3 here
            adds that of the reversed KL.
    """
    penalty = -beta * estimate_kl(logprobs, ref_logprobs, estimator)
    score = zero_padding(scores[:, None].expand_as(penalty), last_token(mask))
    return zero_padding(penalty + score, mask)
