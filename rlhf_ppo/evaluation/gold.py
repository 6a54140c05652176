"""A scorer that training never sees: loaded from a file or a module, checked, averaged."""

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.errors import UserError

Parts = dict[str, float]


class GoldScorer:
    """Calls `function(prompts, responses, **columns) -> list[dict]` and checks what comes back.

    Each dict holds `score` and any number of named parts; a plain float stands for the score
    alone. `columns` are the other columns of the prompts' rows, one list each.
    """

    def __init__(self, target: str) -> None:
        """Load `target`, "folder/file.py:function" or "module:function".

        Raises:
            UserError: no such file, module or function.
        """
        self.target = target
        self.function = load_function(target, "evaluation.gold")

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Parts]:
        """One dict a response.

        Raises:
            UserError: the function raises, or returns something that is not a finite score.
        """
        names = sorted(set.intersection(*(set(prompt.columns) for prompt in prompts)))
        columns = {name: [prompt.columns[name] for prompt in prompts] for name in names}
        try:
            found = self.function([p.text for p in prompts], list(responses), **columns)
            results = [_as_parts(value) for value in found]
        except Exception as error:
            raise UserError(
                f"evaluation.gold: {self.target} failed: {type(error).__name__}: {error}"
            ) from error
        if len(results) != len(responses):
            raise UserError(
                f"evaluation.gold: {self.target} returned {len(results)} scores for "
                f"{len(responses)} responses; it must return one each."
            )
        for response, parts in zip(responses, results, strict=True):
            if "score" not in parts or not all(math.isfinite(v) for v in parts.values()):
                raise UserError(
                    f"evaluation.gold: {self.target} returned {parts} for {response!r}; each "
                    "result needs a finite `score`."
                )
        return results

    def mean(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> float:
        """Mean gold score of some responses."""
        results = self.score(prompts, responses)
        return sum(parts["score"] for parts in results) / len(results)


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
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise UserError(f"{setting}: no such file: {place} (in {target!r}).")
            spec = importlib.util.spec_from_file_location(f"gold_{Path(place).stem}", place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own module raises while it is loaded
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{setting}: cannot import {place!r}: {reason}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{setting}: {place} has no function {name!r}.")
    found: Callable[..., Any] = function
    return found


def _as_parts(value: Any) -> Parts:
    if isinstance(value, dict):
        return {str(name): float(number) for name, number in value.items()}
    return {"score": float(value)}
