"""A Python function of the user: found, checked before it is needed, its errors told by line."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.errors import UserError, shown


class UserCodeError(Exception):
    """The user's function raised; the message says in which file and line."""


class UserFunction:
    """Calls `function(prompts, responses, **columns)` with the columns that it takes.

    Prompts are given as they stand in the data, responses as text, and each column that every
    prompt has as a list.
    """

    def __init__(self, target: str, setting: str) -> None:
        """Load `target`, "folder/file.py:function" or "module:function".

        Raises:
            UserError: no such file, module or function, or one that takes other arguments.
        """
        self.target, self.setting = target, setting
        self.function = load_function(target, setting)
        self.needed, self.refused, self.taken = _columns_of(self.function, f"{setting}: {target}")

    def check(self, prompts: Sequence[Prompt]) -> None:
        """See that each column the function must have stands in every row.

        Raises:
            UserError: names the column and the first row that lacks it.
        """
        for name in self.needed:
            for prompt in prompts:
                if name not in prompt.columns:
                    columns = ", ".join(sorted(prompt.columns)) or "none"
                    raise UserError(
                        f"{self.setting}: {self.target} needs the column {name!r}, but "
                        f"{prompt.where} has none (columns besides the prompt: {columns})."
                    )

    def call(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Any]:
        """What the function returns, one entry a response.

        Raises:
            UserCodeError: the function raised.
            UserError: it returned something else than a list of that length.
        """
        names = set.intersection(*(set(prompt.columns) for prompt in prompts)) - self.refused
        if self.taken is not None:
            names &= self.taken
        columns = {name: [prompt.columns[name] for prompt in prompts] for name in sorted(names)}
        try:
            found = self.function([prompt.text for prompt in prompts], list(responses), **columns)
            if isinstance(found, str | bytes | dict):
                raise TypeError(f"returned {shown(found)}, not a list of numbers")
            results = list(found)
        # SystemExit too: a function that calls sys.exit() would end the run with code 0.
        except (Exception, SystemExit) as error:
            raise UserCodeError(_tell(error, self.function)) from error
        if len(results) != len(responses):
            raise UserError(
                f"{self.setting}: {self.target} returned {len(results)} scores for "
                f"{len(responses)} responses; it must return one each."
            )
        return results


def load_function(target: str, setting: str) -> Callable[..., Any]:
    """Import a function from "folder/file.py:function" or "module:function".

    Raises:
        UserError: not of that form, or nothing there.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise UserError(
            f"{setting}: {target!r} must look like folder/file.py:function or module:function."
        )
    try:
        module = (
            _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        )
    except FileNotFoundError as error:
        if place.endswith(".py") and not Path(place).is_file():
            raise UserError(f"{setting}: no such file: {place} (in {target!r}).") from error
        raise UserError(f"{setting}: cannot import {place!r}: {_tell(error)}") from error
    except (Exception, SystemExit) as error:  # whatever the user's own module raises
        raise UserError(f"{setting}: cannot import {place!r}: {_tell(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{setting}: {place} has no function {name!r}.")
    found: Callable[..., Any] = function
    return found


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(path)
    name = f"user_{path.stem}_{abs(hash(str(path.resolve())))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    spec.loader.exec_module(module)
    return module


def _columns_of(
    function: Callable[..., Any], what: str
) -> tuple[list[str], set[str], set[str] | None]:
    """Names of the columns that a function must have, cannot take, and takes (None: any other).

    Raises:
        UserError: it does not take prompts and responses.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some functions of C have none
        return [], set(), set()
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    any_place = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    bad = [p.name for p in by_place[2:] if p.kind is p.POSITIONAL_ONLY]
    if (len(by_place) < 2 and not any_place) or bad or inspect.iscoroutinefunction(function):
        raise UserError(
            f"{what} takes ({', '.join(str(p) for p in parameters)}); it must be a plain function "
            "(prompts, responses, **columns)."
        )
    named = by_place[2:] + [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    needed = [p.name for p in named if p.default is p.empty]
    refused = {p.name for p in by_place[:2]}  # a column of that name would be given twice
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return needed, refused, None
    return needed, refused, {p.name for p in named}


def _tell(error: BaseException, function: Any = None) -> str:
    """`file.py:12: ValueError: what it says`, the line being the last in the user's own file."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).resolve())
    code = getattr(function, "__code__", None)
    theirs = [f for f in frames if code is not None and f.filename == code.co_filename]
    outside = [f for f in frames if f.filename != ours and not f.filename.startswith("<frozen")]
    text = f"{type(error).__name__}: {error}"
    if theirs or outside:
        frame = (theirs or outside)[-1]
        return f"{frame.filename}:{frame.lineno}: {text}"
    return f"{code.co_filename}:{code.co_firstlineno}: {text}" if code is not None else text
