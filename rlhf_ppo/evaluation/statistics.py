"""Means and win rates over prompts, each with an interval.

All intervals of one evaluation resample the same prompts, so that what is compared stays paired.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

Estimate = dict[str, float]  # mean, low, high: a 95 % interval
# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom, and the normal's.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NORMAL = 1.95996
KEPT = 10_000_000  # numbers of resamples that are kept for the next question


def bootstrap_mean(values: Sequence[float], samples: int, seed: int) -> Estimate:
    """Mean with a 95 % bootstrap interval over prompts, see `interval`.

    Args:
        values: one number a prompt.
        samples: resamples.
        seed: of the resampling.
    """
    data = torch.tensor(values, dtype=torch.float64)
    mean = data.mean()
    means = resampled_means((data - mean)[:, None], samples, seed)[:, 0] + mean
    means = means.clamp(data.min(), data.max())  # rounding must not leave the range of the data
    return interval(float(mean), means, data - mean)


def win_rate(policy: Tensor, reference: Tensor, samples: int, seed: int) -> Estimate:
    """Share of prompts on which the policy's number is higher, ties counted half.

    The two are paired by prompt, and the bootstrap resamples pairs. `ties` is the share of ties.

    Args:
        policy, reference: (N,) one score a prompt.
        samples: resamples.
        seed: of the resampling.
    """
    ties = (policy == reference).double()
    return bootstrap_mean(wins(policy, reference).tolist(), samples, seed) | {
        "ties": float(ties.mean())
    }


def wins(policy: Tensor, reference: Tensor) -> Tensor:
    """1 where the policy's number is higher, 1/2 where the two are equal, 0 elsewhere: (N,)."""
    return (policy > reference).double() + 0.5 * (policy == reference).double()


def resamples(count: int, samples: int, seed: int) -> Iterator[Tensor]:
    """How often each of N prompts stands in each resample (Efron 1979).

    Args:
        count: N.
        samples: resamples.
        seed: of the resampling.

    Yields:
        (S, N) float64, row sums N; all S together are `samples`.
    """
    if count * samples <= KEPT:
        yield _kept(count, samples, seed)
    else:
        yield from _draw(count, samples, seed)


def resampled_means(data: Tensor, samples: int, seed: int) -> Tensor:
    """Means (samples, K) of the resampled rows of `data` (N, K)."""
    parts = [counts @ data.double() for counts in resamples(len(data), samples, seed)]
    return torch.cat(parts) / len(data)


def interval(value: float, replicates: Tensor, influence: Tensor) -> Estimate:
    """95 % interval from resampled estimates: BCa (Efron 1987) at expanded levels.

    BCa corrects the percentiles for bias and skewness, without which win rates near 0 or 1 are
    covered too rarely; the levels are those at which the interval of a normal mean would be
    Student's (Hesterberg 2015, section 5.3: percentiles alone are too narrow in small samples).

    Args:
        value: the estimate itself.
        replicates: (S,) what the resamples give.
        influence: (N,) by how much the estimate leans on each prompt, in any unit.
    """
    count = len(influence)
    if count < 2 or not bool((replicates != replicates[0]).any()):
        return {"mean": value, "low": value, "high": value}
    z = student_quantile(count - 1) * (count / (count - 1)) ** 0.5
    below = (replicates < value).double() + 0.5 * (replicates == value).double()
    edge = 0.5 / len(replicates)
    bias = torch.special.ndtri(below.mean().clamp(edge, 1 - edge))
    squares = influence.square().sum()
    skew = influence.pow(3).sum() / (6 * squares.pow(1.5)) if squares > 0 else squares
    shifted = bias + torch.tensor([-z, z], dtype=torch.float64)
    levels = torch.special.ndtr(bias + shifted / (1 - skew * shifted).clamp(min=1e-9))
    low, high = replicates.double().quantile(levels).tolist()
    return {"mean": value, "low": min(low, value), "high": max(high, value)}  # but for rounding


def student_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    # Cornish and Fisher's expansion: within 0.004 from here on.
    z = NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def t_interval(values: Sequence[float]) -> Estimate:
    """Mean with a 95 % interval by Student's t, for a handful of seeds (two or more)."""
    data = torch.tensor(values, dtype=torch.float64)
    half = student_quantile(len(values) - 1) * float(data.std()) / len(values) ** 0.5
    mean = float(data.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half}


@lru_cache(maxsize=4)
def _kept(count: int, samples: int, seed: int) -> Tensor:
    return torch.cat(list(_draw(count, samples, seed)))


def _draw(count: int, samples: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, samples, 1000):
        chunk = min(1000, samples - start)
        drawn = torch.randint(count, (chunk, count), generator=generator)
        counts = torch.zeros(chunk, count, dtype=torch.float64)
        yield counts.scatter_add_(1, drawn, torch.ones(chunk, count, dtype=torch.float64))
