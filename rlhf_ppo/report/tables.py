"""The tables of the report: before and after, win rates, what was exploited, time, settings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ppo.report.folder import Estimate, Json, RunFolder, estimate, lookup, number
from rlhf_ppo.report.numbers import DASH, duration, interval, shown, signed

NUMBERS = {
    "gold": ("gold score", "gold units"),
    "score": ("score", "reward units"),
    "kl": ("KL to the reference", "nats a response"),
    "length": ("response length", "tokens"),
    "stopped": ("ended by themselves", "fraction"),
    "distinct_1": ("different words", "of all words"),
    "distinct_2": ("different word pairs", "of all word pairs"),
    "repetition": ("repeated 4-grams", "of a response's 4-grams"),
}
PARTS = {"reward_parts": "reward source", "gold_parts": "gold part"}


@dataclass(frozen=True)
class Cell:
    """An estimate in a table, compared with the one before."""

    mean: str
    ends: str = ""
    """Of the 95 % interval."""
    change: str = ""
    apart: bool = False
    """The two 95 % intervals do not overlap."""


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    name: str
    unit: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Rate:
    """A win rate over the reference."""

    who: str
    by: str
    found: Estimate
    ties: float
    controlled: bool = False
    """What longer answers alone would win is taken away."""

    @property
    def text(self) -> str:
        """Mean and interval."""
        return interval(self.found)

    @property
    def tied(self) -> str:
        """Share of ties, or a dash."""
        return shown(self.ties)


def side_rows(sides: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Each number of the sides, one column a side; the others are held against the first."""
    rows = []
    for key, (name, unit) in NUMBERS.items():
        found = [estimate(side.get(key)) for side in sides]
        if any(found):
            rows.append(Row(name, unit, _cells(found)))
    return rows


def part_table(sides: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The same of the parts of score and gold score."""
    rows = []
    for group, words in PARTS.items():
        names: dict[str, None] = {}
        for side in sides:
            names |= dict.fromkeys(side.get(group) or {})
        for name in names:
            found = [estimate(lookup(side, group, name)) for side in sides]
            rows.append(Row(name.replace("_", " "), words, _cells(found)))
    return rows


def win_rates(summary: Json) -> list[Rate]:
    """All win rates over the reference: sampled and greedy, of the policy and of other models."""
    rates = _rates("policy", summary)
    rates += _rates("policy, greedy", lookup(summary, "greedy") or {})
    for name, model in (lookup(summary, "models") or {}).items():
        rates += _rates(name, lookup(model, "sampled") or {})
        rates += _rates(f"{name}, greedy", lookup(model, "greedy") or {})
    judged = estimate(lookup(summary, "judge", "win_rate"))
    if judged is not None:
        ties = number(lookup(summary, "judge", "win_rate", "ties"))
        rates.append(Rate("policy", "judge model", judged, ties))
    return rates


def exploited_rows(summary: Json) -> list[tuple[str, str, str, str]]:
    """Part, before, after and change of what got worse while the score rose."""
    rows = []
    for item in summary.get("exploited") or ():
        change = estimate(lookup(item, "change"))
        sides = [lookup(item, side) for side in ("reference", "policy")]
        before, after = (estimate(side) or number(side) for side in sides)
        rows.append(
            (
                str(lookup(item, "part")),
                interval(before) if isinstance(before, Estimate) else shown(before),
                interval(after) if isinstance(after, Estimate) else shown(after),
                interval(change) if change else DASH,
            )
        )
    return rows


def judge_notes(summary: Json) -> list[str]:
    """How far the judge model can be trusted."""
    judge = summary.get("judge")
    if not isinstance(judge, Mapping):
        return []
    notes = [f"{judge.get('model')} judged {judge.get('prompts')} prompts in both orders."]
    first = estimate(judge.get("first_shown"))
    if first is not None:
        notes.append(f"It preferred the answer shown first in {interval(first)} of its verdicts.")
    if math.isfinite(number(judge.get("inconsistent"))):
        share = shown(number(judge["inconsistent"]))
        notes.append(f"Its two verdicts were opposite on {share} of the prompts.")
    if judge.get("failed"):
        notes.append(f"{judge['failed']} of its answers could not be read.")
    return notes


def time_rows(run: RunFolder) -> list[tuple[str, str, float]]:
    """What took how long: stages, then the phases of PPO's steps; with the share of its whole."""
    stages = {
        name: number(seconds) for name, seconds in (lookup(run.machine, "seconds") or {}).items()
    }
    phases: dict[str, float] = {}
    for name in ("rollout", "judge", "update"):
        values = [number(row.get(f"time/{name}")) for row in run.metrics]
        found = [value for value in values if math.isfinite(value)]
        if found:
            phases[f"PPO: {name}"] = sum(found)
    rows = []
    for group in (stages, phases):
        whole = sum(value for value in group.values() if math.isfinite(value))
        for name, seconds in group.items():
            rows.append(
                (name.replace("_", " "), duration(seconds), seconds / whole if whole else 0)
            )
    return rows


def machine_rows(machine: Json | None) -> list[tuple[str, str]]:
    """Versions and hardware, one line each."""
    if machine is None:
        return []
    rows = []
    for name, value in machine.items():
        if name == "seconds":
            continue
        if isinstance(value, Mapping):
            words = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, list):
            words = ", ".join(str(item) for item in value)
        else:
            words = "not known" if value is None else str(value)
        rows.append((name, words))
    return rows


def probe_rows(probes: Json | None) -> list[tuple[str, float, str, str]]:
    """Kind of error, accuracy, pairs and margin of the reward model's probes, worst first."""
    found = [
        (name, number(lookup(probe, "accuracy")), lookup(probe, "pairs"), lookup(probe, "margin"))
        for name, probe in (probes or {}).items()
    ]
    return [
        (name.replace("_", " "), accuracy, str(pairs), shown(number(margin)))
        for name, accuracy, pairs, margin in sorted(found, key=lambda row: row[1])
    ]


def _rates(who: str, holder: Mapping[str, Any]) -> list[Rate]:
    rates = []
    for by, name in (("gold", "gold score"), ("score", "score")):
        plain = estimate(lookup(holder, "win_rate", by))
        if plain is not None:
            rates.append(Rate(who, name, plain, number(lookup(holder, "win_rate", by, "ties"))))
        controlled = estimate(lookup(holder, "length_controlled", by))
        if controlled is not None:
            rates.append(Rate(who, name, controlled, math.nan, controlled=True))
    return rates


def _cells(found: Sequence[Estimate | None]) -> list[Cell]:
    first = found[0]
    cells = []
    for place, item in enumerate(found):
        mean, _, ends = (interval(item) if item else DASH).partition(" ")
        if place == 0 or item is None or first is None:
            cells.append(Cell(mean, ends))
        else:
            apart = item.low > first.high or item.high < first.low
            cells.append(Cell(mean, ends, signed(item.mean - first.mean), apart))
    return cells
