"""Charts as inline SVG: no colour and no font in them, those are the style sheet's.

Drawn here and not by a plotting library because the page's Content-Security-Policy allows no
`style` attribute, because dark mode needs classes instead of colours, and because a run should not
wait seconds for its report: a chart takes a millisecond and a few kilobytes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from markupsafe import Markup

from rlhf_ppo.report.scales import Point, bins, thin, tick_labels, ticks, whole_range

SIZE = (360, 190)  # of the canvas of a chart
SIZES = {"third": SIZE, "half": (560, 220), "whole": (1130, 260)}  # by its share of a row


@dataclass(frozen=True)
class Line:
    """A curve: y over x, with a gap where y is not finite."""

    name: str
    style: str
    """Its classes in the style sheet."""
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    """x, low, high."""
    dots: bool = False
    """A dot at each point, with its value as a tooltip."""
    joined: bool = True
    """A line from point to point."""


@dataclass(frozen=True)
class Whisker:
    """A point with intervals along both axes."""

    x: tuple[float, float, float]
    """Mean, low, high."""
    y: tuple[float, float, float]
    style: str
    label: str
    short: str = ""
    """Written beside the point, where there is room."""


@dataclass(frozen=True)
class Span:
    """A vertical line with its interval."""

    at: float
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Axes:
    """Where data lie on the canvas; data ranges are widened to whole ticks."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_label: str
    whole_x: bool
    width: int
    height: int
    left: int = 44
    right: int = 10
    top: int = 10
    bottom: int = 34
    x_ticks: Sequence[float] = field(default=())

    def x(self, value: float) -> float:
        """Across, in units of the canvas."""
        return self._scale(value, self.x_range, self.left, self.width - self.right)

    def y(self, value: float) -> float:
        """Down, in units of the canvas."""
        return self._scale(value, self.y_range, self.height - self.bottom, self.top)

    def frame(self) -> Markup:
        """Grid, ticks and the label of the x axis."""
        parts = []
        low, high = self.y_range
        y_ticks = ticks(low, high, 5)
        names = tick_labels(y_ticks)
        for value, name in zip(y_ticks, names, strict=True):
            y = self.y(value)
            kind = "grid zero" if value == 0 and low < 0 else "grid"
            parts.append(
                Markup('<line class="{}" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                    kind, self.left, self.width - self.right, y, y
                )
                + text(self.left - 6, y + 3.5, name, "end")
            )
        x_ticks = [*self.x_ticks] or ticks(*self.x_range, 5, whole=self.whole_x)
        base = self.height - self.bottom
        for value, name in zip(x_ticks, tick_labels(x_ticks), strict=True):
            x = self.x(value)
            mark = Markup('<line class="tick" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>')
            parts.append(mark.format(x, x, base, base + 3) + text(x, base + 14, name, "middle"))
        middle = (self.left + self.width - self.right) / 2
        parts.append(text(middle, self.height - 4, self.x_label, "middle"))
        return Markup("").join(parts)

    @staticmethod
    def _scale(value: float, data: tuple[float, float], start: float, end: float) -> float:
        low, high = data
        return start + (value - low) / (high - low) * (end - start)


def fit_axes(
    xs: Iterable[float],
    ys: Iterable[float],
    x_label: str,
    *,
    whole_x: bool = True,
    size: tuple[int, int] = SIZE,
) -> Axes | None:
    """Axes around all finite values; None if there are none."""
    x_values = [value for value in xs if math.isfinite(value)]
    y_values = [value for value in ys if math.isfinite(value)]
    if not x_values or not y_values:
        return None
    x_low, x_high = min(x_values), max(x_values)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    y_range = whole_range(min(y_values), max(y_values))
    axes = Axes((x_low, x_high), y_range, x_label, whole_x, *size)
    widest = max(len(name) for name in tick_labels(ticks(*axes.y_range, 5)))
    return replace(axes, left=max(26, 14 + 6 * widest))


