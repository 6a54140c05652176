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
STAGES = {
    "sft": "supervised model",
    "reward_model": "reward model",
    "ppo": "PPO",
    "evaluation": "evaluation",
}
PHASES = {"rollout": "sampling", "judge": "scores and log-probabilities", "update": "updates"}
MACHINE = {"precision": "mixed precision", "starts": "started at", "rlhf_ppo": "this package"}
PARTS = {"reward_parts": "reward source", "gold_parts": "gold part"}


@dataclass(frozen=True)
class Cell:
    """An estimate in a table, compared with the one before."""

    mean: str
    ends: str = ""
    """Of the 95 % interval."""
    change: str = ""
    apart: bool = False
    """The 95 % interval of the paired change excludes 0."""


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


@dataclass(frozen=True)
class Spent:
    """Time of a stage, or of a part inside the stage above it."""

    name: str
    text: str
    share: float
    """Of the time of all stages."""
    inside: bool = False


def side_rows(sides: Sequence[Mapping[str, Any]], changes: Sequence[Any]) -> list[Row]:
    """Each number of the sides, one column a side; the others are held against the first.

    Args:
        sides: their numbers; the first is the reference.
        changes: of each side, its paired changes from the first; None where they are not known.
    """
    rows = []
    for key, (name, unit) in NUMBERS.items():
        found = [estimate(side.get(key)) for side in sides]
        if any(found):
            moved = [lookup(change, key) for change in changes]
            rows.append(Row(name, unit, _cells(found, moved)))
    return rows


def part_table(sides: Sequence[Mapping[str, Any]], changes: Sequence[Any]) -> list[Row]:
    """The same of the parts of score and gold score."""
    rows = []
    for group, words in PARTS.items():
        names: dict[str, None] = {}
        for side in sides:
            names |= dict.fromkeys(side.get(group) or {})
        for name in names:
            found = [estimate(lookup(side, group, name)) for side in sides]
            moved = [lookup(change, group, name) for change in changes]
            rows.append(Row(name.replace("_", " "), words, _cells(found, moved)))
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


def time_rows(run: RunFolder) -> list[Spent]:
    """What took how long: the stages, and inside PPO the phases of its steps."""
    stages = {
        name: number(seconds) for name, seconds in (lookup(run.machine, "seconds") or {}).items()
    }
    phases = {}
    for name, words in PHASES.items():
        values = [number(row.get(f"time/{name}")) for row in run.metrics]
        found = [value for value in values if math.isfinite(value)]
        if found:
            phases[words] = sum(found)
    if phases:
        spent = stages.setdefault("ppo", sum(phases.values()))  # the run is still in it
        rest = spent - sum(phases.values())
        if rest > 0:
            phases["evaluations, checkpoints, start"] = rest
    whole = sum(value for value in stages.values() if math.isfinite(value)) or math.nan
    rows = []
    for name, seconds in stages.items():
        rows.append(Spent(STAGES.get(name, name), duration(seconds), seconds / whole))
        if name == "ppo":
            rows += [
                Spent(words, duration(value), value / whole, inside=True)
                for words, value in phases.items()
            ]
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
        if name == "precision" and words == "no":
            words = "none"
        rows.append((MACHINE.get(name, name), words))
    return rows


def probe_rows(accuracy: Json | None) -> list[tuple[str, Estimate, str, str]]:
    """Kind of error, accuracy, pairs and margin of the reward model's probes, worst first."""
    if accuracy is None:
        return []
    kinds: Json = lookup(accuracy, "kinds") or {}
    found = [(name.replace("_", " "), probe) for name, probe in kinds.items()]
    found.sort(key=lambda row: number(lookup(row[1], "accuracy")))
    if len(found) > 1:
        found.insert(0, ("all kinds", accuracy))
    return [
        (
            name,
            Estimate(*(number(lookup(probe, key)) for key in ("accuracy", "low", "high"))),
            str(lookup(probe, "pairs")),
            shown(number(lookup(probe, "margin"))),
        )
        for name, probe in found
    ]


def pass_rows(summary: Json) -> list[tuple[str, str, str, str, bool]]:
    """k, before, after and change of pass@k; whether the change stands out from noise."""
    rows = []
    for point in lookup(summary, "pass_at_k", "points") or ():
        before, after, change = (
            estimate(lookup(point, key)) for key in ("reference", "policy", "change")
        )
        if before and after and change:
            apart = not change.low <= 0 <= change.high
            rows.append(
                (
                    f"pass@{point.get('k')}",
                    interval(before),
                    interval(after),
                    interval(change),
                    apart,
                )
            )
    return rows


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


def _cells(found: Sequence[Estimate | None], moved: Sequence[Any]) -> list[Cell]:
    first = found[0]
    cells = []
    for place, item in enumerate(found):
        mean, _, ends = (interval(item) if item else DASH).partition(" ")
        if place == 0 or item is None or first is None:
            cells.append(Cell(mean, ends))
        else:
            change = estimate(moved[place])
            apart = change is not None and not change.low <= 0 <= change.high
            cells.append(Cell(mean, ends, signed(item.mean - first.mean), apart))
    return cells
