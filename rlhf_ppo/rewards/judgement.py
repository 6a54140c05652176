"""What is said of a response: a score, or that there is none and why. Never a silent 0."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.errors import UserError, shown


@dataclass(frozen=True)
class Missing:
    """A response that a source did not score."""

    reason: str


Score = float | Missing


class Source(Protocol):
    """One thing that scores responses."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """One entry a response, reward units."""
        ...


@dataclass(frozen=True)
class Failure:
    """One missing score, for the message that stops a run."""

    source: str
    where: str  # the prompt's row in its data
    response: str
    reason: str

    def line(self) -> str:
        """All of it on one line."""
        return f"{self.source}, {self.where}, response {self.response[:200]!r}: {self.reason}"


@dataclass(frozen=True)
class Judgement:
    """What S sources say of B responses."""

    scores: Tensor  # (B, S) float32, reward units, NaN: missing
    failures: list[Failure]


class Reward(Protocol):
    """All that scores the responses of a run."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Judgement:
        """The judgement of every source, one row a response."""
        ...


def check_correctness(scores: Sequence[Score], setting: str, target: str) -> None:
    """See that a source that is declared to say right or wrong says nothing else.

    Raises:
        UserError: a score is neither 1 nor 0.
    """
    for score in scores:
        if not isinstance(score, Missing) and score not in (0, 1):
            raise UserError(
                f"{setting}.correctness = true: {target} gave the score {score:g}, but right is 1 "
                "and wrong is 0. Return those (bonuses belong into a source of their own), or "
                "leave correctness out."
            )


def as_score(value: Any) -> Score:
    """A finite number as it is; everything else is missing, and says what it was."""
    if value is None:
        return Missing("no score (None)")
    if isinstance(value, str | bytes):  # float() would read "1" and "nan"
        return Missing(f"{shown(value)} is not a number")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return Missing(f"{shown(value)} is not a number")
    return number if math.isfinite(number) else Missing(f"the score is {number}")