def spans(count: int) -> list[str]:
    """How wide each of so many charts is, so that every row is full: rows of three, then of two."""
    if count == 1:
        return ["whole"]
    halves = {0: 0, 1: 4, 2: 2}[count % 3]
    return ["third"] * (count - halves) + ["half"] * halves


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    *,
    whiskers: Sequence[Whisker] = (),
    span: Span | None = None,
    whole_x: bool = True,
    size: tuple[int, int] = SIZE,
    around: Sequence[Point] = (),
) -> Markup | None:
    """Curves over one another; None if no value is finite.

    Args:
        title: for those who do not see it, with a description made from the values.
        lines: drawn in this order.
        x_label: under the axis.
        whiskers: points with intervals, drawn on top.
        span: a vertical line with its interval, drawn below.
        whole_x: ticks of the x axis are whole numbers.
        size: width and height of the canvas.
        around: points that the axes must reach, so that several charts share one scale.
    """
    drawn = [replace(line, points=thin(line.points)) for line in lines]
    xs = [x for line in drawn for x, _ in line.points] + [
        w.x[i] for w in whiskers for i in (0, 1, 2)
    ]
    ys = [y for line in drawn for _, y in line.points]
    ys += [edge for line in drawn for _, *edges in line.band for edge in edges]
    ys += [value for whisker in whiskers for value in whisker.y]
    xs, ys = [*xs, *(x for x, _ in around)], [*ys, *(y for _, y in around)]
    axes = fit_axes(xs, ys, x_label, whole_x=whole_x, size=size)
    if axes is None or not any(math.isfinite(y) for line in lines for _, y in line.points) | bool(
        whiskers
    ):
        return None
    parts = [axes.frame()]
    if span is not None:
        parts.append(_span(axes, span))
    parts += [_band(axes, line) for line in drawn if line.band]
    parts += [_line(axes, line) for line in drawn]
    parts += [_whisker(axes, whisker) for whisker in whiskers]
    parts += _short_labels(axes, whiskers)
    description = "; ".join(filter(None, (describe_line(line) for line in lines)))
    return canvas(axes.width, axes.height, title, description, parts)


def histogram(
    title: str,
    sides: Sequence[tuple[str, str, Sequence[float]]],
    x_label: str,
    size: tuple[int, int] = SIZE,
) -> Markup | None:
    """Shares of values by bin, as outlines over one another; None if no value is finite.

    Args:
        title: for those who do not see it.
        sides: name, style and values of each.
        x_label: under the axis, with the unit.
        size: width and height of the canvas.
    """
    values = [value for _, _, side in sides for value in side if math.isfinite(value)]
    if not values:
        return None
    edges = bins(values)
    heights = []
    for _, _, side in sides:
        finite = [value for value in side if math.isfinite(value)]
        counts = [0] * (len(edges) - 1)
        for value in finite:
            place = int((value - edges[0]) / (edges[1] - edges[0]))
            counts[min(max(place, 0), len(counts) - 1)] += 1
        heights.append([count / max(1, len(finite)) for count in counts])
    shares = [0.0, *(h for side in heights for h in side)]
    axes = fit_axes(edges, shares, x_label, whole_x=False, size=size)
    if axes is None:
        return None
    parts = [axes.frame()]
    for (_, style, _), height in zip(sides, heights, strict=True):
        outline = [(edges[0], 0.0)]
        for left, right, share in zip(edges, edges[1:], height, strict=False):
            outline += [(left, share), (right, share)]
        outline.append((edges[-1], 0.0))
        path = _path(outline, axes.x, axes.y)
        parts.append(Markup('<path class="bars {}" d="{}"/>').format(style, path))
    told = "; ".join(
        f"{name}: mean {sum(side) / len(side):.3g}" for name, _, side in sides if len(side)
    )
    return canvas(axes.width, axes.height, title, told, parts)


def describe_line(line: Line) -> str:
    """From where to where a curve goes, in words."""
    finite = [(x, y) for x, y in line.points if math.isfinite(y)]
    if not finite:
        return ""
    (x0, y0), (x1, y1) = finite[0], finite[-1]
    if len(finite) == 1:
        return f"{line.name}: {y0:.3g} at {x0:g}"
    low, high = min(y for _, y in finite), max(y for _, y in finite)
    return (
        f"{line.name}: {y0:.3g} at {x0:.4g}, {y1:.3g} at {x1:.4g}, between {low:.3g} and {high:.3g}"
    )


