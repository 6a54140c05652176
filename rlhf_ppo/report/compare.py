"""Several runs beside one another: methods over seeds, run against run, settings that differ."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_ppo.errors import UserError
from rlhf_ppo.evaluation.paired_runs import Paired, RunAnswers, compare_answers
from rlhf_ppo.report.folder import RunFolder, estimate, lookup, read_run
from rlhf_ppo.report.numbers import p_value, percent
from rlhf_ppo.report.settings import different_settings

COLUMNS = {
    "solved": ("solved", "policy"),
    "win rate by gold": ("win_rate", "gold"),
    "gold": ("policy", "gold"),
    "win rate by score": ("win_rate", "score"),
    "score": ("policy", "score"),
    "KL, nats": ("policy", "kl"),
}
NOT_METHOD = ("seed", "output_dir", "resume", "logging", "checkpoint", "hardware")


@dataclass(frozen=True)
class Method:
    """Runs that differ in their seed alone."""

    name: str
    runs: Sequence[RunFolder]


def comparison_text(folders: Sequence[Path]) -> str:
    """Settings that differ, a Markdown table of methods over seeds, and run against run.

    Args:
        folders: of finished runs, by any name.

    Raises:
        UserError: a folder is no finished run, or is given twice.
    """
    places = [folder.resolve() for folder in folders]
    for place, folder in zip(places, folders, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{folder}: given twice. Give each run once.")
    runs = named_apart([_finished(folder) for folder in folders])
    methods = find_methods(runs)
    parts = []
    different = different_settings([method.runs[0] for method in methods])
    shown = [(name, values) for name, values in different if name != "seed"]
    if len(methods) > 1:
        parts.append(_settings_table(methods, shown))
    parts.append(_method_table(methods))
    paired = compare_answers([answers_of(run) for run in runs])
    if paired:
        parts.append(_paired_table(paired))
    return "\n\n".join(parts)


def find_methods(runs: Sequence[RunFolder]) -> list[Method]:
    """Runs with the same settings but for seed and places, in the order they are given.

    A run with settings and seed of an earlier one (another machine, another version) is no second
    seed: it stands alone. A run without a config.yaml goes by its name, as in rloo-201.
    """
    groups: dict[str, list[RunFolder]] = {}
    for run in runs:
        if run.config is None:
            stem, dash, seed = run.name.rpartition("-")
            key = f"name {stem if dash and seed.isdigit() else run.name}"
        else:
            kept = {name: value for name, value in run.config.items() if name not in NOT_METHOD}
            key = json.dumps(kept, sort_keys=True, default=str)
        seeds = [lookup(other.config, "seed") for other in groups.get(key, ())]
        if run.config is not None and lookup(run.config, "seed") in seeds:
            key = f"{run.path}"
        groups.setdefault(key, []).append(run)
    names = [_stem([run.name for run in group]) for group in groups.values()]
    return [
        Method(group[0].name if names.count(name) > 1 else name, group)
        for name, group in zip(names, groups.values(), strict=True)
    ]


def answers_of(run: RunFolder) -> RunAnswers:
    """Its answers, and the units of their numbers: what scored them, and by which reward model."""
    config: Any = run.evaluated_with or run.config or {}
    gold = lookup(config, "evaluation", "gold")
    reward = lookup(config, "reward")
    own = None if reward is None else json.dumps([reward, run.reward_stamp], sort_keys=True)
    solved = lookup(run.summary, "solved", "source")
    rows = run.samples
    has_gold = any(lookup(row, "policy", "gold") is not None for row in rows)
    return RunAnswers(
        run.name,
        rows,
        {
            "solved": None if solved is None else "right or wrong",
            "gold": str(gold) if gold is not None or has_gold else None,
            "score": own if solved is None else None,
        },
    )


def named_apart(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Runs whose last names are the same are called by their paths."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        return [replace(run, name=str(run.path)) for run in runs]
    return list(runs)


def _finished(folder: Path) -> RunFolder:
    if not (folder / "evaluation" / "summary.json").is_file():
        raise UserError(
            f"{folder / 'evaluation' / 'summary.json'}: not there; let the run finish, or leave it "
            "out."
        )
    return read_run(folder)


def _settings_table(methods: Sequence[Method], rows: Sequence[tuple[str, list[str]]]) -> str:
    if not rows:
        return "settings: no difference but for where they write"
    lines = [
        f"| setting that differs | {' | '.join(method.name for method in methods)} |",
        f"|---|{'---|' * len(methods)}",
    ]
    lines += [
        f"| {name} | {' | '.join(value.replace('|', ' ') for value in values)} |"
        for name, values in rows
    ]
    return "\n".join(lines)


def _method_table(methods: Sequence[Method]) -> str:
    runs = [run for method in methods for run in method.runs]
    names = [
        name
        for name, place in COLUMNS.items()
        if all(estimate(lookup(run.summary, *place)) for run in runs)
    ]
    lines = [f"| method | seeds | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for method in methods:
        cells = [_cell([_mean(run, name) for run in method.runs]) for name in names]
        lines.append(f"| {method.name} | {len(method.runs)} | {' | '.join(cells)} |")
    if any(len(method.runs) == 1 for method in methods):
        lines.append(
            "\nOne seed has no interval over seeds: another seed moves a run by more than its "
            "interval over prompts. Compare several seeds before calling a method better."
        )
    return "\n".join(lines)


def _paired_table(paired: Sequence[Paired]) -> str:
    lines = [
        "| run against run | by | prompts | wins | losses | win rate | exact test | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {item.first} over {item.second} | {item.by} | {item.prompts} | {item.wins} | "
        f"{item.losses} | {percent(item.rate)} [{percent(item.low)}, {percent(item.high)}] | "
        f"{p_value(item.p)} | {item.verdict} |"
        for item in paired
    ]
    return "\n".join(
        [
            *lines,
            "\nSame prompts, ties half; sign test for all pairs of a measure (Holm).",
        ]
    )


def _mean(run: RunFolder, name: str) -> float:
    found = estimate(lookup(run.summary, *COLUMNS[name]))
    assert found is not None
    return found.mean


def _cell(values: Sequence[float]) -> str:
    from rlhf_ppo.evaluation.statistics import t_interval  # here: the page needs no torch

    if len(values) < 2:
        return f"{values[0]:.3f}"
    interval = t_interval(values)
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _stem(names: Sequence[str]) -> str:
    """What the names of some runs have in common, without the seed at the end."""
    if len(names) == 1:
        stem, dash, seed = names[0].rpartition("-")
        return stem if dash and seed.isdigit() else names[0]
    common = names[0]
    while not all(name.startswith(common) for name in names):
        common = common[:-1]
    return common.rstrip("0123456789").rstrip("-_. ") or names[0]
