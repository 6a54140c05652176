"""Reading a run folder: what is there, as far as the run has come."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ppo.config.reading import read_yaml
from rlhf_ppo.errors import UserError, shown

Json = dict[str, Any]
KNOWN = ("config.yaml", "metrics.jsonl", "evaluation/summary.json")
MISSING = math.nan


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; NaN where a run has none."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class RunFolder:
    """The files of a run; what is not there is None or empty."""

    path: Path
    name: str
    config: Json | None
    metrics: list[Json]  # one a PPO step
    heldout: list[Json]  # one an evaluation during training
    summary: Json | None
    samples: list[Json]  # one a held-out prompt
    frontier: Json | None
    findings: list[Json] | None
    probes: Json | None  # of the reward model, by kind of error
    sft: list[Json]
    reward_model: list[Json]
    machine: Json | None
    policy_stamp: Json | None
    reward_stamp: Json | None  # what the reward model was trained from
    evaluated_with: Json | None  # the settings of the evaluation


def read_run(path: Path) -> RunFolder:
    """Read what a run has left so far.

    Raises:
        UserError: no run folder, or a damaged file, with the line.
    """
    if not any((path / name).is_file() for name in KNOWN):
        raise UserError(
            f"{path}: not a run folder: it holds none of {', '.join(KNOWN)}. Give the output_dir "
            "of a run."
        )
    evaluation = path / "evaluation"
    findings = _read(evaluation / "diagnostics.json", list)
    samples = read_lines(evaluation / "samples.jsonl")
    for number, row in enumerate(samples, start=1):
        _check_sample(row, f"{evaluation / 'samples.jsonl'}:{number}")
    return RunFolder(
        path=path,
        name=path.resolve().name,
        config=_settings(path / "config.yaml"),
        metrics=_by_step(path / "metrics.jsonl"),
        heldout=_by_step(path / "heldout.jsonl"),
        summary=_read(evaluation / "summary.json", dict),
        samples=samples,
        frontier=_read(evaluation / "frontier.json", dict),
        findings=findings,
        probes=_read(path / "reward_model" / "probes.json", dict),
        sft=_by_step(path / "sft" / "metrics.jsonl"),
        reward_model=_by_step(path / "reward_model" / "metrics.jsonl"),
        machine=_read(path / "machine.json", dict),
        policy_stamp=_read(path / "policy" / "stage.json", dict),
        reward_stamp=_read(path / "reward_model" / "stage.json", dict),
        evaluated_with=_settings(evaluation / "config.yaml"),
    )


def read_lines(file: Path) -> list[Json]:
    """One object a line; a half line at the end, of a run that writes or was killed, is left out.

    Raises:
        UserError: any other line is no JSON object.
    """
    if not file.is_file():
        return []
    rows: list[Json] = []
    lines = _text(file).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no line break after it: not finished
                break
            raise UserError(
                f"{file}:{number}: not valid JSON ({error}). Repair or remove that line."
            ) from error
        if not isinstance(row, dict):
            raise UserError(f"{file}:{number}: must be an object, not {line[:60]!r}.")
        rows.append(row)
    return rows


def number(value: Any) -> float:
    """A value of a JSON file as a number; NaN for anything else."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if real else MISSING


def estimate(value: Any) -> Estimate | None:
    """{"mean", "low", "high"} as an estimate; None if it is not one."""
    if not isinstance(value, Mapping) or not math.isfinite(number(value.get("mean"))):
        return None
    return Estimate(number(value["mean"]), number(value.get("low")), number(value.get("high")))


def lookup(nested: Any, *keys: str) -> Any:
    """What stands under these keys, one inside the other; None if something is missing."""
    for key in keys:
        if not isinstance(nested, Mapping):
            return None
        nested = nested.get(key)
    return nested


def _settings(file: Path) -> Json | None:
    return read_yaml(file) if file.is_file() else None


def _by_step(file: Path) -> list[Json]:
    rows = read_lines(file)
    for line, row in enumerate(rows, start=1):
        if not math.isfinite(number(row.get("step"))):
            raise UserError(f"{file}:{line}: has no number under `step`. Repair or remove it.")
    return rows


def _read(file: Path, kind: type) -> Any:
    """A JSON file that holds an object or a list; None if there is none."""
    if not file.is_file():
        return None
    try:
        content = json.loads(_text(file))
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}). Remove it, or make it again.") from None
    if not isinstance(content, kind):
        form = "a list" if kind is list else "an object"
        raise UserError(f"{file}: must hold {form}, not {str(content)[:60]!r}.")
    return content


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{file}: cannot be read ({reason}).") from error


def _check_sample(row: Json, place: str) -> None:
    prompt = row.get("prompt")
    if not isinstance(prompt, str | list):
        raise UserError(
            f"{place}: `prompt` must be a string or chat messages, not {shown(prompt)}."
        )
    for side in ("policy", "reference"):
        if not isinstance(lookup(row, side, "response"), str):
            raise UserError(f"{place}: {side!r} must be an object with a string under `response`.")
