"""Rows of one file: JSON Lines, JSON, CSV or Parquet, the text ones compressed as well."""

import bz2
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ppo.data.strict_json import JsonError, Unusable, fault_of, parse_json
from rlhf_ppo.errors import UserError, shown

KINDS = ".jsonl, .json, .csv or .parquet"
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
MAGIC = {  # first bytes of compressed files
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ\x00": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
}
LONGEST_CELL = 2**31 - 1  # characters; the csv module alone would refuse a cell of 131,073
CHUNK = 1000  # rows of a table that are converted at once


@dataclass(frozen=True)
class Row:
    """One record and where it stands, for error messages: "prompts.jsonl:17"."""

    where: str
    values: dict[str, Any]


@dataclass(frozen=True)
class BrokenRow:
    """A place where a row should be, and why there is none."""

    where: str
    reason: str  # the same words for the same mistake: reports count by it
    detail: str
    excerpt: str = ""  # of the row


AnyRow = Row | BrokenRow


def is_data_file(name: str) -> bool:
    """True for a name that ends as data files do, compressed ones included."""
    path = Path(name.lower())
    return path.suffix in SUFFIXES or path.suffix in COMPRESSED


def read_file(path: Path, setting: str) -> list[AnyRow]:
    """All rows of a file; what is no row has its place in the list too.

    Args:
        path: of the file; its name says what it holds, as in `a.jsonl` or `a.jsonl.gz`.
        setting: that names it, for messages.

    Raises:
        UserError: another kind of file, or one that cannot be read as rows at all.
    """
    compressed = path.suffix.lower() in COMPRESSED
    kind = (path.with_suffix("") if compressed else path).suffix.lower()
    if kind not in SUFFIXES or (compressed and kind == ".parquet"):
        ending = "".join(path.suffixes[-2:] if compressed else [path.suffix])
        raise UserError(
            f"{path}: unknown kind of file {ending!r}. {setting} takes {KINDS}; all but Parquet "
            f"may be compressed ({', '.join(COMPRESSED)})."
        )
    if kind == ".parquet":
        return _read_parquet(path, setting)
    text = _decode(path, _read_bytes(path, setting), setting)
    if kind == ".jsonl":
        return list(_parse_lines(path, text))
    if kind == ".csv":
        return list(_parse_csv(path, text, setting))
    return _parse_json(path, text)


def convert_rows(
    where: str, size: int, convert: Callable[[int, int], Sequence[dict[str, Any]]]
) -> list[AnyRow]:
    """Rows of a table whose values may be damaged, such as text that is no UTF-8.

    Args:
        where: name of the table.
        size: its rows.
        convert: makes values of the rows from one place up to another.
    """
    rows: list[AnyRow] = []
    for start in range(0, size, CHUNK):
        stop = min(start + CHUNK, size)
        try:
            chunk = convert(start, stop)
        except (ValueError, OverflowError, OSError, ArithmeticError):
            rows += [
                _converted(f"{where}[{place}]", place, convert) for place in range(start, stop)
            ]
            continue
        rows += [Row(f"{where}[{start + more}]", dict(item)) for more, item in enumerate(chunk)]
    return rows


def _converted(
    where: str, place: int, convert: Callable[[int, int], Sequence[dict[str, Any]]]
) -> AnyRow:
    try:
        (values,) = convert(place, place + 1)
    except (ValueError, OverflowError, OSError, ArithmeticError) as error:
        return BrokenRow(where, "holds a value that cannot be read", shown(str(error)))
    return Row(where, dict(values))


def _read_bytes(path: Path, setting: str) -> bytes:
    try:
        if path.suffix.lower() not in COMPRESSED:
            return path.read_bytes()
        return _uncompressed(path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        damaged = f" as {path.suffix}" if path.suffix.lower() in COMPRESSED else ""
        raise UserError(f"{path}: cannot be read{damaged} ({reason}). ({setting})") from error


def _uncompressed(path: Path) -> bytes:
    suffix = path.suffix.lower()
    if suffix == ".zst":  # not in Python's library before 3.14
        import pyarrow

        with pyarrow.input_stream(str(path), compression="zstd") as stream:
            return bytes(stream.read())
    opened: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[suffix]
    with opened(path, "rb") as stream:
        return bytes(stream.read())


def _decode(path: Path, raw: bytes, setting: str) -> str:
    for magic, suffix in MAGIC.items():
        if raw.startswith(magic):
            raise UserError(
                f"{path}: holds compressed data. Name it {path.name}{suffix}, or unpack it. "
                f"({setting})"
            )
    try:
        return raw.decode("utf-8-sig")  # spreadsheets put a byte order mark in front
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}:{line}: not UTF-8 text (byte 0x{raw[error.start]:02x}). Save the file as "
            f"UTF-8. ({setting})"
        ) from error


