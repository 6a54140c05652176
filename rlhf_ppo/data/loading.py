"""Rows from a file, a saved `datasets` folder or a hub id, each knowing its place."""

import hashlib
import re
from pathlib import Path
from typing import Any

from rlhf_ppo.data.files import KINDS, convert_rows, is_data_file, read_file
from rlhf_ppo.data.files import AnyRow as AnyRow
from rlhf_ppo.data.files import BrokenRow as BrokenRow
from rlhf_ppo.data.files import Row as Row
from rlhf_ppo.errors import UserError, shown
from rlhf_ppo.hub import hub_problem, not_here

SLICE = re.compile(r"^(?P<place>.+)(?P<slice>\[[^\[\]/]*\])$")


def read_rows(source: str, setting: str) -> list[AnyRow]:
    """Read all rows of a source; what is no row has its place in the list too.

    A place is `file:line` in JSONL and CSV, and `source[index]`, counted from 0, elsewhere; a slice
    leaves places as they are in the whole.

    Args:
        source: file, folder or hub id, see `DataConfig`; files and folders may have a slice.
        setting: name of the setting that holds `source`, for messages.

    Raises:
        UserError: missing, unreadable or empty.
    """
    place, part = local_parts(source)
    if place is None and _looks_like_path(source):
        raise UserError(
            f"{setting}: no such file or folder: {shown(source)}. Give a {KINDS} file, a folder "
            "saved by `datasets`, or a hub id like trl-lib/tldr:train."
        )
    if place is None:
        rows = _read_hub(source, setting)
    elif place.is_file():
        rows = read_file(place, setting)
    else:
        rows = _read_saved_folder(place, setting)
    if part is not None:
        rows = _sliced(rows, part, source, setting)
    if not rows:
        raise UserError(f"{source}: holds no rows. {setting} needs at least one.")
    return rows


def local_parts(source: str) -> tuple[Path | None, str | None]:
    """The file or folder that a source names, and its slice, such as "[:100]".

    Returns:
        Path and slice; no path for what is not here, no slice for a whole source. A file whose
        own name ends with brackets is that file.
    """
    if _exists(Path(source)):
        return Path(source), None
    found = SLICE.match(source)
    if found is not None and _exists(Path(found["place"])):
        return Path(found["place"]), found["slice"]
    return None, None


def fingerprint(source: str) -> str:
    """Changes when the data changes; a hub id stands for itself.

    A file is hashed whole. Of a folder's files (model weights, say) name, size and both ends are:
    reading all of a 15 GB model to start a run would take longer than loading it.
    """
    path, part = local_parts(source)
    digest = hashlib.sha256()
    if path is None:
        return source
    if path.is_file():
        digest.update(path.read_bytes())
    else:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                digest.update(f"{file.relative_to(path)} {file.stat().st_size}".encode())
                digest.update(_ends(file))
    return digest.hexdigest()[:16] + (part or "")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than a path can be, or with a zero byte
        return False


def _sliced(rows: list[AnyRow], part: str, source: str, setting: str) -> list[AnyRow]:
    """The rows of a slice, read as `datasets` reads the slice of a hub id's split."""
    import datasets

    try:
        spec: Any = datasets.ReadInstruction.from_spec(f"rows{part}")  # type: ignore[no-untyped-call]
        (place,) = spec.to_absolute({"rows": len(rows)})
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"{setting}: {shown(source)}: {shown(part)} is no slice ({error}). Write it as "
            "[:1000], [1000:2000], [-500:] or [:10%]."
        ) from error
    kept = rows[place.from_ : place.to]
    if not kept:
        raise UserError(
            f"{setting}: {shown(source)}: no rows in the slice {part}; there are {len(rows)}."
        )
    return kept


def _ends(file: Path, size: int = 2**20) -> bytes:
    """The first and the last megabyte of a file."""
    with file.open("rb") as stream:
        first = stream.read(size)
        stream.seek(max(0, file.stat().st_size - size))
        return first + stream.read(size)


def _looks_like_path(source: str) -> bool:
    if source.startswith((".", "/", "~")) or "\0" in source or len(source) > 200:
        return True
    whole = source.partition("[")[0].partition(":")[0]
    return whole.count("/") > 1 or is_data_file(whole)


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
    return _of_dataset(str(path), content)


def _read_hub(source: str, setting: str) -> list[AnyRow]:
    import datasets

    name, config, split = hub_parts(source)
    hub_problem()  # before the libraries try for a minute
    try:
        content = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{setting}: {shown(source)} is neither a file nor a folder here, and loading it as a "
            "hub id (owner/name, owner/name:split or owner/name:config:split) failed:\n"
            f"{not_here(name, 'dataset') or error}"
        ) from error
    return _of_dataset(source, content)


def _of_dataset(where: str, content: Any) -> list[AnyRow]:
    def convert(start: int, stop: int) -> list[dict[str, Any]]:
        return [dict(item) for item in content.select(range(start, stop))]

    return convert_rows(where, len(content), convert)


def hub_parts(source: str) -> tuple[str, str | None, str]:
    """Name, config and split of "name", "name:split" or "name:config:split".

    A split may be a slice, as in "owner/name:train[:1000]".
    """
    name, _, rest = source.partition(":")
    config, colon, split = rest.partition(":")
    if not colon or "[" in config:
        return name, None, rest or "train"
    return name, config or None, split or "train"
