"""One source under the settings of the data section: columns renamed, bad rows and repeats settled.

The same path for prompts, demonstrations and preferences; they differ in how a row is parsed.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar

from rlhf_ppo.config import DataConfig
from rlhf_ppo.data.conversation import BadRow
from rlhf_ppo.data.forms import join_input, to_trl
from rlhf_ppo.data.loading import AnyRow, BrokenRow, Row, read_rows
from rlhf_ppo.data.report import SHOWN_PROBLEMS, DataReport, raise_problems
from rlhf_ppo.errors import shown

FORMS = ("conversations", "instruction", "input", "output", "system", "history")  # see forms.py
READ_BY = {
    "prompts": ("prompt", "messages", "chosen", "rejected", *FORMS),
    "demonstrations": ("prompt", "messages", "completion", "text", "chosen", "rejected", *FORMS),
    "preferences": ("prompt", "chosen", "rejected", "kind", *FORMS),
}


class Placed(Protocol):
    """What a row becomes; it knows its place and what makes two of them the same."""

    @property
    def where(self) -> str:
        """Place in the source."""

    @property
    def key(self) -> Hashable:
        """Equal for a row that says the same again."""


T = TypeVar("T", bound=Placed)


def load(
    source: str,
    setting: str,
    rules: DataConfig,
    report: DataReport,
    parse: Callable[[int, Row], T],
) -> list[T]:
    """Read a source; what is dropped or worth a word goes to the report.

    Args:
        source: file, folder or hub id.
        setting: that names it; "data.heldout_prompts" holds prompts, and so on.
        rules: the settings of the data section.
        report: what is found goes here.
        parse: makes an item of a row and its number, counted from 0, or raises `BadRow`.

    Raises:
        UserError: missing source, no rows, or bad or repeated rows where they are to be refused.
    """
    rows = read_rows(source, setting)
    names = {name for row in rows if isinstance(row, Row) for name in row.values}
    report.add_source(setting, source, len(rows), sorted(names))
    items: list[T] = []
    bad: list[BrokenRow] = []
    for number, row in enumerate(rows):
        found = _try(number, row, rules, setting, parse)
        if isinstance(found, BrokenRow):
            bad.append(found)
        else:
            items.append(found)
    _settle_bad_rows(bad, setting, rules, report)
    if not items:
        remedy = f"Mend them, or give other data. ({setting})"
        raise_problems(_sentences(bad), f"That is every row. {remedy}")
    return _settle_repeats(items, setting, rules, report)


def takes(setting: str, name: str) -> bool:
    """Whether a source looks for a column of our naming: its own, and of prompts any other."""
    kind = _kind(setting)
    known = any(name in names for names in READ_BY.values())
    return name in READ_BY[kind] or (kind == "prompts" and not known)


def check_columns(rules: DataConfig, report: DataReport) -> list[str]:
    """Problems of `data.columns`: a column that no source has, which may be a slip of the pen."""
    problems = []
    for ours, theirs in rules.columns.items():
        asked = {key: item for key, item in report.sources.items() if takes(key, ours)}
        if asked and not any(theirs in item.columns for item in asked.values()):
            has = "; ".join(f"{key} has {_listed(item.columns)}" for key, item in asked.items())
            problems.append(
                f"data.columns.{ours} = {shown(theirs)}: no such column ({has}). Correct it, or "
                "leave it out of data.columns."
            )
    return problems


def missing_column(row: Row, rules: DataConfig, *names: str) -> BadRow:
    """That a row has none of these columns, by the names that the data should have."""
    wanted = ", ".join(f"`{rules.columns.get(name, name)}`" for name in names)
    return BadRow(f"no column {wanted}", f"columns: {_listed(sorted(row.values)) or 'none'}")


def _listed(names: Sequence[str], width: int = 120) -> str:
    """Names of columns, of which a data set may have hundreds."""
    text = ", ".join(names)
    return text if len(text) <= width else f"{text[:width]}... ({len(names)})"


def _kind(setting: str) -> str:
    if setting == "ptx.data":
        return "demonstrations"
    return setting.removeprefix("data.").removeprefix("heldout_")


def _try(
    number: int, row: AnyRow, rules: DataConfig, setting: str, parse: Callable[[int, Row], T]
) -> T | BrokenRow:
    if isinstance(row, BrokenRow):
        return row
    try:
        values = to_trl(_renamed(row.values, rules, setting), _kind(setting), rules)
        return parse(number, Row(row.where, values))
    except BadRow as bad:
        return BrokenRow(row.where, bad.reason, bad.detail, shown(row.values, 200, 60))


def _renamed(values: dict[str, Any], rules: DataConfig, setting: str) -> dict[str, Any]:
    """Columns under our names; one of theirs that has our name already gives way."""
    mapped = {
        ours: theirs
        for ours, theirs in rules.columns.items()
        if theirs in values and takes(setting, ours)
    }
    others = {
        name: value
        for name, value in values.items()
        if name not in mapped and name not in mapped.values()
    }
    renamed = {ours: values[theirs] for ours, theirs in mapped.items()} | others
    if mapped.get("prompt") == "instruction" and "input" in others:  # Alpaca's second half
        renamed["prompt"] = join_input(values["instruction"], renamed.pop("input"))
    return renamed


def _settle_bad_rows(
    bad: Sequence[BrokenRow], setting: str, rules: DataConfig, report: DataReport
) -> None:
    if rules.bad_rows == "refuse":
        counts = Counter(row.reason for row in bad)
        summary = "; ".join(f"{count} x {reason}" for reason, count in counts.most_common(5))
        by_reason = f"By reason: {summary}.\n" if len(bad) > SHOWN_PROBLEMS else ""
        remedy = "Mend or remove these rows, or drop them by data.bad_rows = drop."
        raise_problems(_sentences(bad), f"{by_reason}{remedy} ({setting})")
    grouped = defaultdict(list)
    for row in bad:
        grouped[row.reason].append(row)
    for reason, rows in grouped.items():
        places = [row.where for row in rows]
        report.add(setting, reason, places, dropped=True, example=_example(rows[0]))


def _settle_repeats(items: list[T], setting: str, rules: DataConfig, report: DataReport) -> list[T]:
    first: dict[Hashable, T] = {}
    repeats = []
    for item in items:
        if first.setdefault(item.key, item) is not item:
            repeats.append(item)
    if rules.duplicates == "refuse":
        raise_problems(
            [f"{item.where}: repeats {first[item.key].where}" for item in repeats],
            f"Remove them, or set data.duplicates to keep or drop. ({setting})",
        )
    drop = rules.duplicates == "drop"
    reason = "repeats an earlier row" + ("" if drop else "; each counts as often as it stands")
    report.add(setting, reason, [item.where for item in repeats], dropped=drop)
    return list(first.values()) if drop else items


def _sentences(bad: Sequence[BrokenRow]) -> list[str]:
    """Place and reason of each; what the first one holds stands below it."""
    said = [
        f"{row.where}: {row.reason}" + (f" ({row.detail})" if row.detail else "") for row in bad
    ]
    return (
        said if not bad or not bad[0].excerpt else [f"{said[0]}\n      {bad[0].excerpt}", *said[1:]]
    )


def _example(row: BrokenRow) -> str:
    return row.excerpt + (f" ({row.detail})" if row.detail else "")
