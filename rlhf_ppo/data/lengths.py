"""How long rows are, how long they may be, and what to say of those that are longer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ppo.models.limits import Limits

KEEP = 0.95  # share of the rows that an advice keeps
_STEP = 16  # tokens: an advice is a multiple of it


@dataclass(frozen=True)
class LengthLimit:
    """The most tokens of a row: a setting's, or the positions of the model that reads it."""

    name: str  # of the setting, such as "sft.max_tokens"
    max_tokens: int
    limits: Limits  # of the model
    reserved: int = 0  # positions that a response takes: rollout.max_new_tokens

    @property
    def positions(self) -> int | None:
        """Positions for a row; None: any number."""
        found = self.limits.positions
        return None if found is None else found - self.reserved

    @property
    def tokens(self) -> int:
        """What a row may have."""
        return self.max_tokens if self.positions is None else min(self.max_tokens, self.positions)

    def __str__(self) -> str:
        """As in "longer than ..."."""
        if self.tokens == self.max_tokens:
            return f"{self.name} = {self.max_tokens}"
        model = f"the {self.limits.positions} positions of {self.limits.setting}"
        if not self.reserved:
            return model
        return f"{self.positions} tokens, {model} less rollout.max_new_tokens = {self.reserved}"

    def remedy(self, tokens: int) -> str:
        """How a row of so many tokens could be kept, as a sentence."""
        cut = "cut them (data.long_rows = truncate, which needs room for a part of the answer)"
        if self.positions is None or tokens <= self.positions:
            return f"Raise it, shorten the rows, or {cut}."
        less = "Lower rollout.max_new_tokens, shorten" if self.reserved else "Shorten"
        return (
            f"{less} the rows, {cut}, or take a model with more positions than the "
            f"{self.limits.positions} of {self.limits.setting}."
        )

    def advice(self, lengths: Sequence[int]) -> str:
        """Median, the length that keeps nearly all rows, and whether it can be had.

        Args:
            lengths: of all rows, the long ones too (tokens).
        """
        ordered = sorted(lengths)

        def fitting(share: float) -> int:
            return ordered[math.ceil(share * len(ordered)) - 1]

        share = KEEP if fitting(KEEP) > self.tokens else 1.0
        kept, wanted = f"{100 * share:.0f} %", fitting(share)
        found = f"median {fitting(0.5)}, {kept} of the rows fit in {wanted}"
        if self.positions is not None and wanted > self.positions:
            return f"{found}, more than the model has positions for"
        raised = math.ceil(wanted / _STEP) * _STEP
        raised = raised if self.positions is None else min(raised, self.positions)
        return f"{found}: raise {self.name} to {raised} to keep {kept}"
