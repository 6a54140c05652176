"""From the lines of `metrics.jsonl` and the summary to findings; step by step, or all at once."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_ppo.diagnostics.checks import CHECKS, WEAK, Check, Severity
from rlhf_ppo.diagnostics.signs import Line, Seen


@dataclass(frozen=True)
class Finding:
    """Something that looks wrong, seen first at `step`."""

    name: str  # of the check, a heading of docs/debugging.md
    severity: Severity
    step: int  # PPO step; the last one for what the evaluation shows
    message: str  # the numbers seen
    remedy: str  # what to try, with the names of settings


class Diagnosis:
    """The findings of a run, step after step."""

    def __init__(self) -> None:
        self.seen = Seen()
        self.findings: list[Finding] = []

    def add(self, line: Line) -> list[Finding]:
        """Look at the next line of `metrics.jsonl`; returns what is found for the first time."""
        self.seen.add(line)
        known = {finding.name for finding in self.findings}
        step = int(line.get("step", 0))
        new = []
        for check in CHECKS:
            message = None if check.look is None else check.look(self.seen)
            if message is not None and check.name not in known:
                new.append(_found(check, step, message))
        self.findings += new
        return new


def diagnose(
    metrics: Sequence[Mapping[str, float]], summary: Mapping[str, Any] | None
) -> list[Finding]:
    """All findings of a run, in the order of their steps.

    Args:
        metrics: the lines of `metrics.jsonl`.
        summary: `evaluation/summary.json`; None: there is none yet.
    """
    diagnosis = Diagnosis()
    for line in metrics:
        diagnosis.add(line)
    last = int(metrics[-1].get("step", 0)) if metrics else 0
    return diagnosis.findings + ([] if summary is None else _of_summary(summary, last))


def judge_reward_model(accuracy: Mapping[str, Any], step: int) -> list[Finding]:
    """What its accuracy on held-out pairs says against a reward model.

    Args:
        accuracy: `reward_model` of the summary, with an entry for each kind of error.
        step: that the findings are to name.
    """
    found: dict[str, str] = {}
    shown = (
        f"{accuracy['accuracy']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}] of "
        f"{accuracy['pairs']} held-out pairs"
    )
    if accuracy["low"] <= 0.5:
        found["reward_model_coin"] = (
            f"The reward model puts the better answer first in {shown}: it cannot be told from a "
            "coin."
        )
    elif accuracy["accuracy"] < WEAK:
        found["reward_model_weak"] = f"The reward model puts the better answer first in {shown}."
    kinds = accuracy.get("kinds", {})
    wrong = [
        f"{name} ({kind['accuracy']:.2f} of {kind['pairs']})"
        for name, kind in kinds.items()
        if kind["accuracy"] < 0.5 and kind["p"] * len(kinds) < 0.05
    ]
    if wrong:
        found["reward_model_wrong_way"] = (
            f"The reward model puts the worse answer first where the error is: {', '.join(wrong)}."
        )
    return [_found(check, step, found[check.name]) for check in CHECKS if check.name in found]


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`; [] without one, and without the half line of a kill."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def write_findings(file: Path, findings: Sequence[Finding]) -> None:
    """Write `diagnostics.json`, a list of objects."""
    text = json.dumps([asdict(finding) for finding in findings], indent=2)
    file.write_text(text + "\n", encoding="utf-8")


def _found(check: Check, step: int, message: str) -> Finding:
    return Finding(check.name, check.severity, step, message, check.remedy)


def _of_summary(summary: Mapping[str, Any], step: int) -> list[Finding]:
    """What the evaluation on held-out prompts shows."""
    found: dict[str, str] = {}
    policy, reference = summary["policy"], summary["reference"]
    rate = summary.get("win_rate", {}).get("score")
    if rate is not None and rate["low"] <= 0.5:
        found["no_gain"] = (
            f"The policy wins against the reference {rate['mean']:.2f} of the time by score "
            f"(interval {rate['low']:.2f} to {rate['high']:.2f})."
        )
    change = summary.get("change", {})
    both = "gold" in change and "score" in change
    if both and change["score"]["low"] > 0 > change["gold"]["high"]:
        found["reward_hacking"] = (
            f"On held-out prompts the score rose from {reference['score']['mean']:.2f} to "
            f"{policy['score']['mean']:.2f}, and gold fell from "
            f"{reference['gold']['mean']:.2f} to {policy['gold']['mean']:.2f}."
        )
    parts = summary.get("exploited", ())
    worse = [f"{item['part']} ({item['change']['mean']:+.2f})" for item in parts]
    if worse:
        found["parts_exploited"] = f"While the score rose, these got worse: {', '.join(worse)}."
    accuracy = summary.get("reward_model")
    of_reward = [] if accuracy is None else judge_reward_model(accuracy, step)
    of_policy = [_found(check, step, found[check.name]) for check in CHECKS if check.name in found]
    return of_reward + of_policy
