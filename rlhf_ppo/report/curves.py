"""Every metric over the steps, in groups, under the names of docs/metrics.md."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rlhf_ppo.report.charts import Line, Point, line_chart, running_mean
from rlhf_ppo.report.folder import Json, RunFolder, number
from rlhf_ppo.report.guide import describe
from rlhf_ppo.report.numbers import shown

GROUPS = (
    ("Score", ("score/", "gold/", "heldout/score", "heldout/gold", "reward/")),
    ("KL", ("kl/", "heldout/kl")),
    ("Response", ("response/", "heldout/length", "heldout/stopped")),
    ("Policy", ("policy/", "update/", "ptx/", "grad_norm", "learning_rate")),
    ("Value function", ("value/",)),
    ("Time and memory", ("time/", "throughput/", "memory/")),
)
OTHER = "Other"
# What counts up all the time says nothing as a curve.
NOT_DRAWN = ("step", "episodes", "tokens")
# A metric of training, and the same number on held-out prompts: in one chart.
PAIRS = {
    "score/mean": "heldout/score",
    "gold/mean": "heldout/gold",
    "kl/ref": "heldout/kl",
    "response/length": "heldout/length",
    "response/stopped": "heldout/stopped",
}
LOSSES = {"loss": "loss", "accuracy": "accuracy", "mean_token_accuracy": "token accuracy"}
LONG = 50  # from so many steps on, a running mean helps
WINDOW = 20  # the running mean is over so many parts of all steps


@dataclass(frozen=True)
class Figure:
    """A chart with what a reader needs beside it."""

    title: str
    unit: str
    key: str
    meaning: str
    expected: str
    chart: Markup
    legend: Sequence[tuple[str, str]] = ()
    """Style and name of each line, where there are several."""


@dataclass(frozen=True)
class Group:
    """What belongs together."""

    drawn: list[Figure]
    constant: list[tuple[str, str, str]]
    """Name, value and key of metrics that never change: a sentence says as much as a chart."""


def curve_groups(runs: Sequence[RunFolder]) -> list[tuple[str, Group]]:
    """Charts of all metrics of one run, or of several over one another, by group."""
    keys = {key for run in runs for row in run.metrics for key in row if key not in NOT_DRAWN}
    # What another chart already shows.
    paired = {other for key, other in PAIRS.items() if key in keys}
    groups = {name: Group([], []) for name in (*(name for name, _ in GROUPS), OTHER)}
    for key in sorted(keys - paired, key=_order):
        group = groups[group_of(key)]
        values = {y for run in runs for _, y in series(run.metrics, key)}
        figure = metric_figure(runs, key)
        if len(values) == 1 and len(runs[0].metrics) > 1:
            entry = describe(key)
            group.constant.append((entry.name if entry else key, shown(values.pop()), key))
        elif figure is not None:
            group.drawn.append(figure)
    return [(name, group) for name, group in groups.items() if group.drawn or group.constant]


def group_of(key: str) -> str:
    """The group that a metric belongs to."""
    for name, prefixes in GROUPS:
        if key.startswith(prefixes):
            return name
    return OTHER


def metric_figure(runs: Sequence[RunFolder], key: str) -> Figure | None:
    """One metric over the steps; None if no value is finite."""
    alone = len(runs) == 1
    held = PAIRS.get(key)
    lines: list[Line] = []
    legend: list[tuple[str, str]] = []
    for place, run in enumerate(runs):
        style = "after" if alone else f"run-{place}"
        points = series(run.metrics, key)
        window = len(points) // WINDOW if len(points) >= LONG else 0
        if window > 1:
            name = f"mean over {window} steps" if alone else run.name
            if alone:
                lines.append(Line("each step", f"{style} faint", points))
            lines.append(Line(name, style, running_mean(points, window)))
        else:
            lines.append(Line("each step" if alone else run.name, style, points))
        legend.append((style, lines[-1].name))
        if held is not None and alone:
            line = _held_out(run, held)
            if line is not None:
                lines.append(line)
                legend.append((line.style, line.name))
    entry = describe(key)
    title = entry.name if entry else key
    chart = line_chart(title, lines, "PPO step")
    if chart is None:
        return None
    return Figure(
        title=title,
        unit=entry.unit if entry else "",
        key=key,
        meaning=entry.meaning if entry else "not described in docs/metrics.md",
        expected=entry.expected if entry else "",
        chart=chart,
        legend=legend if len(legend) > 1 or lines[0].name != "each step" else (),
    )


def stage_figures(runs: Sequence[RunFolder]) -> list[Figure]:
    """Loss and accuracy of the supervised and the reward stage."""
    figures = []
    for stage, title in (("sft", "Supervised model"), ("reward_model", "Reward model")):
        for key, words in LOSSES.items():
            lines = []
            for place, run in enumerate(runs):
                points = series(getattr(run, stage), key)
                style = "after" if len(runs) == 1 else f"run-{place}"
                window = len(points) // WINDOW if len(points) >= LONG else 0
                shown = running_mean(points, window) if window > 1 else points
                lines.append(Line(run.name, style, shown))
            chart = line_chart(f"{title}: {words}", lines, "optimizer step")
            if chart is not None:
                unit = "nats" if key == "loss" else "fraction"
                meaning = "on the training data, running mean"
                file = f"{stage}/metrics.jsonl: {key}"
                figures.append(Figure(f"{title}: {words}", unit, file, meaning, "", chart))
    return figures


def series(rows: Sequence[Json], key: str) -> list[Point]:
    """(step, value) of the rows that have this key; NaN where it is not a number."""
    return [(number(row["step"]), number(row[key])) for row in rows if key in row]


def _held_out(run: RunFolder, key: str) -> Line | None:
    """A number on held-out prompts, with its 95 % interval where there is one number a prompt."""
    name = key.removeprefix("heldout/")
    points, band = [], []
    for row in run.heldout:
        values = [number(value) for value in row.get(name) or ()]
        values = [value for value in values if math.isfinite(value)]
        if values:
            step, mean = number(row["step"]), sum(values) / len(values)
            points.append((step, mean))
            spread = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
            half = 1.96 * (spread / len(values)) ** 0.5
            band.append((step, mean - half, mean + half))
    title = "held-out prompts, 95 % interval"
    if not points:
        points, title = series(run.metrics, key), "held-out prompts"
    return Line(title, "held", points, band, dots=True) if points else None


def _order(key: str) -> tuple[int, str]:
    """As in docs/metrics.md: first what is looked at first."""
    entry = describe(key)
    first = [*PAIRS, "value/explained_variance", "policy/entropy", "kl/update"]
    return (first.index(key) if key in first else len(first) + (entry is None), key)
