"""The charts that are not curves: distributions, the frontier, intervals side by side."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from rlhf_ppo.report.charts import (
    SIZES,
    Line,
    Span,
    Whisker,
    canvas,
    histogram,
    line_chart,
    spans,
    text,
)
from rlhf_ppo.report.curves import Figure
from rlhf_ppo.report.folder import Estimate, Json, RunFolder, estimate, lookup, number
from rlhf_ppo.report.scales import tick_labels, ticks
from rlhf_ppo.report.tables import Rate

ROW = 24  # height of a row of `forest`
LABELS = 138  # width of its labels
CANVAS = 370
LARGE = (560, 330)  # canvas of the frontier


def distributions(run: RunFolder) -> list[Figure]:
    """Score, gold score, length and KL of single responses, before and after."""
    both = (("before", "reference"), ("after", "policy"))
    wanted = (
        ("Score", "reward units", ("score",), both),
        ("Gold score", "gold units", ("gold", "score"), both),
        ("Response length", "tokens", ("length",), both),
        ("KL to the reference", "nats a response", ("kl",), both[1:]),
    )
    drawn = []
    for title, unit, place, sides in wanted:
        found = [
            (style, style, [number(lookup(row, side, *place)) for row in run.samples])
            for style, side in sides
        ]
        if any(math.isfinite(value) for _, _, values in found for value in values):
            drawn.append((title, unit, found))
    figures = []
    for (title, unit, found), span in zip(drawn, spans(len(drawn)), strict=True):
        chart = histogram(f"Distribution of {title}", found, unit, SIZES[span])
        if chart is not None:
            meaning = f"share of the {len(run.samples)} held-out prompts"
            legend = [(style, style) for style, _, _ in found]
            figures.append(Figure(title, unit, "", meaning, "", chart, legend, span))
    return figures


def frontier_figures(frontier: Json | None) -> list[Figure]:
    """Score and gold score against the square root of KL: best-of-n and PPO's checkpoints."""
    figures = []
    for by, title, unit in (
        ("gold", "Gold score against distance", "gold units"),
        ("score", "Score against distance", "reward units"),
    ):
        whiskers: list[Whisker] = []
        lines: list[Line] = []
        legend: list[tuple[str, str]] = []
        for method, style, name in (
            ("best_of_n", "other", "best of n"),
            ("ppo", "after", "PPO, with its step"),
        ):
            found = _whiskers(lookup(frontier, method) or (), by, style)
            if not found:
                continue
            whiskers += found
            legend.append((f"{style} point", name))
            curve = _fit(lookup(frontier, "fits", method, by), found, style, f"fit to {name}")
            if curve is not None:
                lines.append(curve)
                legend.append((style, curve.name))
        turning = lookup(frontier, "turning_point", "ppo")
        span = _turning(turning) if by == "gold" else None
        if span is not None:
            legend.append(("span", "turning point of PPO, 95 % interval"))
        label = "√KL to the reference, √nats"
        chart = line_chart(
            title, lines, label, whiskers=whiskers, span=span, whole_x=False, size=LARGE
        )
        if chart is not None:
            meaning = f"{_prompts(frontier)}; bars are 95 % intervals"
            figures.append(Figure(title, unit, "", meaning, "", chart, legend, "half"))
    return figures


def _prompts(frontier: Json | None) -> str:
    """How many held-out prompts and samples are behind the points."""
    count, samples = lookup(frontier, "prompts"), lookup(frontier, "samples_per_prompt")
    return f"best of n from {samples} samples to each of {count} held-out prompts"


def turning_sentences(frontier: Json | None) -> list[str]:
    """What the fits say of best-of-n and PPO, or why there is none."""
    sentences = []
    for method, name in (("best_of_n", "Best of n"), ("ppo", "PPO")):
        words = lookup(frontier, "turning_point", method, "text")
        if words:
            sentences.append(f"{name}: {words}{'' if str(words).endswith('.') else '.'}")
    return sentences


def forest(
    title: str,
    rows: Sequence[tuple[str, Sequence[tuple[str, Estimate]]]],
    x_range: tuple[float, float] | None = None,
    line_at: float | None = None,
    width: int = CANVAS,
) -> Markup | None:
    """Estimates with their intervals, one row a name; None without rows.

    Args:
        title: for those who do not see it.
        rows: name, then style and estimate of each mark.
        x_range: of the axis; None: as the estimates need it.
        line_at: a vertical line to hold them against.
        width: of the canvas.
    """
    finite = [
        value
        for _, marks in rows
        for _, found in marks
        for value in (found.mean, found.low, found.high)
        if math.isfinite(value)
    ]
    if not finite:
        return None
    if line_at is not None:
        finite.append(line_at)
    low, high = x_range or (min(finite), max(finite))
    if low == high:
        room = 0.1 * abs(low) or 1.0
        low, high = low - room, high + room
    base = ROW * len(rows) + 6

    def across(value: float) -> float:
        return LABELS + (value - low) / (high - low) * (width - LABELS - 14)

    parts = []
    values = ticks(low, high, 5)
    for value, name in zip(values, tick_labels(values), strict=True):
        x = across(value)
        grid = Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="2" y2="{}"/>')
        parts += [grid.format(x, x, base), text(x, base + 14, name, "middle")]
    if line_at is not None:
        x = across(line_at)
        rule = Markup('<line class="rule" x1="{:.1f}" x2="{:.1f}" y1="2" y2="{}"/>')
        parts.append(rule.format(x, x, base))
    for place, (name, marks) in enumerate(rows):
        middle = ROW * place + ROW / 2 + 2
        short = name if len(name) <= 22 else f"{name[:21]}…"
        parts.append(text(LABELS - 10, middle + 4, short, "end", "name"))
        parts += _marks(name, marks, middle, across)
    told = "; ".join(
        f"{name}: {', '.join(f'{style} {found.mean:.3g}' for style, found in marks)}"
        for name, marks in rows
    )
    return canvas(width, base + 20, title, told, parts)


