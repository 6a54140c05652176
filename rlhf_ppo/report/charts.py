"""Charts as inline SVG: no colour and no font in them, those are the style sheet's.

Drawn here and not by a plotting library because the page's Content-Security-Policy allows no
`style` attribute, because dark mode needs classes instead of colours, and because a run should not
wait seconds for its report: a chart takes a millisecond and a few kilobytes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from markupsafe import Markup

from rlhf_ppo.report.numbers import MINUS

Point = tuple[float, float]
MOST_POINTS = 240  # of a line: more cannot be told apart at this width


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
    whole_x: bool = True
    width: int = 360
    height: int = 190
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
    xs: Iterable[float], ys: Iterable[float], x_label: str, *, whole_x: bool = True
) -> Axes | None:
    """Axes around all finite values; None if there are none."""
    x_values = [value for value in xs if math.isfinite(value)]
    y_values = [value for value in ys if math.isfinite(value)]
    if not x_values or not y_values:
        return None
    x_low, x_high = min(x_values), max(x_values)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    axes = Axes((x_low, x_high), _rounded(min(y_values), max(y_values)), x_label, whole_x)
    widest = max(len(name) for name in tick_labels(ticks(*axes.y_range, 5)))
    return replace(axes, left=max(26, 14 + 6 * widest))


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if span / (factor * power) <= count)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)] or [low]


def tick_labels(values: Sequence[float]) -> list[str]:
    """The ticks of an axis, with as many decimals, or digits, each as tell them apart."""
    largest = max((abs(value) for value in values), default=0.0)
    plain = not largest or 1e-3 <= largest < 1e5
    forms = [f".{decimals}f" for decimals in range(6)] if plain else []
    names: list[str] = []
    for form in [*forms, *(f".{digits}g" for digits in range(3, 16))]:
        names = [f"{value:{form}}" for value in values]
        right = all(
            abs(float(name) - value) <= 1e-6 * largest
            for name, value in zip(names, values, strict=True)
        )
        if right and len(set(names)) == len(set(values)):
            break
    return ["0" if float(name) == 0 else name.replace("-", MINUS) for name in names]


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    *,
    whiskers: Sequence[Whisker] = (),
    span: Span | None = None,
    whole_x: bool = True,
) -> Markup | None:
    """Curves over one another; None if no value is finite.

    Args:
        title: for those who do not see it, with a description made from the values.
        lines: drawn in this order.
        x_label: under the axis.
        whiskers: points with intervals, drawn on top.
        span: a vertical line with its interval, drawn below.
        whole_x: ticks of the x axis are whole numbers.
    """
    drawn = [replace(line, points=thin(line.points)) for line in lines]
    xs = [x for line in drawn for x, _ in line.points] + [
        w.x[i] for w in whiskers for i in (0, 1, 2)
    ]
    ys = [y for line in drawn for _, y in line.points]
    ys += [edge for line in drawn for _, *edges in line.band for edge in edges]
    ys += [value for whisker in whiskers for value in whisker.y]
    axes = fit_axes(xs, ys, x_label, whole_x=whole_x)
    if axes is None:
        return None
    parts = [axes.frame()]
    if span is not None:
        parts.append(_span(axes, span))
    parts += [_band(axes, line) for line in drawn if line.band]
    parts += [_line(axes, line) for line in drawn]
    parts += [_whisker(axes, whisker) for whisker in whiskers]
    description = "; ".join(filter(None, (describe_line(line) for line in lines)))
    return canvas(axes.width, axes.height, title, description, parts)


def histogram(
    title: str, sides: Sequence[tuple[str, str, Sequence[float]]], x_label: str
) -> Markup | None:
    """Shares of values by bin, as outlines over one another; None if no value is finite.

    Args:
        title: for those who do not see it.
        sides: name, style and values of each.
        x_label: under the axis, with the unit.
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
    axes = fit_axes(edges, [0.0, *(h for side in heights for h in side)], x_label, whole_x=False)
    if axes is None:
        return None
    parts = [axes.frame()]
    for (_, style, _), shares in zip(sides, heights, strict=True):
        outline = [(edges[0], 0.0)]
        for left, right, share in zip(edges, edges[1:], shares, strict=False):
            outline += [(left, share), (right, share)]
        outline.append((edges[-1], 0.0))
        path = _path(outline, axes.x, axes.y)
        parts.append(Markup('<path class="bars {}" d="{}"/>').format(style, path))
    told = "; ".join(
        f"{name}: mean {sum(side) / len(side):.3g}" for name, _, side in sides if len(side)
    )
    return canvas(axes.width, axes.height, title, told, parts)


def bins(values: Sequence[float], most: int = 24) -> list[float]:
    """Edges of bins of one round width that cover all values."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    marks = ticks(low, high, most)
    step = marks[1] - marks[0] if len(marks) > 1 else high - low
    start = math.floor(low / step + 1e-9) * step
    return [start + number * step for number in range(math.floor((high - start) / step) + 2)]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` points that keep each stretch's lowest and highest value, and gaps."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [point for point in stretch if math.isfinite(point[1])]
        if finite:
            both = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])}
            kept += sorted(both)
        else:
            kept.append(stretch[0])
    return kept


def running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Mean over the finite points around each, up to `window`; fewer towards both ends."""
    finite = [point for point in points if math.isfinite(point[1])]
    means: list[Point] = []
    for place, (x, _) in enumerate(finite):
        side = min(window // 2, place, len(finite) - 1 - place)
        near = [y for _, y in finite[place - side : place + side + 1]]
        means.append((x, sum(near) / len(near)))
    return means


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


def _rounded(low: float, high: float) -> tuple[float, float]:
    """A range that ends at whole ticks; some room where all values are alike."""
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        room = 0.1 * abs(low) or 1.0
        low, high = (max(low - room, 0.0) if low >= 0 else low - room), high + room
    marks = ticks(low, high, 5)
    step = marks[1] - marks[0] if len(marks) > 1 else high - low
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


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


def _span(axes: Axes, span: Span) -> Markup:
    low, high = axes.x_range
    left, right = (axes.x(min(max(edge, low), high)) for edge in (span.low, span.high))
    top, base, at = axes.top, axes.height - axes.bottom, axes.x(min(max(span.at, low), high))
    return Markup(
        '<rect class="span" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>'
        '<line class="span" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"><title>{}</title></line>'
    ).format(left, top, max(0.0, right - left), base - top, at, at, top, base, span.label)
