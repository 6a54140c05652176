"""Runs of several seeds side by side: mean over seeds with its interval."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ppo.errors import UserError
from rlhf_ppo.evaluation.statistics import t_interval

COLUMNS = {
    "win rate by gold": ("win_rate", "gold"),
    "gold": ("policy", "gold"),
    "win rate by score": ("win_rate", "score"),
    "score": ("policy", "score"),
    "KL, nats": ("policy", "kl"),
}


def compare(folders: Sequence[Path]) -> str:
    """A Markdown table: one row a method, mean and 95 % t-interval over its seeds.

    Args:
        folders: of finished runs, named `<method>-<seed>`.

    Raises:
        UserError: a folder is named otherwise or holds no result, or a seed stands twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        method, dash, seed = folder.name.rpartition("-")
        summary = folder / "evaluation" / "summary.json"
        if not dash or not method:
            raise UserError(f"{folder}: name the folders of runs <method>-<seed>, like rloo-201.")
        if not summary.is_file():
            raise UserError(f"{summary}: not there; let the run finish, or leave it out.")
        if seed in found.setdefault(method, {}):
            raise UserError(f"{folder}: a second {folder.name}; give each run once.")
        found[method][seed] = json.loads(summary.read_text(encoding="utf-8"))
    names = [name for name, place in COLUMNS.items() if all(_has(s, place) for s in _all(found))]
    lines = [
        f"| method | seeds | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    for method, seeds in found.items():
        cells = [_cell([_mean(s, COLUMNS[name]) for s in seeds.values()]) for name in names]
        lines.append(f"| {method} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    interval = t_interval(values)
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _all(found: dict[str, dict[str, Any]]) -> list[Any]:
    return [summary for seeds in found.values() for summary in seeds.values()]


def _has(summary: Any, place: tuple[str, str]) -> bool:
    return place[1] in summary[place[0]]


def _mean(summary: Any, place: tuple[str, str]) -> float:
    return float(summary[place[0]][place[1]]["mean"])
