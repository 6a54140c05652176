"""From what each source says to one score a response: pure functions of a (B, S) table.

In this order: normalise each member, combine the ensemble, normalise the source, weigh, add up. A
missing score (NaN) makes the sum of its row missing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ppo.algorithm.rewards import Moments, normalize_scores
from rlhf_ppo.config import EnsembleSource, Leaf, RewardConfig, leaves


@dataclass(frozen=True)
class Weighed:
    """The weighted sum, what it is made of, and the moments to go on with."""

    scores: Tensor  # (B,) reward units
    parts: dict[str, Tensor]  # (B,) of each source as it said them; members as ENSEMBLE/MEMBER
    moments: dict[str, Moments]  # of the sources with a normalization


def weigh(
    reward: RewardConfig, table: Tensor, moments: dict[str, Moments], *, learn: bool
) -> Weighed:
    """Normalise, combine, weigh and add up the sources' scores.

    Args:
        reward: settings.
        table: (B, S) reward units, a column a source in the order of `config.leaves`.
        moments: of the scores before these.
        learn: add these scores to the moments first, as training does; evaluation only reads.
    """
    names = [name for name, _ in leaves(reward.sources)]
    parts = dict(zip(names, table.unbind(dim=1), strict=True))
    after = dict(moments)

    def normalized(source: Leaf | EnsembleSource, name: str) -> Tensor:
        scores = parts[name]
        if source.normalization == "none":
            return scores
        so_far = after.get(name, Moments())
        after[name] = so_far.add(scores) if learn else so_far
        return normalize_scores(scores, after[name], source.normalization)

    total = torch.zeros(len(table))
    for source in reward.sources:
        if isinstance(source, EnsembleSource):
            members = [normalized(m, f"{source.name}/{m.name}") for m in source.members]
            parts[source.name] = combine(torch.stack(members, dim=1), source)
        total = total + source.weight * normalized(source, source.name)
    return Weighed(total, parts, after)


def normalized_sources(reward: RewardConfig) -> list[str]:
    """Names of the sources whose moments a run keeps."""
    sources = [(source.name, source) for source in reward.sources] + leaves(reward.sources)
    return [name for name, source in dict(sources).items() if source.normalization != "none"]


def combine(scores: Tensor, ensemble: EnsembleSource) -> Tensor:
    """One score of the M members' (B, M), reward units: (B,).

    The minimum, and the mean less k deviations (of the population), pay only for what the members
    agree on (Coste et al. 2024): the weak spots of one model are not those of the others.
    """
    match ensemble.combine:
        case "mean":
            return scores.mean(dim=1)
        case "minimum":
            return scores.min(dim=1).values
        case "lower":
            spread = scores.std(dim=1, unbiased=False)
            return scores.mean(dim=1) - (ensemble.k or 0.0) * spread
