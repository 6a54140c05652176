"""Held-out rows cut from training data by a hash of their prompt.

A prompt's side depends on the prompt alone: not on the order of rows, on other columns, on system
messages, on the run's seed or on the number of processes. The same prompt in other files lands on
the same side, so that one split serves demonstrations, preferences and prompts.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ppo.data.conversation import canonical
from rlhf_ppo.data.report import DataReport
from rlhf_ppo.data.template import Text
from rlhf_ppo.errors import UserError

SYSTEM = ("system", "developer")


def split_key(prompt: Text) -> str:
    """A hash of a conversation without its system messages, the same in any form; 64 hex digits."""
    turns = [turn for turn in canonical(prompt) if turn[0] not in SYSTEM]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()


def held_out(keys: Iterable[str], amount: int | float) -> set[str]:
    """The keys of the prompts that are held out.

    Args:
        keys: of all rows, from `split_key`; those of repeated prompts count once.
        amount: a whole number: so many different prompts, those with the lowest hashes. A share
            below 1: each prompt whose hash, read as a number in [0, 1), lies below it; then more
            rows never move a prompt to the other side.
    """
    ordered = sorted(set(keys))
    if isinstance(amount, int):
        return set(ordered[:amount])
    return {key for key in ordered if int(key, 16) / 16 ** len(key) < amount}


@dataclass(frozen=True)
class Group:
    """Rows of one setting, each with a place, and where their prompt is."""

    rows: Sequence[Any]
    prompt_of: Callable[[Any], Text]


def split_groups(
    groups: Mapping[str, Group], amount: int | float, report: DataReport, cut_from: Sequence[str]
) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Rows to train on and held-out rows, by setting; the report says how many.

    A prompt that is held out in one of the settings is trained on in none.

    Args:
        groups: rows of every stage that is trained, by setting.
        amount: see `held_out`.
        report: has the sources of these settings; those of the held-out rows are added.
        cut_from: the settings from which held-out rows are taken.

    Returns:
        Rows that are left, for each group, and rows held out, for each of `cut_from`.

    Raises:
        UserError: a setting would have nothing left, or nothing held out.
    """
    keys = {
        name: [split_key(group.prompt_of(row)) for row in group.rows]
        for name, group in groups.items()
    }
    chosen = {name: held_out(keys[name], amount) for name in cut_from}
    everywhere = set().union(*chosen.values())
    kept: dict[str, list[Any]] = {}
    cut: dict[str, list[Any]] = {}
    for name, group in groups.items():
        rows = list(zip(group.rows, keys[name], strict=True))
        kept[name] = [row for row, key in rows if key not in everywhere]
        own = [row for row, key in rows if key in chosen.get(name, ())]
        others = [row for row, key in rows if key in everywhere - chosen.get(name, set())]
        if rows and (not kept[name] or (name in cut_from and not own)):
            what = "holds out no row" if kept[name] else "leaves nothing to train on"
            raise UserError(
                f"data.heldout = {amount} {what} of {name}, which has {len(set(keys[name]))} "
                f"different prompts. {'Raise' if kept[name] else 'Lower'} it."
            )
        if name in cut_from:
            cut[name] = own
        rule = f"data.heldout = {amount}"
        report.add_cut(name, rule, [row.where for row in own])
        places = [row.where for row in others]
        report.add(name, f"its prompt is held out by {rule} elsewhere", places, dropped=True)
    return kept, cut
