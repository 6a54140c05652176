"""The PPO loss: what a newcomer opens.

Everything is per token and unreduced. The caller sums under the mask and divides by one token
count over all processes, so that no sharding and no micro-batch changes the loss.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ppo.algorithm.kl import MAX_LOG_RATIO


@dataclass(frozen=True)
class LossTerms:
    """Per-token loss and what is worth watching; all (B, R)."""

    loss: Tensor  # what is differentiated
    policy: Tensor  # its clipped surrogate part
    value: Tensor  # its value part, before the coefficient
    ratio: Tensor  # pi_new / pi_old, detached
    policy_clipped: Tensor  # bool, the clip decided the policy loss
    value_clipped: Tensor  # bool, the clip decided the value loss


def probability_ratio(new_logprobs: Tensor, logprobs: Tensor) -> Tensor:
    """pi_new(token) / pi_old(token), (B, R)."""
    return (new_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def clipped_policy_loss(
    new_logprobs: Tensor, logprobs: Tensor, advantages: Tensor, clip_range: float
) -> Tensor:
    """-min(ratio A, clip(ratio, 1 - eps, 1 + eps) A), (B, R) (Schulman et al. 2017, equation 7).

    Args:
        new_logprobs: (B, R), nats, with gradient.
        logprobs: (B, R), nats, at collection.
        advantages: (B, R).
        clip_range: eps.
    """
    ratio = probability_ratio(new_logprobs, logprobs)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-ratio * advantages, -clipped * advantages)


def value_loss(
    new_values: Tensor, values: Tensor, returns: Tensor, clip_range: float | None
) -> Tensor:
    """Half the squared error, or the larger of the plain and the clipped one, (B, R).

    The clip keeps new values within `clip_range` of the old ones (reward units); it comes from
    the original PPO code, not from the paper. None: no clipping.

    Args:
        new_values: (B, R), with gradient.
        values: (B, R), at collection.
        returns: (B, R), the targets.
        clip_range: reward units.
    """
    plain = 0.5 * (new_values - returns) ** 2
    if clip_range is None:
        return plain
    near = values + (new_values - values).clamp(-clip_range, clip_range)
    return torch.maximum(plain, 0.5 * (near - returns) ** 2)


def ppo_loss(
    new_logprobs: Tensor,
    new_values: Tensor,
    logprobs: Tensor,
    values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    *,
    clip_range: float,
    value_clip_range: float | None,
    value_coefficient: float,
) -> LossTerms:
    """Clipped surrogate plus weighted value loss (Schulman et al. 2017, equation 9), all (B, R).

    Args:
        new_logprobs, new_values: now, with gradient.
        logprobs, values: at collection.
        advantages, returns: from GAE.
        clip_range: of the ratio.
        value_clip_range: of the values, reward units; None: no clipping.
        value_coefficient: weight of the value loss.
    """
    policy = clipped_policy_loss(new_logprobs, logprobs, advantages, clip_range)
    value = value_loss(new_values, values, returns, value_clip_range)
    with torch.no_grad():
        ratio = probability_ratio(new_logprobs, logprobs)
        outside = (ratio - 1).abs() > clip_range
        towards = (ratio > 1) == (advantages > 0)
        value_clipped = value > 0.5 * (new_values - returns) ** 2
    return LossTerms(
        loss=policy + value_coefficient * value,
        policy=policy,
        value=value,
        ratio=ratio,
        policy_clipped=outside & towards & (advantages != 0),
        value_clipped=value_clipped,
    )
