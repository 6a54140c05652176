"""Every metric over the steps, in groups, under the names of docs/metrics.md."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from markupsafe import Markup

from rlhf_ppo.report.charts import SIZES, Line, line_chart, spans
from rlhf_ppo.report.folder import Json, RunFolder, lookup, number
from rlhf_ppo.report.guide import describe
from rlhf_ppo.report.numbers import shown
from rlhf_ppo.report.scales import Point, running_mean

GROUPS = (
    ("Score", ("score/", "gold/", "heldout/score", "heldout/gold", "reward/")),
    ("KL", ("kl/", "heldout/kl")),
    ("Response", ("response/", "heldout/length", "heldout/stopped")),
    ("Policy", ("policy/", "update/", "ptx/", "grad_norm", "learning_rate")),
    ("Value function", ("value/",)),
    ("Time and memory", ("time/", "throughput/", "memory/")),
)
OTHER = "Other"
PARTS = "heldout/gold/"
FEW = 12  # up to so many points, each has a mark
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
    span: str = "third"
    """Its share of a row: third, half or whole."""


@dataclass(frozen=True)
class Multiples:
    """Small charts of like quantities on one scale."""

    title: str
    unit: str
    meaning: str
    charts: Sequence[tuple[str, Markup]]
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Group:
    """What belongs together."""

    drawn: list[Figure]
    constant: list[tuple[str, str, str]]
    """Name, value and key of metrics that never change: a sentence says as much as a chart."""
    multiples: list[Multiples] = field(default_factory=list)


def curve_groups(runs: Sequence[RunFolder]) -> list[tuple[str, Group]]:
    """Charts of all metrics of one run, or of several over one another, by group."""
    runs = [replace(run, heldout=heldout_rows(run)) for run in runs]
    keys = {key for run in runs for row in run.metrics for key in row if key not in NOT_DRAWN}
    # What another chart already shows.
    shown_there = {other for key, other in PAIRS.items() if key in keys}
    shown_there |= {key for key in keys if key.startswith(PARTS)}
    groups = {name: Group([], []) for name in (*(name for name, _ in GROUPS), OTHER)}
    drawn: dict[str, list[str]] = {name: [] for name in groups}
    for key in sorted(keys - shown_there, key=_order):
        name = group_of(key)
        values = {y for run in runs for _, y in series(run.metrics, key)}
        if len(values) == 1 and len(runs[0].metrics) > 1:
            entry = describe(key)
            title = entry.name if entry else key
            groups[name].constant.append((title, shown(values.pop()), key))
        elif any(math.isfinite(value) for value in values):
            drawn[name].append(key)
    for name, own in drawn.items():
        found = [
            metric_figure(runs, key, span) for key, span in zip(own, spans(len(own)), strict=True)
        ]
        groups[name].drawn.extend(figure for figure in found if figure is not None)
    parts = part_multiples(runs)
    if parts is not None:
        groups["Score"].multiples.append(parts)
    return [
        (name, group)
        for name, group in groups.items()
        if group.drawn or group.constant or group.multiples
    ]


def part_multiples(runs: Sequence[RunFolder]) -> Multiples | None:
    """The parts of the gold score on held-out prompts, on one scale, from the reference on."""
    names: dict[str, None] = {}
    for run in runs:
        for row in run.metrics:
            names |= {key.removeprefix(PARTS): None for key in row if key.startswith(PARTS)}
    curves = {name: [_part_points(run, name) for run in runs] for name in names}
    known = [point for found in curves.values() for points in found for point in points]
    if not known:
        return None
    charts = []
    for name, found in curves.items():
        lines = [
            Line(run.name, "held" if len(runs) == 1 else f"run-{place}", points, dots=True)
            for place, (run, points) in enumerate(zip(runs, found, strict=True))
        ]
        chart = line_chart(name, lines, "step", size=(200, 116), around=known)
        if chart is not None:
            charts.append((name.replace("_", " "), chart))
    counts = sorted({str(_asked(run)) for run in runs if _asked(run)})
    return Multiples(
        title="Parts of the gold score on held-out prompts",
        unit="gold units",
        meaning=(
            f"mean over {' or '.join(counts) or 'the'} prompts at each evaluation; step 0 is the "
            "reference; one scale for all"
        ),
        charts=charts,
        legend=[(f"run-{place}", run.name) for place, run in enumerate(runs)] * (len(runs) > 1),
    )


def heldout_rows(run: RunFolder) -> list[Json]:
    """The evaluations during training, and that of the finished policy on the same prompts.

    The last one counts only where this run's own policy was evaluated as in training, which is when
    `frontier.json` holds it.
    """
    points = lookup(run.frontier, "ppo") or []
    last = number(lookup(points[-1], "step")) if points else math.nan
    if not run.heldout or not last > number(run.heldout[-1]["step"]) or not run.samples:
        return run.heldout
    mine = [lookup(row, "policy") for row in run.samples[: _asked(run)]]
    final: Json = {"step": last}
    for name in run.heldout[-1]:
        if name != "step":
            place = ("gold", "score") if name == "gold" else (name,)
            final[name] = [_as_number(lookup(side, *place)) for side in mine]
    return [*run.heldout, final]


def _part_points(run: RunFolder, part: str) -> list[Point]:
    """Means of a gold part: of the reference, at each evaluation, of the finished policy."""
    points = series(run.metrics, PARTS + part)
    for side, step in (
        ("reference", 0.0),
        ("policy", number(run.heldout[-1]["step"]) if run.heldout else math.nan),
    ):
        values = [number(lookup(row, side, "gold", part)) for row in run.samples[: _asked(run)]]
        known = [value for value in values if math.isfinite(value)]
        if known and run.heldout and step not in [x for x, _ in points]:
            points.append((step, sum(known) / len(known)))
    return sorted(points)


def _asked(run: RunFolder) -> int:
    """Prompts of each evaluation during training."""
    return len(run.heldout[-1].get("score") or ()) if run.heldout else 0


def _as_number(value: object) -> float:
    return float(value) if isinstance(value, bool) else number(value)


def group_of(key: str) -> str:
    """The group that a metric belongs to."""
    for name, prefixes in GROUPS:
        if key.startswith(prefixes):
            return name
    return OTHER


def metric_figure(runs: Sequence[RunFolder], key: str, span: str = "third") -> Figure | None:
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
            name = "each step" if alone else run.name
            lines.append(Line(name, style, points, dots=len(points) <= FEW))
        legend.append((style, lines[-1].name))
        if held is not None and alone:
            line = _held_out(run, held)
            if line is not None:
                lines.append(line)
                legend.append((line.style, line.name))
    entry = describe(key)
    title = entry.name if entry else key
    chart = line_chart(title, lines, "PPO step", size=SIZES[span])
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
        span=span,
    )


def stage_figures(runs: Sequence[RunFolder]) -> list[Figure]:
    """Loss and accuracy of the supervised and the reward stage."""
    figures: list[Figure] = []
    drawn = [
        (stage, title, key, words)
        for stage, title in (("sft", "Supervised model"), ("reward_model", "Reward model"))
        for key, words in LOSSES.items()
        if any(math.isfinite(y) for run in runs for _, y in series(getattr(run, stage), key))
    ]
    for (stage, title, key, words), span in zip(drawn, spans(len(drawn)), strict=True):
        lines = []
        for place, run in enumerate(runs):
            points = series(getattr(run, stage), key)
            style = "after" if len(runs) == 1 else f"run-{place}"
            window = len(points) // WINDOW if len(points) >= LONG else 0
            shown = running_mean(points, window) if window > 1 else points
            lines.append(Line(run.name, style, shown, dots=len(shown) <= FEW))
        chart = line_chart(f"{title}: {words}", lines, "optimizer step", size=SIZES[span])
        if chart is not None:
            unit = "nats" if key == "loss" else "fraction"
            meaning = "on the training data, running mean"
            file = f"{stage}/metrics.jsonl: {key}"
            figures.append(Figure(f"{title}: {words}", unit, file, meaning, "", chart, span=span))
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
    title = f"{_asked(run)} held-out prompts, 95 % interval"
    if not points:
        points, title = series(run.metrics, key), "held-out prompts"
    return Line(title, "held", points, band, dots=True) if points else None


def _order(key: str) -> tuple[int, str]:
    """As in docs/metrics.md: first what is looked at first."""
    entry = describe(key)
    first = [*PAIRS, "value/explained_variance", "policy/entropy", "kl/update"]
    return (first.index(key) if key in first else len(first) + (entry is None), key)
