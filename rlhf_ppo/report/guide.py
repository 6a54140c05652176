"""What each metric is called and means, from docs/metrics.md: the one source of both."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
COLUMNS = ("key", "name", "unit", "mean over", "what it is", "healthy", "if not")


@dataclass(frozen=True)
class Entry:
    """A row of the table in docs/metrics.md."""

    key: str
    """As in `metrics.jsonl`; a word in capitals stands for any name."""
    name: str
    unit: str
    meaning: str
    expected: str
    """Empty: nothing in particular."""


@cache
def metric_guide() -> tuple[Entry, ...]:
    """All rows of the table; none where the package was installed without its documentation."""
    if not PAGE.is_file():
        return ()
    rows = [_cells(line) for line in PAGE.read_text(encoding="utf-8").splitlines()]
    head = next(number for number, cells in enumerate(rows) if cells == COLUMNS)
    entries = []
    for cells in rows[head + 2 :]:
        if len(cells) != len(COLUMNS):
            break
        key, name, unit, _, meaning, expected, _ = (_plain(cell) for cell in cells)
        entries.append(Entry(key, name, unit, meaning, expected))
    return tuple(entries)


def describe(key: str) -> Entry | None:
    """The entry of a metric, its name filled in: `reward/helpful/mean` is "score by helpful"."""
    for entry in metric_guide():
        holes = re.findall(r"[A-Z]{2,}", entry.key)
        pattern = re.sub(r"[A-Z]{2,}", "(.+)", re.escape(entry.key))
        found = re.fullmatch(pattern, key)
        if found:
            name = entry.name
            for hole, value in zip(holes, found.groups(), strict=True):
                name = name.replace(hole, value)
            return Entry(key, name, entry.unit, entry.meaning, entry.expected)
    return None


def _cells(line: str) -> Sequence[str]:
    return tuple(cell.strip() for cell in line.split("|")[1:-1])


def _plain(cell: str) -> str:
    """Without Markdown's backticks and links."""
    return re.sub(r"\s*\(\[[^\]]*\]\([^)]*\)\)|`", "", cell)
