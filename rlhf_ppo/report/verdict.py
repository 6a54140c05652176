"""The headline: what a run achieved, in one sentence that does not flatter it."""

import math
from dataclasses import dataclass
from typing import Any

from rlhf_ppo.diagnostics import judge_reward_model
from rlhf_ppo.proportions import LEVEL
from rlhf_ppo.report.folder import Estimate, Json, RunFolder, estimate, lookup, number
from rlhf_ppo.report.numbers import interval, p_value, percent, shown
from rlhf_ppo.rewards.accuracy import accuracy_text, with_intervals


@dataclass(frozen=True)
class Verdict:
    """The first thing a reader sees."""

    kind: str
    """better, worse, unclear, doubtful, exploited or unfinished: its class in the style sheet."""
    lead: str
    sentence: str


def judge_run(run: RunFolder) -> Verdict:
    """Better, worse or not to be told apart: by correctness, else by gold score, else by score.

    The verdict follows the 95 % interval of the win rate over the reference, which agrees with an
    exact test: it must not hold 1/2. Where the score says right or wrong, McNemar's exact test of
    the solved prompts decides.
    """
    if run.summary is None:
        return _unfinished(run)
    solved = lookup(run.summary, "solved")
    if solved is not None:
        return _solved(run.summary, solved)
    rates = {by: estimate(lookup(run.summary, "win_rate", by)) for by in ("score", "gold")}
    score, gold = rates["score"], rates["gold"]
    if gold is None and score is None:
        lead = "Nothing to compare"
        return Verdict("unclear", lead, "No held-out prompt has a score for both answers.")
    if gold is None:
        assert score is not None
        return _by_score_alone(run, score)
    if score is not None and direction(score) > 0 and direction(gold) <= 0:
        sentence = _compared(run.summary, "gold", gold).sentence
        if direction(gold) < 0:
            return Verdict("exploited", "The score rose, but the gold score fell", sentence)
        lead = "The score rose, but the gold score cannot be told apart from before"
        return Verdict("doubtful", lead, sentence)
    return _compared(run.summary, "gold", gold)


def cautions(run: RunFolder) -> list[str]:
    """What a good headline must not hide: the reward model's errors, findings, parts that fell."""
    accuracy = reward_accuracy(run)
    found = []
    if accuracy is not None:
        found += [item.message.rstrip(".") for item in judge_reward_model(accuracy, 0)]
    for severity in ("problem", "warning"):
        count = sum(
            item.get("severity") == severity
            and not str(item.get("name")).startswith("reward_model")
            for item in run.findings or ()
        )
        if count:
            found.append(f"{count} {severity}{'s' if count > 1 else ''} in training")
    sampled, greedy = (
        _gold_or_score(holder) for holder in (run.summary, lookup(run.summary, "greedy"))
    )
    if sampled and greedy and direction(sampled) * direction(greedy) < 0:
        way = "worse" if direction(greedy) < 0 else "better"
        found.append(f"greedy answers are {way} than before (win rate {interval(greedy)})")
    fell = estimate(lookup(run.summary, "win_rate", "gold"))
    if lookup(run.summary, "solved") and fell and direction(fell) < 0:
        found.append(f"the gold score fell (win rate {interval(fell)})")
    worse = [str(lookup(item, "part")) for item in lookup(run.summary, "exploited") or ()]
    if worse:
        found.append(f"got worse while the score rose: {', '.join(worse)}")
    return found


def reward_accuracy(run: RunFolder) -> Json | None:
    """How often the reward model that the run trained puts the better held-out answer first."""
    known = lookup(run.summary, "reward_model")
    try:
        return known or with_intervals(run.probes or {})
    except (TypeError, ValueError, KeyError, AttributeError):  # a file that others wrote
        return None


def _gold_or_score(holder: Any) -> Estimate | None:
    rates = lookup(holder, "win_rate")
    return estimate(lookup(rates, "gold")) or estimate(lookup(rates, "score"))


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
    p = number(lookup(summary, "win_rate", by, "p"))
    if math.isfinite(p):
        sentence += f" (exact sign test: {p_value(p)})"
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


def _by_score_alone(run: RunFolder, score: Estimate) -> Verdict:
    """Of the score that training maximised, with what is known of the model that gave it."""
    verdict = _compared(run.summary, "score", score)
    kind, lead = verdict.kind, verdict.lead
    sentence = (
        f"{verdict.sentence} Training maximised this very score; without a gold score that it "
        "never sees, this does not say whether the answers are better."
    )
    accuracy = reward_accuracy(run)
    if accuracy is not None:
        sentence += f" Its reward model puts the better answer first in {accuracy_text(accuracy)}."
        bad = [item.name for item in judge_reward_model(accuracy, 0)]
        if direction(score) and bad:
            coin = "reward_model_coin" in bad
            kind = "doubtful"
            lead += ", by a reward model that may be a coin" if coin else ", by a weak reward model"
    return Verdict(kind, lead, sentence)


def _solved(summary: Json, found: Json) -> Verdict:
    """Of a score that says right or wrong: how many prompts are solved."""
    before, after, total = (
        lookup(found, *place)
        for place in (("reference", "solved"), ("policy", "solved"), ("prompts",))
    )
    p, change = number(found.get("p")), estimate(found.get("change"))
    way = 0 if not p < LEVEL or change is None else (change.mean > 0) - (change.mean < 0)
    kind = {1: "better", -1: "worse", 0: "unclear"}[way]
    lead = {
        1: f"Solves more than before: {after} of {total}, from {before}",
        -1: f"Solves less than before: {after} of {total}, from {before}",
        0: f"Solves {after} of {total}, from {before}: cannot be told apart from before",
    }[way]
    sentence = (
        f"Of {total} held-out prompts {found.get('gained')} are solved that were not before, and "
        f"{found.get('lost')} no longer (McNemar's exact test: {p_value(p)})"
    )
    if change is not None:
        sentence += f"; the share of solved prompts changed by {interval(change)}"
    greedy = lookup(summary, "greedy", "solved")
    if greedy is not None:
        sentence += (
            f"; greedy, from {lookup(greedy, 'reference', 'solved')} to "
            f"{lookup(greedy, 'policy', 'solved')} ({p_value(number(greedy.get('p')))})"
        )
    points = lookup(summary, "pass_at_k", "points") or []
    if points:
        old, new = (estimate(points[-1].get(side)) for side in ("reference", "policy"))
        if old and new:
            sentence += f"; pass@{points[-1]['k']} from {interval(old)} to {interval(new)}"
    kl = estimate(lookup(summary, "policy", "kl"))
    if kl:
        sentence += f"; {shown(kl.mean)} nats of KL away from the reference"
    return Verdict(kind, lead, f"{sentence}.")


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
