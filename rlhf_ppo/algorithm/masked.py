"""Reductions under a mask. Padding may hold anything, NaN included: it never gets through."""

import torch
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of the entries of x (B, R) where mask (B, R) is True; a scalar in x's units."""
    return torch.where(mask, x, torch.zeros_like(x)).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the entries of x (B, R) where mask (B, R) is True; 0 if there are none."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Biased variance of the entries of x (B, R) where mask (B, R) is True."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale x (B, R) to mean 0 and variance 1 under the mask; padding becomes 0.

    Biased variance, as in lm-human-preferences (`utils/core.py`, `whiten`). The 1e-8 keeps a
    constant x at 0 instead of dividing by zero.
    """
    centred = x - masked_mean(x, mask)
    scaled = centred * torch.rsqrt(masked_variance(x, mask) + 1e-8)
    return torch.where(mask, scaled, torch.zeros_like(x))


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var[returns - values] / Var[returns]: 1 is a perfect value function, 0 a constant one.

    All (B, R). 0 when the returns do not vary.
    """
    variance = masked_variance(returns, mask)
    residual = masked_variance(returns - values, mask)
    return torch.where(variance > 0, 1 - residual / variance.clamp(min=1e-12), variance * 0)


def last_token(mask: Tensor) -> Tensor:
    """True on the last True of each row of mask (B, R); rows without a True have none."""
    reversed_count = mask.flip(1).cumsum(dim=1).flip(1)
    return mask & (reversed_count == 1)
