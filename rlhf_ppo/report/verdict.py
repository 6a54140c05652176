"""The headline: what a run achieved, in one sentence that does not flatter it."""

import math
from dataclasses import dataclass
from typing import Any

from rlhf_ppo.report.folder import Estimate, RunFolder, estimate, lookup, number
from rlhf_ppo.report.numbers import interval, percent, shown


@dataclass(frozen=True)
class Verdict:
    """The first thing a reader sees."""

    kind: str
    """better, worse, unclear, exploited or unfinished: its class in the style sheet."""
    lead: str
    sentence: str


def judge_run(run: RunFolder) -> Verdict:
    """Better, worse or not to be told apart, by the gold score if there is one.

    The verdict follows the 95 % interval of the win rate over the reference: it must not hold 1/2.
    """
    if run.summary is None:
        return _unfinished(run)
    rates = {by: estimate(lookup(run.summary, "win_rate", by)) for by in ("score", "gold")}
    score, gold = rates["score"], rates["gold"]
    if gold is None and score is None:
        lead = "Nothing to compare"
        return Verdict("unclear", lead, "No held-out prompt has a score for both answers.")
    if gold is None:
        assert score is not None
        verdict = _compared(run.summary, "score", score)
        caution = (
            "Training maximised this very score; without a gold score that it never sees, this "
            "does not say whether the answers are better."
        )
        return Verdict(verdict.kind, verdict.lead, f"{verdict.sentence} {caution}")
    if score is not None and direction(score) > 0 and direction(gold) <= 0:
        fell = direction(gold) < 0
        lead = (
            "The score rose, but the gold score fell"
            if fell
            else "The score rose, but the gold score did not"
        )
        return Verdict("exploited", lead, _compared(run.summary, "gold", gold).sentence)
    return _compared(run.summary, "gold", gold)


def cautions(run: RunFolder) -> list[str]:
    """What a good headline must not hide: findings of the training, and parts that got worse."""
    found = []
    for severity in ("problem", "warning"):
        count = sum(item.get("severity") == severity for item in run.findings or ())
        if count:
            found.append(f"{count} {severity}{'s' if count > 1 else ''} in training")
    worse = [str(lookup(item, "part")) for item in lookup(run.summary, "exploited") or ()]
    if worse:
        found.append(f"got worse while the score rose: {', '.join(worse)}")
    return found


def direction(rate: Estimate) -> int:
    """1: the whole interval of a win rate is above 1/2, -1: below, 0: it holds 1/2."""
    return (rate.low > 0.5) - (rate.high < 0.5)


def _compared(summary: Any, by: str, rate: Estimate) -> Verdict:
    way = direction(rate)
    kind, lead = {
        1: ("better", "Better than before"),
        -1: ("worse", "Worse than before"),
        0: ("unclear", "Cannot be told apart from before"),
    }[way]
    name = "gold score" if by == "gold" else "score"
    if by == "score" and way:
        lead = "A higher score than before" if way > 0 else "A lower score than before"
    sentence = (
        f"On {summary.get('prompts', '?')} held-out prompts the policy's answer has the higher "
        f"{name} in {percent(rate.mean)} [{percent(rate.low)}, {percent(rate.high)}] of cases, "
        "ties counted half"
    )
    before = estimate(lookup(summary, "reference", by))
    after = estimate(lookup(summary, "policy", by))
    if before and after:
        sentence += f"; the mean {name} went from {interval(before)} to {interval(after)}"
    kl = estimate(lookup(summary, "policy", "kl"))
    if kl:
        sentence += f", {shown(kl.mean)} nats of KL away from the reference"
    sentence += "."
    if before and after and way * (after.mean - before.mean) < 0:
        sentence += (
            " Mind that the win rate and the mean disagree: few large changes, or many small."
        )
    return Verdict(kind, lead, sentence)


def _unfinished(run: RunFolder) -> Verdict:
    total = lookup(run.config, "ppo", "steps")
    step = number(run.metrics[-1]["step"]) if run.metrics else 0
    lead = f"Not finished: step {step:.0f}" + (f" of {total}" if total else "")
    if not run.metrics:
        return Verdict("unfinished", lead, "PPO has made no step yet.")
    told = []
    for key, name in (("score/mean", "score"), ("gold/mean", "gold score"), ("kl/ref", "KL")):
        values = [number(row.get(key)) for row in run.metrics]
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            told.append(f"{name} {shown(finite[0])} at first, {shown(finite[-1])} now")
    sentence = "In training: " + "; ".join(told) + "." if told else ""
    return Verdict(
        "unfinished", lead, f"{sentence} The comparison on held-out prompts comes at the end."
    )
