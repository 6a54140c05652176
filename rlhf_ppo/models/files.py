"""What a model folder holds, looked at before anything is loaded: each damage by its own name.

Folders come from other people and other programs. What libraries raise on a damaged one has no
common base and seldom names the file, so `loading` turns all of it into one `UserError`.
"""

import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rlhf_ppo.errors import UserError
from rlhf_ppo.hub import not_here

ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# In the order in which Transformers looks for them: it loads the first that is there.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
)
LFS_POINTER = b"version https://git-lfs"


def is_adapter(path: str) -> bool:
    """Whether a folder holds a PEFT adapter in place of a whole model."""
    return (Path(path) / ADAPTER_FILE).is_file()


def check_files(path: str, setting: str) -> None:
    """The folder of a model or adapter holds files that can be read; headers only, no weights.

    Raises:
        UserError: names the first damaged file, what is wrong with it, and the remedy.
    """
    folder = Path(path)
    if is_adapter(path):
        names = [ADAPTER_FILE, *_first_of(folder, ADAPTER_WEIGHTS)]
        if len(names) == 1:
            raise UserError(
                f"{setting}: {path} holds {ADAPTER_FILE}, but no {ADAPTER_WEIGHTS[0]}; the "
                "adapter's weights are missing. Copy the whole folder again."
            )
    else:
        names = ["config.json", "generation_config.json", *_first_of(folder, WEIGHTS)]
    problem = first_damage(folder, [*names, *_shards(folder, names)])
    if problem is not None:
        raise UserError(f"{setting}: {problem}")


def first_damage(folder: Path, names: Sequence[str]) -> str | None:
    """What is wrong with the first damaged file among those of `names` that are in a folder."""
    for name in names:
        file = folder / name
        problem = _damage(file) if file.is_file() else None
        if problem is not None:
            return f"{file} {problem}"
    return None


@contextmanager
def loading(what: str, path: str, setting: str, names: Sequence[str] = ()) -> Iterator[None]:
    """Turn whatever a library raises while it reads a model into one `UserError`.

    Args:
        what: is loaded, for the message.
        path: folder or hub id.
        setting: for the message.
        names: files that are looked at for the cause, if `path` is a folder.

    Raises:
        UserError: in place of any other exception. All of them are caught on purpose: inside runs
            code of other libraries alone, over files of other people; `tokenizers` raises a bare
            `Exception`, PyTorch `UnpicklingError` and `EOFError`, Safetensors its own, attention
            and quantisation `ImportError`, configurations `KeyError`, `TypeError`, ...
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        here = Path(path).is_dir()
        reason = first_damage(Path(path), names) if here else None
        if reason is None and not here and isinstance(error, OSError):
            reason = not_here(path, "model")
        raise UserError(
            f"{setting}: cannot load {what} from {path!r}: {reason or _explain(error)}"
        ) from error


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: it holds something else, or is no text.
    """
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"holds {type(found).__name__} in place of a JSON object")
    return found


def stored_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in an adapter folder, in the order of their names."""
    file = Path(path) / ADAPTER_WEIGHTS[0]
    if not file.is_file():
        old = torch.load(Path(path) / ADAPTER_WEIGHTS[1], map_location="cpu", weights_only=True)
        return {name: tuple(old[name].shape) for name in sorted(old)}
    with safe_open(file, framework="pt") as stored:
        names = sorted(stored.keys())
        return {name: tuple(stored.get_slice(name).get_shape()) for name in names}


def quantized_by(config: Any) -> str | None:
    """How the weights of a configuration are quantised (gptq, bitsandbytes, ...); None: not."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = (
        found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", "")
    )
    return str(getattr(method, "value", method) or "an unnamed method")


def _damage(file: Path) -> str | None:
    """What is wrong with a file; None: nothing that can be seen without reading all of it."""
    try:
        with file.open("rb") as opened:
            start = opened.read(len(LFS_POINTER))
    except OSError as error:
        return f"cannot be read ({error.strerror or error})."
    if start == LFS_POINTER:
        return (
            "is a Git LFS pointer, not the file itself. Fetch the files of its repository (git lfs "
            "pull), or download the model again (hf download)."
        )
    again = "Copy or download it again."
    if not start:
        return f"is empty (0 bytes). {again}"
    try:
        if file.suffix == ".json":
            read_object(file)
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                pass
        elif file.suffix == ".bin" and start.startswith(b"PK") and not zipfile.is_zipfile(file):
            return f"is damaged or cut short (no end of the archive). {again}"
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError, JSONDecodeError
        return f"is damaged: {error}. {again}"
    except (SafetensorError, OSError) as error:
        return f"is damaged or cut short ({error}). {again}"
    return None


def _first_of(folder: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if (folder / name).is_file()][:1]


def _shards(folder: Path, names: Sequence[str]) -> list[str]:
    """The files that an index among `names` lists.

    Raises:
        UserError: one is missing, or the index lists none.
    """
    for name in names:
        if not name.endswith(".index.json"):
            continue
        index = folder / name
        problem = _damage(index)
        if problem is not None:
            raise UserError(f"{index} {problem}")
        listed = read_object(index).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise UserError(f"{index} is damaged: it has no weight_map. Copy or download it again.")
        shards = sorted({str(shard) for shard in listed.values()})
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise UserError(
                f"{index} lists {len(shards)} files of weights, and {_some(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not there. Copy or download the rest."
            )
        return shards
    return []


def _explain(error: Exception) -> str:
    """The first line of what a library raised, with what can be done about common causes."""
    lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()]
    if len(lines) > 1 and "state_dict" in lines[0]:
        lines[0] = lines[1]  # which tensor; the first line names the class alone
    said = lines[0][:300] if lines else ""
    if "trust_remote_code" in str(error):
        return (
            "it needs Python code of its own (`auto_map` in its config.json or "
            "tokenizer_config.json), and this program runs no code that comes with a model. Use "
            "a version of the model for a class that Transformers has."
        )
    if isinstance(error, ImportError):
        return f"a package is missing here: {said} Install it, or use a model without that need."
    known = isinstance(error, OSError | ValueError | ImportError) and said
    return said if known else f"{type(error).__name__}: {said}"


def _some(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"