def _parse_lines(path: Path, text: str) -> Iterator[AnyRow]:
    # Not splitlines(): it also cuts at U+2028 and the like, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            values = parse_json(line)
        except JsonError as error:
            yield BrokenRow(where, "not valid JSON", str(error), _cut(line))
            continue
        yield _object(where, values, line)


def _parse_json(path: Path, text: str) -> list[AnyRow]:
    """A list of objects, or JSON Lines under the wrong name: `Dataset.to_json` writes those."""
    try:
        content = parse_json(text)
    except JsonError as error:
        lines = list(_parse_lines(path, text))
        if lines and isinstance(lines[0], Row):
            return lines
        raise UserError(
            f"{path}:{error.line}: not valid JSON ({error}). A .json file holds a list of "
            "objects, or one object a line."
        ) from error
    if not isinstance(content, list):
        raise UserError(
            f"{path}: must hold a JSON list of objects, not {_cut(text.strip())}. Write the "
            "rows as [{...}, {...}]."
        )
    return [_object(f"{path}[{index}]", item) for index, item in enumerate(content)]


def _object(where: str, values: Any, text: str | None = None) -> AnyRow:
    """A row, if a value is an object without anything in it that no stage could use.

    Args:
        where: its place.
        values: what JSON holds there.
        text: what it was made from, if that is one line.
    """
    excerpt = shown(values) if text is None else _cut(text)
    if isinstance(values, Unusable):
        return BrokenRow(where, f"is {values.reason}", values.detail, excerpt)
    if not isinstance(values, dict):
        return BrokenRow(where, "must be a JSON object", "", excerpt)
    for name, value in values.items():
        fault = fault_of(name) or fault_of(value)
        if fault is not None:
            reason = f"column {shown(name, 40)[1:-1]} holds {fault.reason}"
            return BrokenRow(where, reason, fault.detail, excerpt)
    return Row(where, values)


def _parse_csv(path: Path, text: str, setting: str) -> Iterator[AnyRow]:
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield from _csv_rows(path, csv.reader(io.StringIO(text, newline=""), strict=True), setting)
    finally:
        csv.field_size_limit(before)


def _csv_rows(path: Path, reader: Any, setting: str) -> Iterator[AnyRow]:
    header: list[str] = []
    line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote that is never closed swallows the rest: what follows cannot be trusted.
            raise UserError(
                f"{path}:{line}: not valid CSV ({error}). Quote cells that hold commas, quotes or "
                f'line ends with ", and double each " inside. ({setting})'
            ) from error
        where, line = f"{path}:{line}", reader.line_num + 1
        if not cells:
            continue
        if not header:
            header = cells
            _check_header(where, header, setting)
        elif len(cells) != len(header):
            detail = f"{len(cells)} where the first line names {len(header)}"
            yield BrokenRow(where, "wrong number of cells", detail, shown(cells))
        else:
            yield _object(where, dict(zip(header, map(_cell, cells), strict=True)))


def _check_header(where: str, header: list[str], setting: str) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or not all(name.strip() for name in header):
        problem = f"names {shown(twice)} twice" if twice else "has a column without a name"
        raise UserError(
            f"{where}: the first line {problem}: {shown(header)}. It must name each column once. "
            f"({setting})"
        )


def _cell(text: str) -> Any:
    """A cell as text; a list of chat messages, which CSV can only hold as JSON, as that list."""
    if text.lstrip().startswith("[{"):
        try:
            return parse_json(text)
        except JsonError:
            return text
    return text


def _read_parquet(path: Path, setting: str) -> list[AnyRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}). ({setting})") from error
    return convert_rows(
        str(path), table.num_rows, lambda start, stop: table.slice(start, stop - start).to_pylist()
    )


def _cut(text: str) -> str:
    """The beginning of a text that stands in one line of a message."""
    return shown(text if len(text) <= 100 else text[:100] + "...")
