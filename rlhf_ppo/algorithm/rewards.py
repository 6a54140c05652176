"""From one score a response to one reward a token."""

import torch
from torch import Tensor

from rlhf_ppo.algorithm.kl import Estimator, estimate_kl
from rlhf_ppo.algorithm.masked import last_token


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
        scores: (B,), reward units.
        logprobs: (B, R), nats, under the policy that sampled.
        ref_logprobs: (B, R), nats, under the reference.
        mask: (B, R) bool, True on sampled tokens.
        beta: reward units per nat.
        estimator: of the per-token KL.
    """
    penalty = -beta * estimate_kl(logprobs, ref_logprobs, estimator)
    score = torch.where(last_token(mask), scores[:, None], torch.zeros_like(penalty))
    return torch.where(mask, penalty + score, torch.zeros_like(penalty))


def settle_unstopped(
    scores: Tensor, stopped: Tensor, penalty: float, fixed_score: float | None
) -> Tensor:
    """Scores (B,) after the rule for responses that did not end by themselves.

    Args:
        scores: (B,), reward units.
        stopped: (B,) bool.
        penalty: subtracted where not stopped.
        fixed_score: if given, the score where not stopped (Huang et al. 2024, detail 23: the
            "EOS trick").
    """
    unstopped = scores - penalty
    if fixed_score is not None:
        unstopped = torch.full_like(scores, fixed_score)
    return torch.where(stopped, scores, unstopped)
