"""How much better was a token than expected.

All tensors (B, R), right-padded, `mask` True on sampled tokens. The value after the last token is
0 by definition: a response that was cut counts as ended, as in every RLHF system.
"""

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, equation 16).

    delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lambda A_{t+1}.

    Args:
        rewards: (B, R), reward units.
        values: (B, R), V of the state before each token, reward units.
        mask: (B, R) bool.
        gamma: discount, 0 to 1.
        lam: 0 is the one-step advantage, 1 is Monte Carlo minus V.

    Returns:
        advantages (B, R) and returns = advantages + values (B, R); 0 in the padding.
    """
    zero = torch.zeros_like(rewards)
    rewards = torch.where(mask, rewards, zero)
    values = torch.where(mask, values, zero)
    advantages = zero.clone()
    following = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(mask[:, t], delta + gamma * lam * following, following)
        advantages[:, t] = torch.where(mask[:, t], following, zero[:, t])
        next_value = values[:, t]
    return advantages, advantages + values
