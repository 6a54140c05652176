"""The mistakes that `mutants.py` plants in rlhf_ppo: each would pass a quick review.

A module here holds `TABLES` (by file: name, old text, new text), `OWN` (by file: the tests that are
run first) and `MORE` (those that are run if these pass). `old` stands exactly once in its file.
None of the mistakes is equivalent to the code it replaces.
"""

from __future__ import annotations

from typing import NamedTuple

from . import (
    algorithm,
    diagnostics,
    encoded,
    intervals,
    judged,
    numbers,
    order,
    reward_services,
    rewards,
    rollout,
    rows,
    sides,
    step,
    texts,
    update,
    verdicts,
)

MODULES = (
    algorithm,
    update,
    step,
    numbers,
    order,
    rollout,
    rewards,
    reward_services,
    texts,
    encoded,
    rows,
    sides,
    judged,
    intervals,
    verdicts,
    diagnostics,
)


class Mutation(NamedTuple):
    """One mistake: replace `old` by `new` in rlhf_ppo/<file>."""

    file: str
    name: str
    old: str
    new: str
    own: tuple[str, ...]  # tests of the file, which are run first
    more: tuple[str, ...]  # those that are run if these pass

    @property
    def folder(self) -> str:
        """Of the package; "." for its own modules."""
        return self.file.rpartition("/")[0] or "."


MUTATIONS = [
    Mutation(file, *row, module.OWN[file], module.MORE)
    for module in MODULES
    for file, table in module.TABLES.items()
    for row in table
]
FOLDERS = tuple(dict.fromkeys(mutation.folder for mutation in MUTATIONS))
