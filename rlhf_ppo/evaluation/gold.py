"""A scorer that training never sees: loaded from a file or a module, checked, averaged."""

import math
from collections.abc import Sequence
from typing import Any

from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.errors import UserError, shown
from rlhf_ppo.rewards.user_function import UserCodeError, UserFunction

Parts = dict[str, float]


class GoldScorer:
    """Calls `function(prompts, responses, **columns) -> list[dict]` and checks what comes back.

    Each dict holds `score` and any number of named parts; a plain float stands for the score
    alone. `columns` are the other columns of the prompts' rows that it takes, one list each.
    """

    def __init__(self, target: str) -> None:
        """Load `target`, "folder/file.py:function" or "module:function".

        Raises:
            UserError: no such file, module or function, or one that takes other arguments.
        """
        self.target = target
        self.function = UserFunction(target, "evaluation.gold")

    def check(self, prompts: Sequence[Prompt]) -> None:
        """See that its columns are there, and try it on an empty response.

        Raises:
            UserError: a column is missing, or what `score` raises.
        """
        self.function.check(prompts)
        self.score(prompts[:1], [""])

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Parts]:
        """One dict a response.

        Raises:
            UserError: the function raises, or returns something that is not a finite score.
        """
        try:
            found = self.function.call(prompts, responses)
        except UserCodeError as error:
            raise UserError(f"evaluation.gold: {self.target} failed: {error}") from error
        try:
            results = [_as_parts(value) for value in found]
        except (TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                f"evaluation.gold: {self.target} returned no number: {reason}"
            ) from error
        for response, parts in zip(responses, results, strict=True):
            if "score" not in parts or not all(math.isfinite(v) for v in parts.values()):
                raise UserError(
                    f"evaluation.gold: {self.target} returned {shown(parts)} for "
                    f"{shown(response)}; each result needs a finite `score`."
                )
        return results

    def mean(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> float:
        """Mean gold score of some responses."""
        results = self.score(prompts, responses)
        return sum(parts["score"] for parts in results) / len(results)


def _as_parts(value: Any) -> Parts:
    if isinstance(value, dict):
        return {str(name): float(number) for name, number in value.items()}
    return {"score": float(value)}
