"""Rows from a JSONL or JSON file, a saved `datasets` folder or a hub id, each knowing its place."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ppo.errors import UserError

SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class Row:
    """One record and where it stands, for error messages: "prompts.jsonl:17"."""

    where: str
    values: dict[str, Any]


def read_rows(source: str, setting: str) -> list[Row]:
    """Read all rows of a source.

    Args:
        source: file, folder or hub id, see `DataConfig`.
        setting: name of the setting that holds `source`, for messages.

    Raises:
        UserError: missing, unreadable, empty or broken; names every broken line (up to ten).
    """
    path = Path(source)
    if path.is_file():
        rows = _read_file(path, setting)
    elif path.is_dir():
        rows = _read_saved_folder(path, setting)
    elif _looks_like_path(source):
        raise UserError(
            f"{setting}: no such file or folder: {source}. Give a .jsonl or .json file, a folder "
            "saved by `datasets`, or a hub id like trl-lib/tldr:train."
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


def raise_problems(problems: list[str], remedy: str) -> None:
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


def _looks_like_path(source: str) -> bool:
    name = source.rsplit("/", 1)[-1]
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or "." in name


def _read_file(path: Path, setting: str) -> list[Row]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}). ({setting})") from error
    if path.suffix == ".jsonl":
        return list(_parse_lines(path, text))
    if path.suffix == ".json":
        return _parse_list(path, text)
    raise UserError(
        f"{path}: unknown kind of file {path.suffix!r}. {setting} takes .jsonl (one JSON object a "
        "line) or .json (a list of objects)."
    )


def _parse_lines(path: Path, text: str) -> Iterator[Row]:
    problems = []
    # Not splitlines(): it also cuts at U+2028 and the like, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{where}: not valid JSON ({error.msg}): {_shorten(line)}")
            continue
        if not isinstance(values, dict):
            problems.append(f"{where}: must be a JSON object, not {_shorten(line)}")
            continue
        yield Row(where, values)
    raise_problems(problems, "Mend or remove these lines.")


def _parse_list(path: Path, text: str) -> list[Row]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg}). One object a line belongs in a "
            ".jsonl file."
        ) from error
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise UserError(f"{path}: must hold a JSON list of objects.")
    return [Row(f"{path}[{index}]", item) for index, item in enumerate(content)]


def _read_saved_folder(path: Path, setting: str) -> list[Row]:
    import datasets

    try:
        content = datasets.load_from_disk(str(path))
    except (FileNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a folder saved by `datasets` ({error}). {setting} takes what "
            "Dataset.save_to_disk wrote."
        ) from error
    if isinstance(content, datasets.DatasetDict):
        raise UserError(
            f"{path}: holds the splits {sorted(content)}; give one of them, as in "
            f"{path}/{sorted(content)[0]}. ({setting})"
        )
    return [Row(f"{path}[{index}]", dict(item)) for index, item in enumerate(content)]


def _read_hub(source: str, setting: str) -> list[Row]:
    import datasets

    name, _, split = source.partition(":")
    try:
        content = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{setting}: {source!r} is neither a file nor a folder here, and loading it as a hub "
            f"id failed: {error}"
        ) from error
    return [Row(f"{source}[{index}]", dict(item)) for index, item in enumerate(content)]


def _shorten(text: str, width: int = 60) -> str:
    return repr(text if len(text) <= width else text[:width] + "...")
