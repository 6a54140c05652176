"""The PPO loss: what a newcomer opens.

Everything is per token and unreduced. The caller weighs the tokens by `response_weights` and sums,
so that no sharding and no micro-batch changes the loss. Minimised, hence the minus signs.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from rlhf_ppo.algorithm.batch import TokenOutputs, TrainBatch
from rlhf_ppo.algorithm.kl import Estimator, estimate_kl, kl_loss, probability_ratio
from rlhf_ppo.algorithm.masked import zero_padding

Objective = Literal["policy_gradient", "surrogate", "kl_penalty", "clipped"]
Aggregation = Literal["token", "sequence", "fixed"]


def policy_gradient_loss(new_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-log pi_new(token) A, (B, R): its gradient is the policy gradient (Williams 1992).

    Right only for tokens that the present policy sampled: one optimizer step a rollout.
    """
    return -new_logprobs * advantages


def surrogate_loss(new_logprobs: Tensor, logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-ratio A, (B, R): conservative policy iteration (Schulman et al. 2017, equation 6)."""
    return -probability_ratio(new_logprobs, logprobs) * advantages


def kl_penalty_loss(
    new_logprobs: Tensor, logprobs: Tensor, advantages: Tensor, penalty: float
) -> Tensor:
    """-ratio A + penalty KL(old || new), (B, R) (Schulman et al. 2017, equation 8).

    The KL by k3, whose gradient (ratio - 1) grad log pi is unbiased and 0 at the old policy.

    Args:
        new_logprobs: (B, R) nats, with gradient.
        logprobs: (B, R) nats, at collection.
        advantages: (B, R).
        penalty: the paper's beta, advantage units per nat.
    """
    moved = estimate_kl(logprobs, new_logprobs, "k3")
    return surrogate_loss(new_logprobs, logprobs, advantages) + penalty * moved


def clipped_policy_loss(
    new_logprobs: Tensor,
    logprobs: Tensor,
    advantages: Tensor,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A), (B, R) (Schulman et al. 2017, equation 7).

    Args:
        new_logprobs: (B, R) nats, with gradient.
        logprobs: (B, R) nats, at collection.
        advantages: (B, R).
        clip_range: low, and high if that is not given.
        clip_range_high: larger than low leaves unlikely tokens room to grow (clip-higher: DAPO,
            Yu et al. 2025, section 3.1).
        dual_clip: where A < 0 the loss is at most dual_clip * -A, so that a token that became
            much likelier cannot blow up the step (Ye et al. 2020); above 1.
    """
    ratio = probability_ratio(new_logprobs, logprobs)
    high = clip_range if clip_range_high is None else clip_range_high
    clipped = ratio.clamp(1 - clip_range, 1 + high)
    loss = torch.maximum(-ratio * advantages, -clipped * advantages)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def value_loss(
    new_values: Tensor, values: Tensor, returns: Tensor, clip_range: float | None
) -> Tensor:
    """Half the squared error, or the larger of the plain and the clipped one, (B, R).

    The clip keeps new values within `clip_range` of the old ones; it comes from the original PPO
    code, not from the paper. None: no clipping.

    Args:
        new_values: (B, R) reward units, with gradient.
        values: (B, R) reward units, at collection.
        returns: (B, R) reward units, the targets.
        clip_range: reward units.
    """
    plain = 0.5 * (new_values - returns) ** 2
    if clip_range is None:
        return plain
    near = new_values.clamp(values - clip_range, values + clip_range)
    return torch.maximum(plain, 0.5 * (near - returns) ** 2)


def response_weights(mask: Tensor, aggregation: Aggregation, fixed_length: int) -> Tensor:
    """Weight of each token of a response in the loss of an optimizer step, (B,).

    The one place where a loss is divided. B rows are those of *all* processes and micro-batches.

    Args:
        mask: (B, R) bool.
        aggregation: "token": all tokens alike; "sequence": all responses alike, each token by
            1 / length; "fixed": 1 / fixed_length, so that neither the length of a response nor
            that of the others shrinks a token's weight (Dr. GRPO, Liu et al. 2025).
        fixed_length: tokens, for "fixed".
    """
    lengths = mask.sum(dim=1)
    match aggregation:
        case "token":
            return torch.ones_like(lengths) / lengths.sum().clamp(min=1)
        case "sequence":
            return 1 / lengths.clamp(min=1) / len(mask)
        case "fixed":
            return torch.ones_like(lengths) / (len(mask) * fixed_length)
        case _:
            assert_never(aggregation)


@dataclass(frozen=True)
class LossSettings:
    """Which objective, and the weights of its parts."""

    objective: Objective = "clipped"
    clip_range: float = 0.2  # clipped
    clip_range_high: float | None = None  # clipped
    dual_clip: float | None = None  # clipped
    penalty: float = 1.0  # kl_penalty: advantage units per nat
    value_coefficient: float = 0.1  # 0: no value function
    value_clip_range: float | None = 0.2  # reward units
    entropy_coefficient: float = 0.0  # advantage units per nat
    kl_coefficient: float = 0.0  # of the KL to the reference in the loss, advantage units per nat
    kl_estimator: Estimator = "k1"  # of that KL


@dataclass(frozen=True)
class LossTerms:
    """Per-token loss and what is worth watching; all (B, R), 0 in the padding (the ratio: 1)."""

    loss: Tensor  # what is differentiated
    policy: Tensor  # its policy part
    value: Tensor  # its value part, before the coefficient
    kl: Tensor  # KL to the reference, before the coefficient, nats
    ratio: Tensor  # pi_new / pi_old, detached
    policy_clipped: Tensor  # bool, a clip decided the policy loss
    value_clipped: Tensor  # bool, the clip decided the value loss


def policy_loss(
    new_logprobs: Tensor, logprobs: Tensor, advantages: Tensor, settings: LossSettings
) -> Tensor:
    """The objective that the settings name, per token, (B, R)."""
    match settings.objective:
        case "policy_gradient":
            return policy_gradient_loss(new_logprobs, advantages)
        case "surrogate":
            return surrogate_loss(new_logprobs, logprobs, advantages)
        case "kl_penalty":
            return kl_penalty_loss(new_logprobs, logprobs, advantages, settings.penalty)
        case "clipped":
            low, high, dual = settings.clip_range, settings.clip_range_high, settings.dual_clip
            return clipped_policy_loss(new_logprobs, logprobs, advantages, low, high, dual)
        case _:
            assert_never(settings.objective)


def ppo_loss(outputs: TokenOutputs, batch: TrainBatch, settings: LossSettings) -> LossTerms:
    """Policy objective, value loss, entropy bonus, KL (Schulman et al. 2017, equation 9), (B, R).

    Args:
        outputs: now, with gradient; the entropy needs one only if it has a coefficient.
        batch: at collection.
        settings: objective and weights.
    """
    mask = batch.tokens.response_mask

    def kept(x: Tensor) -> Tensor:  # before any arithmetic: a NaN in the padding has a gradient
        return zero_padding(x, mask)

    new_logprobs, new_values = kept(outputs.logprobs), kept(outputs.values)
    logprobs, advantages = kept(batch.logprobs), kept(batch.advantages)
    values, returns = kept(batch.values), kept(batch.returns)
    policy = policy_loss(new_logprobs, logprobs, advantages, settings)
    value = value_loss(new_values, values, returns, settings.value_clip_range)
    kl = kl_loss(new_logprobs, logprobs, kept(batch.ref_logprobs), settings.kl_estimator)
    loss = policy + settings.value_coefficient * value
    if settings.entropy_coefficient:
        loss = loss - settings.entropy_coefficient * kept(outputs.entropy)
    if settings.kl_coefficient:
        loss = loss + settings.kl_coefficient * kl
    with torch.no_grad():
        unclipped = surrogate_loss(new_logprobs, logprobs, advantages)
        clips = settings.objective == "clipped"
        return LossTerms(
            loss=loss,
            policy=kept(policy.detach()),
            value=value.detach(),
            kl=kl.detach(),
            ratio=probability_ratio(new_logprobs, logprobs),
            policy_clipped=(policy != unclipped) & mask & clips,
            value_clipped=value > 0.5 * (new_values - returns) ** 2,
        )
