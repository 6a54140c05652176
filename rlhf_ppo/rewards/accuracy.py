"""How often a reward model puts the better answer first, with its interval: `probes.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_ppo.errors import UserError
from rlhf_ppo.proportions import compare_pairs

FILE = "probes.json"
Probe = dict[str, float]


def accuracy_of(margins: Sequence[float]) -> Probe:
    """Accuracy on held-out pairs, equal scores counted half.

    Args:
        margins: score of the chosen completion minus that of the rejected one (reward units).

    Returns:
        `pairs`, `accuracy` with its 95 % interval `low` to `high`, `p` of the exact test against a
        coin, `ties`, and `margin`, the mean.
    """
    right, ties = sum(m > 0 for m in margins), sum(m == 0 for m in margins)
    found = _probe(right, len(margins) - right - ties, ties)
    return found | {"margin": sum(margins) / len(margins)}


def overall(probes: Mapping[str, Mapping[str, float]]) -> Probe | None:
    """Accuracy over the pairs of all kinds of error; None without a pair."""
    counts = [_counts(probe) for probe in probes.values()]
    right, wrong, ties = (
        (sum(column) for column in zip(*counts, strict=True)) if counts else (0,) * 3
    )
    return _probe(right, wrong, ties) if right + wrong + ties else None


def read_accuracy(folder: Path) -> dict[str, Any] | None:
    """`reward_model` of `summary.json`: accuracy over all held-out pairs, and by kind of error.

    Args:
        folder: of the reward model; None if it holds no probes.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        probes = json.loads(file.read_text(encoding="utf-8"))
        return with_intervals(probes)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{file}: damaged ({type(error).__name__}: {error}). Train the reward model again, or "
            "remove the file."
        ) from error


def with_intervals(probes: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
    """The same from the content of the file, also of one that was written without intervals."""
    whole = overall(probes)
    if whole is None:
        return None
    kinds = {name: dict(probe) | _probe(*_counts(probe)) for name, probe in probes.items()}
    return whole | {"kinds": kinds}


def accuracy_text(probe: Mapping[str, float]) -> str:
    """In words: `0.575 [0.519, 0.630] of 299 held-out pairs`."""
    ends = ", ".join(f"{probe[name]:.3f}" for name in ("low", "high"))
    plural = "pair" if probe["pairs"] == 1 else "pairs"
    return f"{probe['accuracy']:.3f} [{ends}] of {probe['pairs']:.0f} held-out {plural}"


def _probe(right: int, wrong: int, ties: int) -> Probe:
    found = compare_pairs(right, wrong, ties)
    ends = {name: found[name] for name in ("low", "high", "p")}
    return {"pairs": right + wrong + ties, "accuracy": found["mean"], **ends, "ties": ties}


def _counts(probe: Mapping[str, float]) -> tuple[int, int, int]:
    """Right, wrong and equal pairs of a kind; older files do not count the equal ones."""
    pairs, halves = int(probe["pairs"]), round(2 * probe["pairs"] * probe["accuracy"])
    ties = int(probe.get("ties", halves % 2))
    right = (halves - ties) // 2
    return right, pairs - right - ties, ties
