"""One object of numbers a PPO step: `metrics.jsonl`, trackers and terminal all show the same."""

import json
import resource
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from rlhf_ppo.algorithm.batch import Rollout, TrainBatch
from rlhf_ppo.algorithm.losses import LossSettings
from rlhf_ppo.algorithm.masked import explained_variance
from rlhf_ppo.rewards.combine import Weighed
from rlhf_ppo.rewards.judgement import Failure
from rlhf_ppo.training.update import UpdateStats

Metrics = dict[str, float]


def rollout_metrics(
    rollout: Rollout,
    weighed: Weighed,
    scores: torch.Tensor,
    batch: TrainBatch,
    with_values: bool,
) -> Metrics:
    """What the rollout says, before the update.

    Args:
        rollout: of all processes, B responses.
        weighed: what the reward sources said of them.
        scores: (B,), as the policy is paid them.
        batch: made from it.
        with_values: a value function is learnt.
    """
    responses, mask = rollout.responses, rollout.responses.tokens.response_mask
    zero = torch.zeros_like(rollout.logprobs)
    kl = torch.where(mask, rollout.logprobs - rollout.ref_logprobs, zero).sum(dim=1)
    gap = torch.where(mask, rollout.logprobs - responses.sampling_logprobs, zero)
    metrics = {
        "score/mean": float(weighed.scores.mean()),
        "score/std": float(weighed.scores.std(unbiased=False)),
        "score/shaped": float(scores.mean()),
        "kl/ref": float(kl.mean()),
        "policy/sampler_gap": float(gap.abs().max()),
        "response/length": float(mask.sum(dim=1).float().mean()),
        "response/stopped": float(responses.stopped.float().mean()),
    }
    if with_values:
        explained = explained_variance(batch.values, batch.returns, mask)
        metrics["value/explained_variance"] = float(explained)
    return metrics


def source_metrics(weighed: Weighed, failures: Sequence[Failure], dropped: int) -> Metrics:
    """What each reward source said, before its normalization and weight.

    Args:
        weighed: of the responses that all sources scored.
        failures: the scores that are missing.
        dropped: responses that left the batch for it.
    """
    metrics: Metrics = {}
    for name, scores in weighed.parts.items():
        metrics[f"reward/{name}/mean"] = float(scores.mean())
        metrics[f"reward/{name}/failed"] = sum(failure.source == name for failure in failures)
    return metrics | {"reward/dropped": dropped}


def group_metrics(rows: Sequence[int], texts: Sequence[str], scores: torch.Tensor) -> Metrics:
    """How far the samples of a prompt differ, over prompts with two or more of them.

    Args:
        rows: of the prompt of each response; responses to one prompt are neighbours.
        texts: the responses.
        scores: (B,) of the reward sources together.
    """
    places = [list(group) for _, group in groupby(range(len(rows)), key=lambda i: rows[i])]
    groups = [group for group in places if len(group) > 1]
    if not groups:
        return {}
    same_text = sum(len({texts[place] for place in group}) == 1 for group in groups)
    same_score = sum(bool((scores[group] == scores[group[0]]).all()) for group in groups)
    return {
        "group/identical": same_text / len(groups),
        "group/equal_scores": same_score / len(groups),
    }


def throughput(tokens: int, seconds: Metrics) -> Metrics:
    """Response tokens a second, over the whole step and in each phase alone.

    Args:
        tokens: of the step's responses; an update reads each of them `ppo.epochs` times.
        seconds: of the phases, by their `time/...` keys.
    """
    found = {"throughput/tokens_per_second": tokens / max(sum(seconds.values()), 1e-9)}
    for name, value in seconds.items():
        found[name.replace("time/", "throughput/")] = tokens / max(value, 1e-9)
    return found


def update_metrics(stats: UpdateStats, loss: LossSettings, with_text: bool) -> Metrics:
    """What the update says, as far as its loss had such a part.

    Args:
        stats: of the update.
        loss: the objective and its weights.
        with_text: the next-token loss on given text was part of it.
    """
    metrics = {
        "kl/update": stats.kl,
        "policy/loss": stats.policy_loss,
        "policy/ratio_max": stats.ratio_max,
        "policy/ratio_first_error": stats.ratio_first_error,
        "policy/entropy": stats.entropy,
        "policy/optimizer_steps": stats.optimizer_steps,
        "update/skipped": stats.skipped,
        "grad_norm": stats.grad_norm,
    }
    if loss.objective == "clipped":
        metrics["policy/clip_fraction"] = stats.policy_clip_fraction
    if loss.objective == "kl_penalty":
        metrics["policy/penalty"] = loss.penalty
    if loss.kl_coefficient:
        metrics["kl/loss"] = stats.ref_kl
    if loss.value_coefficient:
        metrics["value/loss"] = stats.value_loss
        metrics["value/clip_fraction"] = stats.value_clip_fraction
    if with_text:
        metrics["ptx/loss"] = stats.ptx_loss
    return metrics


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: on the GPU if there is one, else by this process (GiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def one_line(metrics: Metrics) -> str:
    """The few numbers worth a glance."""
    names = {
        "score": ("score/mean", ".2f"),
        "gold": ("gold/mean", ".2f"),
        "kl": ("kl/ref", ".2f"),
        "length": ("response/length", ".0f"),
    }
    shown = [
        f"{name} {metrics[key]:{form}}" for name, (key, form) in names.items() if key in metrics
    ]
    phases = ", ".join(
        f"{phase} {metrics[f'throughput/{phase}']:.0f}" for phase in ("rollout", "judge", "update")
    )
    shown.append(f"{metrics['throughput/tokens_per_second']:.0f} tok/s ({phases})")
    return "  ".join(shown)


def append_metrics(file: Path, metrics: Mapping[str, Any]) -> None:
    """Add one line to `metrics.jsonl`, or to `heldout.jsonl`."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(metrics) + "\n")


def cut_metrics(file: Path, last_step: int, removed: Path | None = None) -> None:
    """Keep only the lines up to `last_step`: the steps after it are about to be made again.

    Args:
        file: `metrics.jsonl` or `heldout.jsonl`.
        last_step: PPO step.
        removed: where the other lines go; None: nowhere.
    """
    if not file.is_file():
        return
    kept: list[str] = []
    cut: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError):
            continue  # the half line of a run that was killed while writing
        (kept if step <= last_step else cut).append(line + "\n")
    if removed is not None and cut:
        removed.parent.mkdir(parents=True, exist_ok=True)
        removed.write_text("".join(cut), encoding="utf-8")
    file.write_text("".join(kept), encoding="utf-8")
