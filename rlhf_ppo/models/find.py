"""Where a model is: a folder, an adapter's folder with the base that it names, or a hub id."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from rlhf_ppo.errors import UserError
from rlhf_ppo.hub import not_here
from rlhf_ppo.models.files import ADAPTER_FILE, WEIGHTS, check_files, is_adapter, loading
from rlhf_ppo.models.lora import base_path


def check_model_path(path: str, setting: str) -> None:
    """A local folder must exist and hold files that can be read; a hub id must be in reach.

    Raises:
        UserError: `path`, or the base of an adapter there, looks like a folder that is not there,
            holds no model or a damaged file, or is a hub id that cannot be had.
    """
    folder = Path(path)
    if is_adapter(path):
        check_files(path, setting)
        file = folder / ADAPTER_FILE
        try:
            check_model_path(base_path(path, setting), f"{setting}, base of {path}")
        except UserError as error:
            raise UserError(
                f"{error} The base is what base_model_name_or_path in {file} names; it is looked "
                f"for from the current folder and from {path}."
            ) from error
    elif folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{setting}: {path} holds no config.json; it is not a model folder.")
        check_files(path, setting)
    elif folder.is_file():
        raise UserError(f"{setting}: {path} is a file. Give the folder of a model, or a hub id.")
    elif path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"{setting}: no such model folder: {path}. Give a folder or a hub id.")
    elif not _in_cache(path, setting, ("config.json", "tokenizer_config.json")):
        problem = not_here(path, "model")
        if problem is not None:
            raise UserError(f"{setting}: {problem}")


def is_here(path: str, setting: str) -> bool:
    """Whether the weights are on this machine: a folder, or a hub model in the local cache.

    Raises:
        UserError: `path` is no possible name of a hub model.
    """
    return Path(path).is_dir() or _in_cache(path, setting, WEIGHTS)


def _in_cache(name: str, setting: str, files: Sequence[str]) -> bool:
    """Whether the local cache has one of the files of a hub model.

    Raises:
        UserError: it is no possible name of one.
    """
    with loading("a model", name, setting):
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)
