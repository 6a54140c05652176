"""How much better was a token than expected: from Monte Carlo to GAE, with and without V.

All tensors (B, R), right-padded, `mask` True on sampled tokens, unless a shape is given. The value
after the last token is 0 by definition: a response that was cut counts as ended, as in every RLHF
system. Every function gives 0 in the padding and reads nothing there.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from rlhf_ppo.algorithm.masked import whiten, zero_padding

Kind = Literal[
    "reward_to_go", "monte_carlo", "one_step", "n_step", "gae", "rloo", "grpo", "reinforce_pp"
]
GROUPED: tuple[Kind, ...] = ("rloo", "grpo")  # compare the responses to one prompt
WITHOUT_VALUES: tuple[Kind, ...] = ("reward_to_go", "rloo", "grpo", "reinforce_pp")


def discounted_sum(x: Tensor, mask: Tensor, factor: float | Tensor) -> Tensor:
    """S_t = x_t + factor S_{t+1}, the recursion behind every estimate below, (B, R).

    Args:
        x: (B, R), any unit.
        mask: (B, R) bool.
        factor: a number, or (B,) one a response.
    """
    x = zero_padding(x, mask)
    total = torch.zeros_like(x)
    following = torch.zeros_like(x[:, 0])
    for t in reversed(range(x.shape[1])):
        following = x[:, t] + factor * following
        total[:, t] = following
    return zero_padding(total, mask)


def td_errors(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """delta_t = r_t + gamma V_{t+1} - V_t, (B, R) reward units (Sutton and Barto 2018, eq. 6.5)."""
    values = zero_padding(values, mask)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    return zero_padding(rewards + gamma * next_values - values, mask)


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """G_t = sum over k >= 0 of gamma^k r_{t+k}, (B, R) reward units.

    What REINFORCE weighs a token by (Williams 1992; Sutton and Barto 2018, equation 3.8).
    """
    return discounted_sum(rewards, mask, gamma)


def monte_carlo(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """Reward-to-go against a baseline: A_t = G_t - V_t, no bias whatever V is.

    REINFORCE with baseline (Sutton and Barto 2018, section 13.4).

    Returns:
        advantages and returns = G, both (B, R) reward units.
    """
    returns = reward_to_go(rewards, mask, gamma)
    return zero_padding(returns - values, mask), returns


def one_step(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """A_t = delta_t, the actor-critic's advantage (Sutton and Barto 2018, section 13.5).

    Returns:
        advantages and returns = r_t + gamma V_{t+1}, both (B, R) reward units.
    """
    advantages = td_errors(rewards, values, mask, gamma)
    return advantages, zero_padding(advantages + values, mask)


def n_step(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, n: int
) -> tuple[Tensor, Tensor]:
    """From n rewards, then V: A_t = r_t + ... + gamma^(n-1) r_{t+n-1} + gamma^n V_{t+n} - V_t.

    Computed as the sum over k < n of gamma^k delta_{t+k} (Schulman et al. 2016, equation 14).

    Args:
        rewards, values: (B, R) reward units.
        mask: (B, R) bool.
        gamma: discount, 0 to 1.
        n: at least 1; beyond the response's length this is `monte_carlo`.

    Returns:
        advantages and returns = advantages + values, both (B, R) reward units.
    """
    delta = td_errors(rewards, values, mask, gamma)
    advantages = torch.zeros_like(delta)
    width = delta.shape[1]
    for k in range(min(n, width)):
        advantages[:, : width - k] += gamma**k * delta[:, k:]
    advantages = zero_padding(advantages, mask)
    return advantages, zero_padding(advantages + values, mask)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, equation 16).

    A_t = sum over k >= 0 of (gamma lambda)^k delta_{t+k}.

    Args:
        rewards, values: (B, R) reward units; V is that of the state before the token.
        mask: (B, R) bool.
        gamma: discount, 0 to 1.
        lam: 0 is the one-step advantage, 1 is Monte Carlo minus V; a number, or (B,) one a
            response.

    Returns:
        advantages and returns = advantages + values, both (B, R) reward units.
    """
    delta = td_errors(rewards, values, mask, gamma)
    advantages = discounted_sum(delta, mask, gamma * lam)
    return advantages, zero_padding(advantages + values, mask)


def decoupled_gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float | Tensor,
    value_lam: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """GAE with one lambda for the advantages, another for the returns (VC-PPO, Yuan et al. 2025).

    value_lam = 1 gives V unbiased targets, however much variance the policy is to be spared.
    Arguments as in `gae`.

    Returns:
        advantages by lam, and returns = advantages by value_lam + values, both (B, R) reward units.
    """
    advantages, _ = gae(rewards, values, mask, gamma, lam)
    _, returns = gae(rewards, values, mask, gamma, value_lam)
    return advantages, returns


def length_adaptive_lambda(mask: Tensor, alpha: float) -> Tensor:
    """Lambda of a response of l tokens: 1 - 1 / (alpha l), at least 0; (B,) float32.

    The weights (1 - lambda) lambda^(n-1) of the n-step advantages then have a mean n of alpha l:
    long responses look further ahead (VAPO, Yue et al. 2025).
    """
    lengths = mask.sum(dim=1).clamp(min=1).float()
    return (1 - 1 / (alpha * lengths)).clamp(min=0)