def rate_rows(rates: Sequence[Rate]) -> list[tuple[str, Sequence[tuple[str, Estimate]]]]:
    """Win rates for `forest`: plain and length-controlled ones of the same kind in one row."""
    rows: dict[str, list[tuple[str, Estimate]]] = {}
    for rate in rates:
        style = "other" if rate.controlled else "after"
        rows.setdefault(f"{rate.who}: {rate.by.removesuffix(' score')}", []).append(
            (style, rate.found)
        )
    return list(rows.items())


def part_rows(summary: Json) -> list[tuple[str, Sequence[tuple[str, Estimate]]]]:
    """Each part of the gold score before and after, for `forest`; the largest changes first."""
    rows = []
    for name in lookup(summary, "policy", "gold_parts") or {}:
        before = estimate(lookup(summary, "reference", "gold_parts", name))
        after = estimate(lookup(summary, "policy", "gold_parts", name))
        if before and after:
            rows.append((name.replace("_", " "), (("before", before), ("after", after))))
    return sorted(rows, key=lambda row: -abs(row[1][1][1].mean - row[1][0][1].mean))


def _marks(
    name: str,
    marks: Sequence[tuple[str, Estimate]],
    middle: float,
    across: Callable[[float], float],
) -> list[Markup]:
    """The marks of one row, a little apart so that their intervals are told apart."""
    parts = []
    for number_, (style, found) in enumerate(marks):
        y = middle + (number_ - (len(marks) - 1) / 2) * 7
        if math.isfinite(found.low) and math.isfinite(found.high):
            rod = Markup('<line class="rod {}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>')
            parts.append(rod.format(style, across(found.low), across(found.high), y, y))
        dot = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.4"><title>{}</title>')
        tip = f"{name}, {style}: {found.mean:.3g} [{found.low:.3g}, {found.high:.3g}]"
        parts.append(dot.format(style, across(found.mean), y, tip) + Markup("</circle>"))
    return parts


def _whiskers(points: Sequence[Mapping[str, Any]], by: str, style: str) -> list[Whisker]:
    found = []
    for point in points:
        kl, value = estimate(point.get("kl")), estimate(point.get(by))
        if kl is None:  # of best-of-n it is known without sampling
            exact = number(point.get("kl"))
            kl = Estimate(exact, exact, exact) if math.isfinite(exact) else None
        if kl is None or value is None:
            continue
        x = (_root(kl.mean), _root(kl.low), _root(kl.high))
        name = f"best of {point['n']}" if "n" in point else f"PPO step {point.get('step')}"
        label = f"{name}: {value.mean:.3g} [{value.low:.3g}, {value.high:.3g}], KL {kl.mean:.3g}"
        short = f"n={point['n']}" if "n" in point else f"{point.get('step')}"
        found.append(Whisker(x, (value.mean, value.low, value.high), style, label, short))
    return found


def _fit(fit: Any, points: Sequence[Whisker], style: str, name: str) -> Line | None:
    """The curve of a fit: gain d (alpha - beta d), or d (alpha - beta ln d) for PPO.

    Gao et al. 2023, section 3.1; d is the square root of KL, and the gain is counted from the
    reference, which is the point of least KL.
    """
    alpha, beta = number(lookup(fit, "alpha")), number(lookup(fit, "beta"))
    if not (math.isfinite(alpha) and math.isfinite(beta)):
        return None
    start = min(points, key=lambda point: point.x[0])
    furthest = max(point.x[0] for point in points)
    logarithmic = "log" in str(lookup(fit, "form")) or "ln" in str(lookup(fit, "form"))
    curve = []
    for place in range(1, 61):
        d = furthest * place / 60
        slope = alpha - beta * (math.log(d) if logarithmic else d) if d > 0 else 0.0
        curve.append((d, start.y[0] + d * slope))
    return Line(name, f"{style} fit", curve)


def _turning(found: Any) -> Span | None:
    kl = estimate(lookup(found, "kl"))
    if not lookup(found, "found") or kl is None:
        return None
    label = f"turning point at KL {kl.mean:.3g} [{kl.low:.3g}, {kl.high:.3g}]"
    return Span(_root(kl.mean), _root(kl.low), _root(kl.high), label)


def _root(kl: float) -> float:
    """An estimate of KL can fall below 0 by chance."""
    return math.sqrt(max(kl, 0.0)) if math.isfinite(kl) else math.nan
