"""Held-out prompts during training: means for `metrics.jsonl`, numbers for `heldout.jsonl`."""

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_ppo.data.prompts import EncodedPrompt
from rlhf_ppo.evaluation.gold import Parts
from rlhf_ppo.evaluation.sides import Evaluator, Side, SourceMoments
from rlhf_ppo.training.ppo import HeldOut


def during_training(
    evaluator: Evaluator, prompts: Sequence[EncodedPrompt], moments: SourceMoments
) -> HeldOut:
    """Sample the policy on held-out prompts and judge the responses.

    Raises:
        UserError: more responses than `reward.max_failed` allows got no score.
    """
    side = evaluator.side(evaluator.policy(prompts), moments)
    metrics = {
        "heldout/score": float(side.scores.nanmean()),
        "heldout/kl": _mean(side.kl),
        "heldout/length": _mean(side.lengths),
        "heldout/stopped": _mean(side.stopped),
    }
    if side.gold:
        metrics["heldout/gold"] = float(side.gold_scores.mean())
        metrics |= {
            f"heldout/gold/{name}": _mean([parts[name] for parts in side.gold])
            for name in part_names(side.gold)
        }
    return HeldOut(metrics, numbers(side))


def numbers(side: Side) -> dict[str, list[Any]]:
    """One number a prompt, as `heldout.jsonl` holds them; None: no score."""
    rows: dict[str, list[Any]] = {
        "score": [number(score) for score in side.scores],
        "kl": side.kl,
        "length": [int(length) for length in side.lengths],
        "stopped": [int(stopped) for stopped in side.stopped],
    }
    if side.gold:
        rows["gold"] = side.gold_scores.tolist()
    return rows


def part_names(gold: Sequence[Parts]) -> list[str]:
    """The named parts of a gold score, if there are any."""
    return [name for name in (gold[0] if gold else {}) if name != "score"]


def number(score: torch.Tensor) -> float | None:
    """JSON knows no NaN."""
    return float(score) if bool(score.isfinite()) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
