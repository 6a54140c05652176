"""Whether a run has gone wrong: a pure function of the settings and of a few numbers.

The numbers travel in the checkpoints, so a resumed run comes to the same verdict.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ppo.config import GuardConfig

# Share of the past in the running score: about the last five steps count.
SCORE_DECAY = 0.8
# How far the numbers of the first step may be from what they must be, nats a token. In float32 the
# largest: rounding gives 1e-6 to 1e-4, and dropout or a wrong position .1. In half precision the
# mean: rounding gives .001 to .03, and a single token far more where it goes to another expert.
FIRST_LARGEST = 1e-2
FIRST_MEAN = 0.1


@dataclass(frozen=True)
class Rounding:
    """In what numbers a run computes, as far as the checks of its first step care."""

    name: str  # for messages
    half: bool

    def off(self, differences: Tensor) -> str | None:
        """What is more than rounding in (N,) differences that should be 0 nats; None: nothing."""
        sizes = differences.detach().abs().float()
        if not sizes.numel() or not bool(torch.isfinite(sizes).all()):
            return None  # that is for `max_skipped`, which keeps the minibatch
        kind, most = ("mean", FIRST_MEAN) if self.half else ("largest", FIRST_LARGEST)
        found = float(sizes.mean() if self.half else sizes.max())
        if found <= most:
            return None
        return f"off by {found:.3g} nats ({kind} of the tokens; up to {most:g} is {self.name})"


def first_step_trouble(rounding: Rounding, differences: dict[str, Tensor]) -> str | None:
    """What is wrong with a policy that has learnt nothing yet; None: nothing.

    Args:
        rounding: of the run.
        differences: (N,) nats a token that should be 0, by what that says.
    """
    for what, each in differences.items():
        off = rounding.off(each)
        if off is not None:
            return f"before the first optimizer step {what}: {off}"
    return None


@dataclass(frozen=True)
class Watch:
    """What the guard has seen of a run."""

    skipped: int = 0  # optimizer steps in a row, up to now
    kl: float = 0.0  # to the reference in the last step, nats a response
    score: float | None = None  # running mean of `score/mean`, reward units; None: no step yet
    best_score: float | None = None  # the highest it has been
    deviation: float = 0.0  # the largest `score/std` so far, reward units
    rollbacks: int = 0  # how often the run went back


def observe(watch: Watch, kl: float, score: float, deviation: float, skipped: int) -> Watch:
    """The numbers after one more PPO step; a score that is not finite says nothing.

    Args:
        watch: before it.
        kl: to the reference, nats a response.
        score: mean of the step, reward units.
        deviation: of its scores, reward units.
        skipped: optimizer steps in a row, those of earlier steps included.
    """
    running, best = watch.score, watch.best_score
    if math.isfinite(score):
        running = score if running is None else SCORE_DECAY * running + (1 - SCORE_DECAY) * score
        best = running if best is None else max(best, running)
    return Watch(
        skipped=skipped,
        kl=watch.kl if math.isnan(kl) else kl,
        score=running,
        best_score=best,
        # The largest: a reward that hardly varies at first is no measure of what comes later.
        deviation=max(watch.deviation, deviation) if math.isfinite(deviation) else watch.deviation,
        rollbacks=watch.rollbacks,
    )


def trouble(guard: GuardConfig, watch: Watch) -> str | None:
    """What is wrong, with the limit that says so; None: nothing."""
    if watch.skipped >= guard.max_skipped:
        return (
            f"loss or gradient was not finite in {watch.skipped} optimizer steps in a row "
            f"(guard.max_skipped = {guard.max_skipped}); failures/ holds a minibatch of them"
        )
    if guard.max_kl is not None and watch.kl > guard.max_kl:
        return (
            f"the KL to the reference is {watch.kl:.3g} nats a response "
            f"(guard.max_kl = {guard.max_kl:g})"
        )
    if guard.max_score_drop is None or watch.score is None or watch.best_score is None:
        return None
    drop = watch.best_score - watch.score
    if drop > guard.max_score_drop * watch.deviation:
        return (
            f"the running score fell from {watch.best_score:.3g} to {watch.score:.3g}, which is "
            f"{drop / max(watch.deviation, 1e-12):.2g} standard deviations of the scores "
            f"(guard.max_score_drop = {guard.max_score_drop:g})"
        )
    return None
