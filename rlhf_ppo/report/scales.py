"""Numbers behind a chart: round ticks and ranges, bins, fewer points, running means."""

import math
from collections.abc import Sequence

from rlhf_ppo.report.numbers import MINUS

Point = tuple[float, float]
MOST_POINTS = 240  # of a line: more cannot be told apart at the width of a chart


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


def whole_range(low: float, high: float) -> tuple[float, float]:
    """A range that ends at whole ticks; some room where all values are alike."""
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        room = 0.1 * abs(low) or 1.0
        low, high = (max(low - room, 0.0) if low >= 0 else low - room), high + room
    marks = ticks(low, high, 5)
    step = marks[1] - marks[0] if len(marks) > 1 else high - low
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
