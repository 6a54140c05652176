"""Means, changes and win rates over prompts, each with an interval.

All intervals of one evaluation resample the same prompts, so that what is compared stays paired.
Whatever claims a direction (a win rate against 1/2, a change against 0) has an interval that agrees
with an exact test: a bootstrap of three prompts that differ excludes no difference far too often.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from rlhf_ppo.proportions import LEVEL, compare_pairs, share_interval, sign_test

Estimate = dict[str, float]  # mean, low, high: a 95 % interval; p where there is an exact test
# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom, and the normal's.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NORMAL = 1.95996
KEPT = 10_000_000  # numbers of resamples that are kept for the next question
FLIPS = 10_000  # random signs of a flip test
ENUMERATED = 13  # up to so many prompts that differ, all signs are tried


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


def estimate_share(values: Sequence[float], samples: int, seed: int) -> Estimate:
    """Mean of numbers between 0 and 1: Wilson's interval where all are 0 or 1, else a bootstrap.

    Args:
        values: one number a prompt, such as right or wrong, or the pass@k of that prompt.
        samples: resamples.
        seed: of the resampling.
    """
    if all(value in (0, 1) for value in values):
        low, high = share_interval(round(sum(values)), len(values))
        return {"mean": sum(values) / len(values), "low": low, "high": high}
    return bootstrap_mean(values, samples, seed)


def paired_change(
    after: Tensor, before: Tensor, samples: int, seed: int, *, share: bool = False
) -> Estimate:
    """Mean change of a number from before to after, with an interval that agrees with `p`.

    `p` is that of the exact test of no change, `flip_test`; the 95 % bootstrap interval is widened
    to 0 where it is 5 % or more.

    Args:
        after, before: (N,) paired by prompt.
        samples: resamples.
        seed: of the resampling.
        share: all numbers are 0 or 1, so that Tango's interval and McNemar's exact test apply.
    """
    if share:
        rate = win_rate(after, before, samples, seed)
        ends = {name: 2 * rate[name] - 1 for name in ("mean", "low", "high")}
        return ends | {"p": rate["p"]}
    difference = after.double() - before.double()
    p = float(flip_test(difference[:, None], seed)[0])
    return reaching(bootstrap_mean(difference.tolist(), samples, seed), 0.0, p)


def paired_changes(
    after: Mapping[str, Tensor], before: Mapping[str, Tensor], samples: int, seed: int
) -> dict[str, Estimate]:
    """The same of several parts; their `p` allow for their number, see `flip_test`."""
    if not after:
        return {}
    table = torch.stack([after[name].double() - before[name].double() for name in after], dim=1)
    adjusted = flip_test(table, seed).tolist()
    return {
        name: reaching(bootstrap_mean(column.tolist(), samples, seed), 0.0, p)
        for name, column, p in zip(after, table.unbind(dim=1), adjusted, strict=True)
    }


def reaching(found: Estimate, null: float, p: float) -> Estimate:
    """The interval, widened to `null` unless the exact test of it says p < 5 %; with that p."""
    if p >= LEVEL:
        found = found | {"low": min(found["low"], null), "high": max(found["high"], null)}
    return found | {"p": p}


def flip_test(differences: Tensor, seed: int) -> Tensor:
    """Two-sided p (K,) of no change in each of K paired differences, for all K together.

    Under no difference the answers to a prompt could as well have been exchanged, so both signs of
    its row were equally likely (Fisher's randomisation test, 1935). p is the share of all signs
    whose largest statistic |sum(d)| / sqrt(sum(d^2)) among the K reaches the observed one (max-T,
    Westfall and Young 1993): a false claim among all K in at most 5 % of all evaluations. Exact at
    any number of prompts that differ; where all differences have the same size and K is 1, it is
    the sign test. Up to 13 such prompts all signs are tried, else 10,000 drawn ones.

    Args:
        differences: (N, K), paired by prompt.
        seed: of the signs.
    """
    data = differences.double()
    differ = (data != 0).any(dim=1)
    if not bool(differ.any()):
        return torch.ones(data.shape[1], dtype=torch.float64)
    few = int(differ.sum()) <= ENUMERATED
    data = data[differ]
    size = data.square().sum(dim=0).sqrt().clamp(min=1e-300)
    observed = (data.sum(dim=0) / size).abs()
    if data.shape[1] == 1 and bool((data.abs() == data.abs()[0]).all()):
        won = int((data > 0).sum())
        return torch.tensor([sign_test(won, len(data) - won)], dtype=torch.float64)
    most = torch.cat(
        [(signs.double() @ data / size).abs().amax(dim=1) for signs in _signs(len(data), few, seed)]
    )
    reached = (most[:, None] >= observed - 1e-9).double().sum(dim=0)
    return reached / len(most) if few else (1 + reached) / (1 + len(most))


def win_rate(policy: Tensor, reference: Tensor, samples: int, seed: int) -> Estimate:
    """Share of prompts on which the policy's number is higher, ties counted half.

    Interval and test are those of `estimate_worth`; `ties` is the share of ties.

    Args:
        policy, reference: (N,) one score a prompt.
        samples: resamples.
        seed: of the resampling.
    """
    ties = (policy == reference).double()
    return estimate_worth(wins(policy, reference), samples, seed) | {"ties": float(ties.mean())}


def estimate_worth(worths: Tensor, samples: int, seed: int) -> Estimate:
    """Mean worth of comparisons, with a 95 % interval and `p` of the exact test against 1/2.

    Of wins, losses and ties alone the interval is the score interval of Tango 1998 and the test the
    sign test (`compare_pairs`); of other worths, such as a judge's mean over two orders, they are
    the bootstrap and `flip_test`. Either way the interval holds 1/2 unless p is below 5 %.

    Args:
        worths: (N,) from 0, lost, to 1, won.
        samples: resamples.
        seed: of the resampling.
    """
    won, lost, tied = (int((worths == value).sum()) for value in (1.0, 0.0, 0.5))
    if won + lost + tied == len(worths):
        return compare_pairs(won, lost, tied)
    p = float(flip_test((worths - 0.5)[:, None], seed)[0])
    return reaching(bootstrap_mean(worths.tolist(), samples, seed), 0.5, p)


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


def _signs(count: int, every: bool, seed: int) -> Iterator[Tensor]:
    """Rows of +1 and -1, (S, N): all 2^N, or drawn ones a piece at a time."""
    if every:
        numbers = torch.arange(2**count)
        yield 2 * ((numbers[:, None] >> torch.arange(count)) & 1) - 1
        return
    for start in range(0, FLIPS, 1000):
        yield _drawn_signs(count, seed + start)


@lru_cache(maxsize=10)
def _drawn_signs(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randint(2, (1000, count), generator=generator, dtype=torch.int8) - 1
