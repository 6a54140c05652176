"""Rows from a file, a saved `datasets` folder or a hub id, each knowing its place."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ppo.errors import UserError

KINDS = ".jsonl, .json, .csv or .parquet"
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
LONGEST_CELL = 2**31 - 1  # characters; the csv module alone would refuse a cell of 131,073


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


AnyRow = Row | BrokenRow


def read_rows(source: str, setting: str) -> list[AnyRow]:
    """Read all rows of a source; what is no row has its place in the list too.

    A place is `file:line` in JSONL and CSV, and `source[index]`, counted from 0, elsewhere.

    Args:
        source: file, folder or hub id, see `DataConfig`.
        setting: name of the setting that holds `source`, for messages.

    Raises:
        UserError: missing, unreadable or empty.
    """
    path = Path(source)
    if path.is_file():
        rows = _read_file(path, setting)
    elif path.is_dir():
        rows = _read_saved_folder(path, setting)
    elif _looks_like_path(source):
        raise UserError(
            f"{setting}: no such file or folder: {source}. Give a {KINDS} file, a folder saved by "
            "`datasets`, or a hub id like trl-lib/tldr:train."
        )
    else:
        rows = _read_hub(source, setting)
    if not rows:
        raise UserError(f"{source}: holds no rows. {setting} needs at least one.")
    return rows


def fingerprint(source: str) -> str:
    """Changes when the data changes; a hub id stands for itself.

    A file is hashed whole. Of a folder's files (model weights, say) name, size and both ends are:
    reading all of a 15 GB model to start a run would take longer than loading it.
    """
    path = Path(source)
    digest = hashlib.sha256()
    if path.is_file():
        digest.update(path.read_bytes())
    elif path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file():
                digest.update(f"{file.relative_to(path)} {file.stat().st_size}".encode())
                digest.update(_ends(file))
    else:
        return source
    return digest.hexdigest()[:16]


def _ends(file: Path, size: int = 2**20) -> bytes:
    """The first and the last megabyte of a file."""
    with file.open("rb") as stream:
        first = stream.read(size)
        stream.seek(max(0, file.stat().st_size - size))
        return first + stream.read(size)


def _looks_like_path(source: str) -> bool:
    name = source.partition(":")[0].rsplit("/", 1)[-1]
    deep = source.partition(":")[0].count("/") > 1
    return source.startswith((".", "/", "~")) or deep or Path(name).suffix in SUFFIXES


def _read_file(path: Path, setting: str) -> list[AnyRow]:
    if path.suffix == ".parquet":
        return _read_parquet(path, setting)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of file {path.suffix!r}. {setting} takes {KINDS}.")
    text = _read_text(path, setting)
    if path.suffix == ".jsonl":
        return list(_parse_lines(path, text))
    if path.suffix == ".csv":
        return list(_parse_csv(path, text, setting))
    return _parse_json(path, text)


def _read_text(path: Path, setting: str) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). ({setting})") from error
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
            values = json.loads(line)
        except json.JSONDecodeError as error:
            yield BrokenRow(where, "not valid JSON", f"{error.msg}: {_shorten(line)}")
            continue
        yield _object(where, values)


def _parse_json(path: Path, text: str) -> list[AnyRow]:
    """A list of objects, or JSON Lines under the wrong name: `Dataset.to_json` writes those."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        lines = list(_parse_lines(path, text))
        if lines and isinstance(lines[0], Row):
            return lines
        raise UserError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg}). A .json file holds a list of "
            "objects, or one object a line."
        ) from error
    if not isinstance(content, list):
        raise UserError(
            f"{path}: must hold a JSON list of objects, not {_shorten(text.strip())}. Write the "
            "rows as [{...}, {...}]."
        )
    return [_object(f"{path}[{index}]", item) for index, item in enumerate(content)]


def _object(where: str, values: Any) -> AnyRow:
    if isinstance(values, dict):
        return Row(where, values)
    return BrokenRow(where, "must be a JSON object", _shorten(json.dumps(values)))


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
            yield BrokenRow(where, "wrong number of cells", detail)
        else:
            yield Row(where, dict(zip(header, map(_cell, cells), strict=True)))


def _check_header(where: str, header: list[str], setting: str) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or not all(name.strip() for name in header):
        problem = f"names {twice} twice" if twice else "has a column without a name"
        raise UserError(
            f"{where}: the first line {problem}: {header}. It must name each column once. "
            f"({setting})"
        )


def _cell(text: str) -> Any:
    """A cell as text; a list of chat messages, which CSV can only hold as JSON, as that list."""
    if text.lstrip().startswith("[{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text
    return text


def _read_parquet(path: Path, setting: str) -> list[AnyRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        content = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}). ({setting})") from error
    return [Row(f"{path}[{index}]", item) for index, item in enumerate(content.to_pylist())]


def _read_saved_folder(path: Path, setting: str) -> list[AnyRow]:
    import datasets

    try:
        content = datasets.load_from_disk(str(path))
    except (FileNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a folder saved by `datasets` ({error}). {setting} takes what "
            f"Dataset.save_to_disk wrote; of other folders, name one {KINDS} file."
        ) from error
    if isinstance(content, datasets.DatasetDict):
        raise UserError(
            f"{path}: holds the splits {sorted(content)}; give one of them, as in "
            f"{path}/{sorted(content)[0]}. ({setting})"
        )
    return [Row(f"{path}[{index}]", dict(item)) for index, item in enumerate(content)]


def _read_hub(source: str, setting: str) -> list[AnyRow]:
    import datasets

    name, config, split = hub_parts(source)
    try:
        content = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{setting}: {source!r} is neither a file nor a folder here, and loading it as a hub "
            f"id (owner/name, owner/name:split or owner/name:config:split) failed: {error}"
        ) from error
    return [Row(f"{source}[{index}]", dict(item)) for index, item in enumerate(content)]


def hub_parts(source: str) -> tuple[str, str | None, str]:
    """Name, config and split of "name", "name:split" or "name:config:split".

    A split may be a slice, as in "owner/name:train[:1000]".
    """
    name, _, rest = source.partition(":")
    config, colon, split = rest.partition(":")
    if not colon or "[" in config:
        return name, None, rest or "train"
    return name, config or None, split or "train"


def _shorten(text: str, width: int = 60) -> str:
    return repr(text if len(text) <= width else text[:width] + "...")