def canvas(
    width: float, height: float, title: str, description: str, parts: Sequence[Markup]
) -> Markup:
    """The `svg` element, with title and description for those who do not see it."""
    label = f"{title}. {description}" if description else title
    return Markup(
        '<svg class="chart" role="img" viewBox="0 0 {} {}" aria-label="{}"><desc>{}</desc>{}</svg>'
    ).format(width, height, label, description or title, Markup("").join(parts))


def text(x: float, y: float, words: str, anchor: str = "start", style: str = "") -> Markup:
    """A label on a chart."""
    form = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return form.format(f"label {style}".strip(), x, y, anchor, words)


def _path(points: Iterable[Point], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """M and L commands; a new M after each gap."""
    commands = []
    command = "M"
    for place, value in points:
        if math.isfinite(place) and math.isfinite(value):
            commands.append(f"{command}{x(place):.1f} {y(value):.1f}")
            command = "L"
        else:
            command = "M"
    return "".join(commands)


def _line(axes: Axes, line: Line) -> Markup:
    parts = []
    if line.joined:
        path = _path(line.points, axes.x, axes.y)
        parts.append(Markup('<path class="line {}" d="{}"/>').format(line.style, path))
    if line.dots or len(line.points) == 1:
        for x, y in line.points:
            if math.isfinite(y):
                tip = f"{line.name}: {y:.4g} at {axes.x_label} {x:.4g}"
                parts.append(_dot(axes.x(x), axes.y(y), line.style, tip))
    return Markup("").join(parts)


def _dot(x: float, y: float, style: str, tip: str) -> Markup:
    form = Markup(
        '<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.2"><title>{}</title></circle>'
    )
    return form.format(style, x, y, tip)


def _band(axes: Axes, line: Line) -> Markup:
    finite = [edge for edge in line.band if all(math.isfinite(value) for value in edge)]
    around = [(x, high) for x, _, high in finite] + [(x, low) for x, low, _ in reversed(finite)]
    path = _path(around, axes.x, axes.y)
    return Markup('<path class="band {}" d="{}Z"/>').format(line.style, path) if path else Markup()


def _whisker(axes: Axes, whisker: Whisker) -> Markup:
    (x, x_low, x_high), (y, y_low, y_high) = whisker.x, whisker.y
    if not (math.isfinite(x) and math.isfinite(y)):
        return Markup()
    parts = []
    rod = Markup('<line class="rod {}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>')
    across, down = axes.x(x), axes.y(y)
    if math.isfinite(x_low) and math.isfinite(x_high):
        parts.append(rod.format(whisker.style, axes.x(x_low), axes.x(x_high), down, down))
    if math.isfinite(y_low) and math.isfinite(y_high):
        parts.append(rod.format(whisker.style, across, across, axes.y(y_low), axes.y(y_high)))
    parts.append(_dot(across, down, whisker.style, whisker.label))
    return Markup("").join(parts)


def _short_labels(axes: Axes, whiskers: Sequence[Whisker]) -> list[Markup]:
    """Names beside their points, above or below; one that would lie on another is left out."""
    taken: list[tuple[float, float, float]] = []  # left, right, baseline
    parts = []
    for whisker in whiskers:
        x, y = axes.x(whisker.x[0]), axes.y(whisker.y[0])
        wide = 6.2 * len(whisker.short)
        for left, base in ((x + 6, y - 6), (x + 6, y + 15), (x - 6 - wide, y - 6)):
            free = all(
                left > right or left + wide < start or abs(base - line) > 11
                for start, right, line in taken
            )
            inside = axes.left < left and left + wide < axes.width and base > 8
            if whisker.short and free and inside and base < axes.height - axes.bottom:
                taken.append((left, left + wide, base))
                parts.append(text(left, base, whisker.short, "start", f"mark {whisker.style}"))
                break
    return parts


def _span(axes: Axes, span: Span) -> Markup:
    low, high = axes.x_range
    left, right = (axes.x(min(max(edge, low), high)) for edge in (span.low, span.high))
    top, base, at = axes.top, axes.height - axes.bottom, axes.x(min(max(span.at, low), high))
    return Markup(
        '<rect class="span" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>'
        '<line class="span" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"><title>{}</title></line>'
    ).format(left, top, max(0.0, right - left), base - top, at, at, top, base, span.label)