def rloo(scores: Tensor, group_size: int) -> Tensor:
    """Score minus the mean of the group's others: leave-one-out, no bias.

    Kool et al. 2019; for language models Ahmadian et al. 2024 (RLOO).

    Args:
        scores: (B,) reward units; each `group_size` neighbours answer one prompt.
        group_size: at least 2.

    Returns:
        One advantage a response, (B,) reward units.

    Raises:
        ValueError: B is not made of such groups.
    """
    groups = _groups(scores, group_size)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).flatten()


def grpo(scores: Tensor, group_size: int, scale: bool = True) -> Tensor:
    """Score minus the group's mean, over its standard deviation (Shao et al. 2024, section 4.1.2).

    Args:
        scores: (B,) reward units; each `group_size` neighbours answer one prompt.
        group_size: at least 2.
        scale: False: no division, which otherwise favours prompts whose responses are nearly
            alike (Dr. GRPO, Liu et al. 2025).

    Returns:
        One advantage a response, (B,); a group of equal scores has 0. Unbiased deviation, as in
        TRL, verl and OpenRLHF.

    Raises:
        ValueError: B is not made of such groups.
    """
    groups = _groups(scores, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    # The mean of equal numbers is off by rounding; over almost nothing that would be an opinion.
    equal = (groups == groups[:, :1]).all(dim=1, keepdim=True)
    centred = torch.where(equal, torch.zeros_like(centred), centred)
    if scale:
        centred = centred / (groups.std(dim=1, keepdim=True) + 1e-6)
    return centred.flatten()


def reinforce_plus_plus(rewards: Tensor, mask: Tensor, gamma: float, group_size: int = 1) -> Tensor:
    """Reward-to-go, whitened over all tokens of the step (REINFORCE++, Hu et al. 2025), (B, R).

    Args:
        rewards: (B, R) reward units.
        mask: (B, R) bool.
        gamma: discount, 0 to 1.
        group_size: with several responses a prompt the mean total of a group is the baseline
            (the paper's REINFORCE++ w/ baseline).

    Raises:
        ValueError: B is not made of such groups.
    """
    returns = reward_to_go(rewards, mask, gamma)
    if group_size > 1:
        totals = _groups(zero_padding(rewards, mask).sum(dim=1), group_size)
        means = totals.mean(dim=1, keepdim=True).expand_as(totals)
        returns = returns - means.reshape(-1, 1)
    return whiten(returns, mask)


@dataclass(frozen=True)
class AdvantageSettings:
    """Which estimate, and its numbers; those that a kind does not name it does not read."""

    kind: Kind = "gae"
    gamma: float = 1.0  # all but the grouped ones, which have one reward a response
    n: int = 1  # n_step
    lam: float = 0.95  # gae
    value_lam: float | None = None  # gae: lambda of the returns; None: that of the advantages
    length_alpha: float | None = None  # gae: replaces lam by `length_adaptive_lambda`
    group_size: int = 1  # responses a prompt, neighbours in the batch
    scale_groups: bool = True  # grpo


def estimate_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, settings: AdvantageSettings
) -> tuple[Tensor, Tensor]:
    """Advantages and returns by the kind that the settings name, both (B, R).

    Kinds without values return the reward-to-go for the returns, which nothing learns.
    """
    s = settings
    returns = reward_to_go(rewards, mask, s.gamma)
    totals = zero_padding(rewards, mask).sum(dim=1)
    match s.kind:
        case "reward_to_go":
            return returns, returns
        case "monte_carlo":
            return monte_carlo(rewards, values, mask, s.gamma)
        case "one_step":
            return one_step(rewards, values, mask, s.gamma)
        case "n_step":
            return n_step(rewards, values, mask, s.gamma, s.n)
        case "gae":
            lam = s.lam if s.length_alpha is None else length_adaptive_lambda(mask, s.length_alpha)
            value_lam = lam if s.value_lam is None else s.value_lam
            return decoupled_gae(rewards, values, mask, s.gamma, lam, value_lam)
        case "rloo":
            return _on_each_token(rloo(totals, s.group_size), mask), returns
        case "grpo":
            return _on_each_token(grpo(totals, s.group_size, s.scale_groups), mask), returns
        case "reinforce_pp":
            return reinforce_plus_plus(rewards, mask, s.gamma, s.group_size), returns
        case _:
            assert_never(s.kind)


def _on_each_token(advantages: Tensor, mask: Tensor) -> Tensor:
    return zero_padding(advantages[:, None].expand(mask.shape), mask)


def _groups(scores: Tensor, group_size: int) -> Tensor:
    if group_size < 2 or len(scores) % group_size:
        raise ValueError(
            f"{len(scores)} scores do not split into groups of {group_size}; a group needs two or "
            "more responses to one prompt"
        )
    return scores.view(-1, group_size)
