"""Run against run on the same held-out prompts: paired win rates with exact tests."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ppo.proportions import LEVEL, compare_pairs

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunAnswers:
    """What a run's policy answered to the held-out prompts, and what its numbers mean."""

    name: str
    samples: Sequence[Row]  # of `samples.jsonl`
    units: Mapping[str, str | None]  # by measure: equal where numbers can be compared; None: none


@dataclass(frozen=True)
class Paired:
    """One run against another, by one measure."""

    first: str
    second: str
    by: str
    prompts: int
    wins: int
    """Prompts on which the first has the higher number."""
    losses: int
    rate: float
    """Win rate of the first, ties counted half."""
    low: float
    high: float
    p: float
    """Of the exact sign test, for all pairs of runs by this measure together (Holm 1979)."""

    @property
    def verdict(self) -> str:
        """Which is better, or that the two cannot be told apart."""
        if self.p >= LEVEL:
            return "cannot be told apart"
        return f"{self.first if self.rate > 0.5 else self.second} is better"


def compare_answers(runs: Sequence[RunAnswers]) -> list[Paired]:
    """Every two runs by every measure that both have in the same unit, best measure first."""
    found: list[Paired] = []
    for by in ("solved", "gold", "score"):
        pairs = []
        for one, other in itertools.combinations(runs, 2):
            unit = one.units.get(by)
            counts = _counts(one, other, by) if unit and unit == other.units.get(by) else None
            if counts is not None:
                pairs.append((one, other, counts, compare_pairs(*counts)))
        adjusted = holm([compared["p"] for *_, compared in pairs])
        for (one, other, (won, lost, tied), compared), p in zip(pairs, adjusted, strict=True):
            low, high = compared["low"], compared["high"]
            if p >= LEVEL:
                low, high = min(low, 0.5), max(high, 0.5)
            total = won + lost + tied
            found.append(
                Paired(one.name, other.name, by, total, won, lost, compared["mean"], low, high, p)
            )
    return found


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p: at most 5 % of all families of tests hold a false claim (Holm 1979)."""
    adjusted, most = [1.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        most = max(most, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = most
    return adjusted


def common_rows(runs: Sequence[Sequence[Row]]) -> list[tuple[Row, ...]]:
    """Rows of the prompts that all runs have, in the first one's order.

    A prompt that stands in the data twice is matched by its turn.
    """
    tables = []
    for samples in runs:
        seen: Counter[str] = Counter()
        table = {}
        for row in samples:
            key = json.dumps(row.get("prompt"), sort_keys=True)
            seen[key] += 1
            table[key, seen[key]] = row
        tables.append(table)
    return [
        tuple(table[key] for table in tables)
        for key in tables[0]
        if all(key in table for table in tables)
    ]


def measured(side: Any, by: str) -> float:
    """A number of an answer in `samples.jsonl`; NaN where it has none."""
    value = side.get(by) if isinstance(side, Mapping) else None
    if by == "gold" and isinstance(value, Mapping):
        value = value.get("score")
    return float(value) if isinstance(value, int | float) else math.nan


def _counts(one: RunAnswers, other: RunAnswers, by: str) -> tuple[int, int, int] | None:
    """Wins, losses and ties of the first; None without a prompt in common."""
    values = [
        (measured(a.get("policy"), by), measured(b.get("policy"), by))
        for a, b in common_rows([one.samples, other.samples])
    ]
    known = [(a, b) for a, b in values if math.isfinite(a) and math.isfinite(b)]
    won, lost = sum(a > b for a, b in known), sum(a < b for a, b in known)
    return (won, lost, len(known) - won - lost) if known else None
