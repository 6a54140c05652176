"""Reductions under a mask. Padding may hold anything, NaN included: it never gets through."""

import torch
from torch import Tensor


def zero_padding(x: Tensor, mask: Tensor) -> Tensor:
    """The entries of x (B, R), and 0 where mask (B, R) is False, whatever stood there."""
    return torch.where(mask, x, torch.zeros_like(x))


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of the entries of x (B, R) where mask (B, R) is True; a scalar in x's units."""
    return zero_padding(x, mask).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the entries of x (B, R) where mask (B, R) is True; 0 if there are none."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Biased variance of the entries of x (B, R) where mask (B, R) is True."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale x (B, R) to variance 1 and shift it to mean 0 under the mask; padding becomes 0.

    Biased variance, as in lm-human-preferences (`utils/core.py`, `whiten`). The 1e-8 keeps a
    constant x at its mean instead of dividing by zero; float64, because rounding of the mean,
    divided by almost nothing, would give equal rewards an opinion.

    Args:
        x: (B, R), any unit.
        mask: (B, R) bool, True where x counts.
        shift_mean: False: the mean stays where it was, so that signs keep their meaning.
    """
    wide = x.double()
    mean = masked_mean(wide, mask)
    scaled = (wide - mean) * torch.rsqrt(masked_variance(wide, mask) + 1e-8)
    return zero_padding(scaled if shift_mean else scaled + mean, mask).to(x.dtype)


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
