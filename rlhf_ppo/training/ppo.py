"""Stage 3: PPO. The whole method is `ppo_step`; `loop.py` calls it step after step."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlhf_ppo.algorithm.batch import Minibatch, Rollout, Tokens, TrainBatch
from rlhf_ppo.algorithm.kl import adapt_penalty
from rlhf_ppo.algorithm.losses import LossSettings
from rlhf_ppo.algorithm.rewards import Moments
from rlhf_ppo.config import Config, PpoConfig
from rlhf_ppo.console import sample_text
from rlhf_ppo.data.prompts import EncodedPrompt
from rlhf_ppo.data.sampler import step_rows
from rlhf_ppo.errors import GuardError
from rlhf_ppo.models.policy import base_model
from rlhf_ppo.plan import judging_tokens
from rlhf_ppo.rewards.combine import weigh
from rlhf_ppo.rewards.failures import check_enough, check_failures, scored_rows
from rlhf_ppo.rewards.judgement import Failure
from rlhf_ppo.rollout.collect import Roles, collect, response_texts, sample
from rlhf_ppo.rollout.generation import SamplingSettings
from rlhf_ppo.rollout.noise import derive_seed, generator, sampling_noise
from rlhf_ppo.training.checkpoint import Progress
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.failures import save_failure
from rlhf_ppo.training.guard import Rounding, first_step_trouble, observe
from rlhf_ppo.training.metrics import (
    Metrics,
    group_metrics,
    peak_memory_gib,
    rollout_metrics,
    source_metrics,
    throughput,
    update_metrics,
)
from rlhf_ppo.training.ptx import TextRow, draw_rows
from rlhf_ppo.training.train_batch import (
    compared_responses,
    learns_values,
    loss_settings,
    make_controller,
    make_train_batch,
    shape_scores,
)
from rlhf_ppo.training.update import UpdateStats, kl_after_update, ppo_update

RATIO_NOT_1 = "the ratio to the policy at collection is not 1 (policy/ratio_first_error)"
Monitor = Callable[[Sequence[EncodedPrompt], Sequence[str]], float]


@dataclass(frozen=True)
class HeldOut:
    """An evaluation on held-out prompts during training."""

    metrics: Metrics  # means, as they stand in `metrics.jsonl`
    rows: dict[str, list[Any]]  # by name: one number a prompt, for `heldout.jsonl`


@dataclass(frozen=True)
class PpoRun:
    """All that stays the same from step to step."""

    config: Config
    roles: Roles
    optimizer: torch.optim.Optimizer
    prompts: Sequence[EncodedPrompt]
    sampling: SamplingSettings
    processes: Processes
    gold: Monitor | None  # mean gold score of a rollout; shown, never trained on
    evaluate: Callable[[Progress], HeldOut]  # called at the start and after steps
    ptx_rows: Sequence[TextRow] = ()  # of the next-token loss, if there is one
    batches_after: int = 0  # of responses that the final evaluation generates; 0: none follows

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return Path(self.config.output_dir) / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        """One object a step."""
        return Path(self.config.output_dir) / "metrics.jsonl"

    @property
    def heldout_file(self) -> Path:
        """One object an evaluation during training."""
        return Path(self.config.output_dir) / "heldout.jsonl"

    @property
    def failures(self) -> Path:
        """Where things that went wrong are kept; absent in a healthy run."""
        return Path(self.config.output_dir) / "failures"


def ppo_step(run: PpoRun, step: int, progress: Progress) -> tuple[Progress, Metrics, str]:
    """One round: collect a rollout, shape rewards, estimate advantages, update.

    Args:
        run: models, data, settings.
        step: from 1.
        progress: where the run stands after the step before.

    Returns:
        Where it stands now, the step's metrics, and a sample to show.
    """
    config, processes = run.config, run.processes
    clock = _Clock()

    rows = step_rows(len(run.prompts), config.rollout.batch_size, step, config.seed)
    # Responses to one prompt are neighbours: that is where rloo and grpo look for them.
    asked = [run.prompts[row] for row in rows for _ in range(config.rollout.samples_per_prompt)]
    again = progress.watch.rollbacks
    rollout, prompts, failures = _collect_scored(run, step, asked, clock, again)

    weighed = weigh(config.reward, rollout.source_scores, progress.sources, learn=True)
    scores, moments = shape_scores(config.reward, weighed.scores, rollout, progress.scores)
    batch = make_train_batch(config, rollout, scores, progress.beta)

    factor = _set_learning_rate(run, step, again)
    loss = loss_settings(config, progress.beta, progress.penalty)
    stats = _update(run, batch, step, loss, progress)

    metrics = rollout_metrics(rollout, weighed, scores, batch, learns_values(config))
    metrics |= source_metrics(weighed, failures, len(asked) - len(prompts))
    tokens = int(rollout.responses.tokens.response_mask.sum())
    penalty = _next_penalty(run, batch, progress.penalty)
    after = replace(
        _carry_on(config, progress, metrics, moments, stats, len(prompts)),
        step=step,
        episodes=progress.episodes + len(prompts),
        tokens=progress.tokens + tokens,
        penalty=penalty,
        sources=weighed.moments,
    )
    clock.lap("time/update")
    questions = [item.prompt.text for item in prompts]
    texts = response_texts(run.roles.tokenizer, rollout.responses.tokens, questions)
    metrics |= _text_metrics(run, prompts, texts, weighed.scores)
    metrics = {
        "step": step,
        "episodes": after.episodes,
        "tokens": after.tokens,
        **metrics,
        "kl/beta": progress.beta,
        **update_metrics(stats, loss, config.ptx is not None),
        "learning_rate": config.ppo.learning_rate * factor,
        **clock.laps,
        **throughput(tokens, clock.laps),
        "memory/peak_gib": peak_memory_gib(processes.device),
    }
    return after, metrics, sample_text(prompts[0].prompt.text, texts[0], float(weighed.scores[0]))


def _text_metrics(
    run: PpoRun, prompts: Sequence[EncodedPrompt], texts: Sequence[str], scores: torch.Tensor
) -> Metrics:
    """What the texts of a rollout tell: how responses to one prompt differ, their gold score."""
    found: Metrics = {}
    if run.config.rollout.samples_per_prompt > 1:
        found |= group_metrics([item.prompt.row for item in prompts], texts, scores)
    if run.gold is not None:
        found["gold/mean"] = run.gold(prompts, texts)
    return found


def _start_differences(rollout: Rollout) -> dict[str, torch.Tensor]:
    """(N,) nats a token that are 0 as long as nothing has been learnt, by what that says."""
    mask = rollout.responses.tokens.response_mask
    sampler = rollout.logprobs - rollout.responses.sampling_logprobs
    return {
        "the sampler draws from another distribution than the forward pass scores "
        "(policy/sampler_gap)": sampler[mask],
        "the policy is not its own reference (kl/ref)": (rollout.logprobs - rollout.ref_logprobs)[
            mask
        ],
    }


def _check_start(run: PpoRun, step: int, differences: dict[str, torch.Tensor]) -> None:
    """In step 1 the policy has learnt nothing yet: it is its own sampler, reference and old policy.

    Raises:
        GuardError: it is not, by more than rounding; all that would follow would be wrong.
    """
    if step > 1:
        return
    reason = first_step_trouble(_rounding(run), differences)
    if reason is not None:
        kind = base_model(run.roles.policy.lm).config.model_type
        raise GuardError(
            f"{reason}. PPO's numbers would mean nothing for this model (model type {kind}), so "
            "the run stops and saves no policy. Known ways out: policy.gradient_checkpointing "
            "false, hardware.mixed_precision no, policy.dtype float32, or a model of a family "
            "listed in docs/models.md."
        )


def _rounding(run: PpoRun) -> Rounding:
    """What a forward pass of the policy computes in."""
    model, precision = run.config.policy, run.processes.precision
    if run.processes.half or model.dtype != "float32" or model.quantization is not None:
        kinds = [model.dtype, *([precision] if run.processes.half else [])]
        return Rounding(f"rounding in {' and '.join(kinds)}", half=True)
    # "high" lets a GPU multiply in TF32, which has as few digits as float16.
    return Rounding("rounding in float32", torch.get_float32_matmul_precision() != "highest")


def _carry_on(
    config: Config,
    progress: Progress,
    metrics: Metrics,
    moments: Moments,
    stats: UpdateStats,
    responses: int,
) -> Progress:
    """Beta, the moments of the scores and what the guard has seen, for the next step.

    Numbers that are not finite are left out: the next step may be sound.
    """
    kl, score, deviation = metrics["kl/ref"], metrics["score/mean"], metrics["score/std"]
    controller = make_controller(config.kl, progress.beta, progress.kl_error)
    if math.isfinite(kl):
        controller = controller.update(kl, responses)
    return replace(
        progress,
        beta=controller.beta,
        kl_error=controller.error,
        scores=moments if math.isfinite(score) else progress.scores,
        watch=observe(progress.watch, kl, score, deviation, stats.skipped_in_row),
    )


def learning_rate_factor(ppo: PpoConfig, step: int) -> float:
    """Share of the peak rate in a PPO step (from 1): linear warm-up, then constant or to zero."""
    if step <= ppo.warmup_steps:
        return step / ppo.warmup_steps
    if ppo.schedule == "linear":
        return (ppo.steps - step + 1) / max(1, ppo.steps - ppo.warmup_steps)
    return 1.0


def _set_learning_rate(run: PpoRun, step: int, again: int) -> float:
    """Give every group of parameters its rate in this step; returns the share of the peak."""
    config = run.config
    factor = learning_rate_factor(config.ppo, step) * config.guard.learning_rate_factor**again
    for group in run.optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return factor


def _collect_scored(
    run: PpoRun, step: int, asked: Sequence[EncodedPrompt], clock: "_Clock", again: int
) -> tuple[Rollout, list[EncodedPrompt], list[Failure]]:
    """The rollout of all processes and its prompts, without the responses that got no score."""
    config = run.config
    rollout, failures = _collect_share(run, step, asked, clock, again)
    _check_start(run, step, _start_differences(rollout))
    check_failures(rollout.source_scores, failures, config.reward.max_failed, f"step {step}")
    kept = scored_rows(rollout.source_scores, compared_responses(config))
    check_enough(len(kept), config.ppo.minibatches, run.processes.world, f"step {step}")
    return rollout.select(kept), [asked[row] for row in kept.tolist()], failures


def _collect_share(
    run: PpoRun, step: int, prompts: Sequence[EncodedPrompt], clock: "_Clock", again: int
) -> tuple[Rollout, list[Failure]]:
    """Each process samples and judges its share; the whole comes back on every one."""
    config, processes = run.config, run.processes
    share = processes.share(len(prompts))
    mine = prompts[share]
    # Drawn for the whole step and then cut: a prompt that a step holds twice, at the end of one
    # pass and the start of the next, must get other noise the second time on whatever process.
    noise = sampling_noise(
        config.seed,
        _purpose("rollout", again),
        step,
        [item.prompt.row for item in prompts],
        config.rollout.max_new_tokens,
    )
    responses = sample(run.roles, mine, noise[share], run.sampling)
    clock.lap("time/rollout")
    budget = judging_tokens(config.ppo, processes.device.type)
    rollout, failures = collect(run.roles, mine, responses, config.rollout.temperature, budget)
    whole = processes.gather(rollout), processes.gather_list(failures)
    clock.lap("time/judge")
    return whole


def _update(
    run: PpoRun, batch: TrainBatch, step: int, loss: LossSettings, progress: Progress
) -> UpdateStats:
    config, again = run.config, progress.watch.rollbacks

    def keep_failure(minibatch: Minibatch, text: Tokens | None) -> None:
        run.processes.on_main(lambda: save_failure(run.failures, step, minibatch, text))

    stats = ppo_update(
        run.roles.policy,
        run.roles.policy_forward,
        run.optimizer,
        batch,
        config,
        loss,
        generator(config.seed, _purpose("minibatches", again), step),
        run.processes,
        train_policy=step > config.ppo.value_warmup_steps or not learns_values(config),
        skipped_in_row=progress.watch.skipped,
        draw_text=_text_drawer(run, step, again),
        keep_failure=keep_failure,
    )
    _check_start(run, step, {RATIO_NOT_1: stats.first_log_ratios})
    return stats


def _text_drawer(run: PpoRun, step: int, again: int) -> Callable[[int], Tokens] | None:
    """What draws the text of each optimizer step of a PPO step, if there is a next-token loss."""
    config, ptx = run.config, run.config.ptx
    if ptx is None:
        return None
    count = ptx.batch_size
    before = (step - 1) * config.ppo.epochs * config.ppo.minibatches
    seed = derive_seed(config.seed, _purpose("ptx", again))
    return lambda number: draw_rows(run.ptx_rows, count, before + number + 1, seed)


def _purpose(name: str, again: int) -> str:
    """Of random numbers: others after each rollback, so that the accident is not replayed."""
    return f"{name} after rollback {again}" if again else name


def _next_penalty(run: PpoRun, batch: TrainBatch, penalty: float) -> float:
    """Weight of KL(old || new) in the next step."""
    target = run.config.ppo.penalty_target
    if target is None:
        return penalty
    kl = kl_after_update(run.roles.policy_forward, batch, run.config, run.processes)
    return adapt_penalty(penalty, kl, target)


class _Clock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self.last
        self.last = now
