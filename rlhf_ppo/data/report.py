"""What became of the rows of each source: counts by reason with places, shown and kept."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_ppo.data.lengths import LengthLimit
from rlhf_ppo.errors import UserError

REPORT_FILE = "data_report.json"
SHOWN_PROBLEMS = 10
SHOWN_PLACES = 5


@dataclass(frozen=True)
class Finding:
    """Rows of one source that something is to be said of, for one reason."""

    reason: str
    dropped: bool
    places: tuple[str, ...]
    example: str = ""  # what the first of them holds, shortened
    advice: str = ""  # what would keep the rows

    def lines(self, rows: int) -> list[str]:
        """As on the terminal; `rows` are all that the source has."""
        shown = ", ".join(_file_once(self.places[:SHOWN_PLACES]))
        rest = ", ..." if len(self.places) > SHOWN_PLACES else ""
        example = [f"  such as {self.example}"] if self.example else []
        advice = f"; {self.advice}" if self.advice else ""
        return [f"{self.count(rows)}: {self.reason}{advice} ({shown}{rest})", *example]

    def count(self, rows: int) -> str:
        """How many rows, what becomes of them, and their share of all: "3 dropped (1.2 %)"."""
        found = len(self.places)
        share = "less than 0.1" if found * 1000 < rows else f"{100 * found / rows:.1f}"
        return f"{found} {'dropped' if self.dropped else 'kept'} ({share} %)"


def _file_once(places: Sequence[str]) -> list[str]:
    """`a.jsonl:3`, `a.jsonl:5` as people would say it: the file with the first line alone."""
    file = places[0].rpartition(":")[0] + ":"
    return [places[0], *(place.removeprefix(file) for place in places[1:])]


class TooLong(NamedTuple):
    """A row that does not fit, and its length (tokens)."""

    where: str
    tokens: int


@dataclass
class SourceReport:
    """One source: how many rows it has, which columns, what was found."""

    source: str
    rows: int
    columns: tuple[str, ...]
    findings: list[Finding] = field(default_factory=list)

    @property
    def used(self) -> int:
        """Rows that the run uses."""
        return self.rows - sum(len(item.places) for item in self.findings if item.dropped)


class DataReport:
    """Collects, by setting, what was found while data were read and tried on the models."""

    def __init__(self) -> None:
        """Nothing found yet."""
        self.sources: dict[str, SourceReport] = {}

    def add_source(self, setting: str, source: str, rows: int, columns: Sequence[str]) -> None:
        """A source was read; `columns` are its own names."""
        self.sources[setting] = SourceReport(source, rows, tuple(columns))

    def add(
        self,
        setting: str,
        reason: str,
        places: Sequence[str],
        *,
        dropped: bool,
        example: str = "",
    ) -> None:
        """Something was found in a source that was read; nothing, if `places` is empty."""
        if places:
            finding = Finding(reason, dropped, tuple(places), example)
            self.sources[setting].findings.append(finding)

    def add_cut(self, setting: str, rule: str, places: Sequence[str]) -> None:
        """Held-out rows were cut from a source: `data.prompts` fills `data.heldout_prompts`."""
        if places:
            item = self.sources[setting]
            section, _, name = setting.partition(".")
            held = SourceReport(f"cut from {item.source}", len(places), item.columns)
            self.sources[f"{section}.heldout_{name}"] = held
            self.add(setting, f"held out by {rule}, not trained on", places, dropped=True)

    def forget(self, *settings: str) -> None:
        """Sources that were read for the sake of others alone."""
        for setting in settings:
            self.sources.pop(setting, None)

    def add_long(
        self,
        setting: str,
        long: Sequence[TooLong],
        limit: LengthLimit,
        lengths: Sequence[int],
        *,
        refuse: bool,
    ) -> None:
        """Rows that are longer than a limit are dropped; what would keep them is said.

        Args:
            setting: that names the data.
            long: these rows.
            limit: of the tokens of a row.
            lengths: of all rows (tokens).
            refuse: stop the run instead.

        Raises:
            UserError: there are some and `refuse` is set; names each with its length.
        """
        if not long:
            return
        if refuse:
            longest = max(row.tokens for row in long)
            raise_problems(
                [f"{row.where}: {row.tokens} tokens, more than {limit}" for row in long],
                f"{limit.remedy(longest)} data.long_rows = drop leaves them out. ({setting})",
            )
        places = tuple(row.where for row in long)
        found = Finding(f"longer than {limit}", True, places, advice=limit.advice(lengths))
        self.sources[setting].findings.append(found)

    def lines(self) -> list[str]:
        """For the terminal: every source, and what was found in it.

        What was found in the same file for another setting already is not listed again.
        """
        printed: dict[tuple[str, Finding], str] = {}
        shown = []
        for setting, item in self.sources.items():
            count = "all" if item.used == item.rows else f"{item.used} of"
            shown.append(f"{setting}: {count} {item.rows} rows used ({item.source})")
            for finding in item.findings:
                first = printed.setdefault((item.source, finding), setting)
                if first == setting:
                    shown += [f"  {line}" for line in finding.lines(item.rows)]
                else:
                    shown.append(f"  {finding.count(item.rows)}: {finding.reason} (as in {first})")
        return shown

    def write(self, folder: Path) -> None:
        """Write every place of every finding to `data_report.json`.

        A stage that runs alone reads its own data only: what stands there of others is kept.
        """
        path = folder / REPORT_FILE
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = {}
        for setting, item in self.sources.items():
            content[setting] = {
                "source": item.source,
                "rows": item.rows,
                "used": item.used,
                "findings": [
                    {
                        "reason": finding.reason,
                        "rows": len(finding.places),
                        "dropped": finding.dropped,
                        **({"example": finding.example} if finding.example else {}),
                        "places": list(finding.places),
                    }
                    | ({"advice": finding.advice} if finding.advice else {})
                    for finding in item.findings
                ],
            }
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def raise_problems(problems: Sequence[str], remedy: str) -> None:
    """Raise one `UserError` that lists the problems, if there are any.

    Raises:
        UserError: `problems` is not empty.
    """
    if not problems:
        return
    shown = "\n".join(f"  - {problem}" for problem in problems[:SHOWN_PROBLEMS])
    more = len(problems) - SHOWN_PROBLEMS
    rest = f"\n  ... and {more} more" if more > 0 else ""
    raise UserError(f"{len(problems)} bad row(s) in the data:\n{shown}{rest}\n{remedy}")
