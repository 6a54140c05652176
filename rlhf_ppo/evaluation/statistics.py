"""Means, win rates and diversity, each with an interval."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

Estimate = dict[str, float]  # mean, low, high: a 95 % interval
# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def bootstrap_mean(values: Sequence[float], samples: int, seed: int) -> Estimate:
    """Mean with a 95 % percentile bootstrap interval over prompts (Efron 1979).

    Args:
        values: one number a prompt.
        samples: resamples.
        seed: of the resampling.
    """
    data = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    means = torch.cat(
        [
            data[torch.randint(len(data), (chunk, len(data)), generator=generator)].mean(dim=1)
            for chunk in _chunks(samples)
        ]
    )
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"mean": float(data.mean()), "low": low, "high": high}


def win_rate(policy: Tensor, reference: Tensor, samples: int, seed: int) -> Estimate:
    """Share of prompts on which the policy's number is higher, ties counted half.

    The two are paired by prompt, and the bootstrap resamples pairs.

    Args:
        policy, reference: (N,) one score a prompt.
        samples: resamples.
        seed: of the resampling.
    """
    wins = (policy > reference).double() + 0.5 * (policy == reference).double()
    return bootstrap_mean(wins.tolist(), samples, seed)


def t_interval(values: Sequence[float]) -> Estimate:
    """Mean with a 95 % interval by Student's t, for a handful of seeds (two or more)."""
    data = torch.tensor(values, dtype=torch.float64)
    freedom = len(values) - 1
    z = 1.95996
    student = (
        STUDENT[freedom - 1]
        if freedom <= len(STUDENT)
        # Cornish and Fisher's expansion: within 0.004 from here on.
        else z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    )
    mean, half = float(data.mean()), student * float(data.std()) / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def distinct_n(texts: Sequence[str], n: int = 2) -> Estimate:
    """Different n-grams of words over all n-grams of the texts (Li et al. 2016).

    The interval is the jackknife's (mean +- 1.96 standard errors over texts): a bootstrap would
    repeat texts and so report too little diversity.
    """
    grams = [_grams(text, n) for text in texts]
    occurrences = Counter(gram for items in grams for gram in set(items))
    total, different = sum(len(items) for items in grams), len(occurrences)
    if total == 0:
        return {"mean": 0.0, "low": 0.0, "high": 0.0}
    ratio = different / total
    without = []
    for items in grams:
        only_here = sum(1 for gram in set(items) if occurrences[gram] == 1)
        rest = total - len(items)
        without.append((different - only_here) / rest if rest else ratio)
    mean = sum(without) / len(without)
    count = len(without)
    error = ((count - 1) / count * sum((value - mean) ** 2 for value in without)) ** 0.5
    low, high = max(0.0, ratio - 1.96 * error), min(1.0, ratio + 1.96 * error)
    return {"mean": ratio, "low": low, "high": high}


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _chunks(samples: int, size: int = 1000) -> list[int]:
    return [min(size, samples - start) for start in range(0, samples, size)]
