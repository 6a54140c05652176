"""Stage 3: PPO. The whole method is `ppo_step`; the rest is bookkeeping around it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf_ppo.algorithm.batch import Rollout, TrainBatch
from rlhf_ppo.algorithm.kl import adapt_penalty
from rlhf_ppo.algorithm.losses import LossSettings
from rlhf_ppo.config import Config, PpoConfig
from rlhf_ppo.console import Stepper, say
from rlhf_ppo.data.prompts import EncodedPrompt
from rlhf_ppo.data.sampler import step_rows
from rlhf_ppo.data.template import as_text
from rlhf_ppo.plan import judging_tokens
from rlhf_ppo.rewards.combine import weigh
from rlhf_ppo.rewards.failures import check_enough, check_failures, scored_rows
from rlhf_ppo.rewards.judgement import Failure
from rlhf_ppo.rollout.collect import Roles, collect, response_texts, sample
from rlhf_ppo.rollout.generation import SamplingSettings
from rlhf_ppo.rollout.noise import generator, sampling_noise
from rlhf_ppo.training.checkpoint import (
    Progress,
    list_checkpoints,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.metrics import (
    Metrics,
    append_metrics,
    cut_metrics,
    one_line,
    peak_memory_gib,
    rollout_metrics,
    source_metrics,
    update_metrics,
)
from rlhf_ppo.training.train_batch import (
    compared_responses,
    learns_values,
    loss_settings,
    make_controller,
    make_train_batch,
    shape_scores,
)
from rlhf_ppo.training.update import UpdateStats, kl_after_update, ppo_update

Monitor = Callable[[Sequence[EncodedPrompt], Sequence[str]], float]


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
    evaluate: Callable[[Progress], Metrics]  # on held-out prompts, called after a step

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return Path(self.config.output_dir) / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        """One object a step."""
        return Path(self.config.output_dir) / "metrics.jsonl"


def train_ppo(run: PpoRun) -> Progress:
    """Go from the last checkpoint, or from the start, to `ppo.steps`."""
    config, processes = run.config, run.processes
    progress = _restore(run)
    steps = config.ppo.steps
    with Stepper("ppo", steps, shown=processes.is_main) as stepper:
        stepper.done = progress.step
        for step in range(progress.step + 1, steps + 1):
            progress, metrics, example = ppo_step(run, step, progress)
            last = step == steps
            if _due(config.evaluation.every, step) and not last:
                metrics |= run.evaluate(progress)
            processes.track(metrics, step)
            if processes.is_main:
                append_metrics(run.metrics_file, metrics)
                stepper.advance(one_line(metrics))
                if _due(config.logging.sample_every, step):
                    say(example)
            every = config.checkpoint.every
            if every and (last or _due(every, step)):
                _save(run, progress)
    return progress


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
    rollout, prompts, failures = _collect_scored(run, step, asked, clock)

    weighed = weigh(config.reward, rollout.source_scores, progress.sources, learn=True)
    scores, moments = shape_scores(config.reward, weighed.scores, rollout, progress.scores)
    batch = make_train_batch(config, rollout, scores, progress.beta)

    factor = _set_learning_rate(run, step)
    loss = loss_settings(config, progress.beta, progress.penalty)
    stats = _update(run, batch, step, loss)
    penalty = _next_penalty(run, batch, progress.penalty)
    clock.lap("time/update")

    metrics = rollout_metrics(rollout, weighed, scores, batch, learns_values(config))
    metrics |= source_metrics(weighed, failures, len(asked) - len(prompts))
    tokens = int(rollout.responses.tokens.response_mask.sum())
    controller = make_controller(config.kl, progress.beta, progress.kl_error)
    controller = controller.update(metrics["kl/ref"], len(prompts))
    after = Progress(
        step=step,
        episodes=progress.episodes + len(prompts),
        tokens=progress.tokens + tokens,
        beta=controller.beta,
        kl_error=controller.error,
        penalty=penalty,
        scores=moments,
        sources=weighed.moments,
    )
    texts = response_texts(run.roles.tokenizer, rollout.responses.tokens)
    if run.gold is not None:
        metrics["gold/mean"] = run.gold(prompts, texts)
    metrics = {
        "step": step,
        "episodes": after.episodes,
        "tokens": after.tokens,
        **metrics,
        "kl/beta": progress.beta,
        **update_metrics(stats, loss),
        "learning_rate": config.ppo.learning_rate * factor,
        **clock.laps,
        "throughput/tokens_per_second": tokens / max(clock.total(), 1e-9),
        "memory/peak_gib": peak_memory_gib(processes.device),
    }
    return after, metrics, _example(prompts[0], texts[0], float(weighed.scores[0]))


def learning_rate_factor(ppo: PpoConfig, step: int) -> float:
    """Share of the peak rate in a PPO step (from 1): linear warm-up, then constant or to zero."""
    if step <= ppo.warmup_steps:
        return step / ppo.warmup_steps
    if ppo.schedule == "linear":
        return (ppo.steps - step + 1) / max(1, ppo.steps - ppo.warmup_steps)
    return 1.0


def _set_learning_rate(run: PpoRun, step: int) -> float:
    """Give every group of parameters its rate in this step; returns the share of the peak."""
    factor = learning_rate_factor(run.config.ppo, step)
    for group in run.optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return factor


def _collect_scored(
    run: PpoRun, step: int, asked: Sequence[EncodedPrompt], clock: "_Clock"
) -> tuple[Rollout, list[EncodedPrompt], list[Failure]]:
    """The rollout of all processes and its prompts, without the responses that got no score."""
    config = run.config
    rollout, failures = _collect_share(run, step, asked, clock)
    check_failures(rollout.source_scores, failures, config.reward.max_failed, f"step {step}")
    kept = scored_rows(rollout.source_scores, compared_responses(config))
    check_enough(len(kept), config.ppo.minibatches, run.processes.world, f"step {step}")
    return rollout.select(kept), [asked[row] for row in kept.tolist()], failures


def _collect_share(
    run: PpoRun, step: int, prompts: Sequence[EncodedPrompt], clock: "_Clock"
) -> tuple[Rollout, list[Failure]]:
    """Each process samples and judges its share; the whole comes back on every one."""
    config, processes = run.config, run.processes
    share = processes.share(len(prompts))
    mine = prompts[share]
    # Drawn for the whole step and then cut: a prompt that a step holds twice, at the end of one
    # pass and the start of the next, must get other noise the second time on whatever process.
    noise = sampling_noise(
        config.seed,
        "rollout",
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


def _update(run: PpoRun, batch: TrainBatch, step: int, loss: LossSettings) -> UpdateStats:
    config = run.config
    return ppo_update(
        run.roles.policy,
        run.roles.policy_forward,
        run.optimizer,
        batch,
        config,
        loss,
        generator(config.seed, "minibatches", step),
        run.processes,
        train_policy=step > config.ppo.value_warmup_steps or not learns_values(config),
    )


def _next_penalty(run: PpoRun, batch: TrainBatch, penalty: float) -> float:
    """Weight of KL(old || new) in the next step."""
    target = run.config.ppo.penalty_target
    if target is None:
        return penalty
    kl = kl_after_update(run.roles.policy_forward, batch, run.config, run.processes)
    return adapt_penalty(penalty, kl, target)


def _restore(run: PpoRun) -> Progress:
    """Load the newest checkpoint, if there is one, and forget the metrics after it."""
    found = list_checkpoints(run.checkpoints)
    config = run.config
    progress = Progress(0, 0, 0, beta=config.kl.beta, penalty=config.ppo.penalty)
    if found:
        progress = read_progress(found[-1])
        load_checkpoint(found[-1], run.roles.policy, run.optimizer)
        if run.processes.is_main:
            say(f"ppo: going on after step {progress.step} ({found[-1]})")
    run.processes.on_main(lambda: cut_metrics(run.metrics_file, progress.step))
    return progress


def _save(run: PpoRun, progress: Progress) -> None:
    run.processes.on_main(
        lambda: save_checkpoint(
            run.checkpoints,
            progress,
            run.roles.policy,
            run.optimizer,
            run.config.checkpoint.keep,
        )
    )


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _example(prompt: EncodedPrompt, response: str, score: float) -> str:
    asked = as_text(prompt.prompt.text)[-300:]
    return f"  sample | {asked}\n         > {response}   (score {score:.2f})"


class _Clock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self.last
        self.last = now

    def total(self) -> float:
        return self.last - self.started
