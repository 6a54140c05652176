"""The steps of a run in order: checkpoints, evaluation, and the way back when one goes wrong."""

import math
import time
from dataclasses import replace
from functools import partial

from rlhf_ppo.config import Config
from rlhf_ppo.console import Stepper, expect_after, say, show_finding
from rlhf_ppo.diagnostics import Diagnosis, read_metrics
from rlhf_ppo.training.checkpoint import (
    Progress,
    best_folder,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    read_progress,
    remove_checkpoints,
    save_best,
    save_checkpoint,
)
from rlhf_ppo.training.guard import trouble
from rlhf_ppo.training.metrics import Metrics, append_metrics, cut_metrics, one_line
from rlhf_ppo.training.ppo import PpoRun, ppo_step


def train_ppo(run: PpoRun) -> Progress:
    """Go from the last checkpoint, or from the start, to `ppo.steps`, or to where `guard` stops.

    Returns:
        Where the run stands at its end. `guard.trouble` of it says whether and why it was stopped;
        the policy in `run` is then the one to save.
    """
    config, guard = run.config, run.config.guard
    progress = saved = _restore(run)
    _evaluate_start(run, progress)
    main, steps = run.processes.is_main, config.ppo.steps
    with Stepper("ppo", steps, shown=main, every_step=True) as stepper:
        stepper.start_at(progress.step)
        diagnosis = _diagnosis_so_far(run)
        while True:
            reason = trouble(guard, progress.watch)
            if reason is not None:
                back = _roll_back(run, progress, reason)
                if back is not None:
                    progress, reason = back, None
                    diagnosis = _diagnosis_so_far(run)
            finished = reason is not None or progress.step == config.ppo.steps
            if progress != saved and _checkpoint_is_due(config, progress.step, finished):
                _save(run, progress)
                saved = progress
            if finished:
                break
            progress = _advance(run, progress, stepper, diagnosis)
    if config.checkpoint.save == "best":
        _take_best(run, progress)
    return progress


def _advance(run: PpoRun, progress: Progress, stepper: Stepper, diagnosis: Diagnosis) -> Progress:
    """One PPO step, its evaluation if due, and its line of metrics."""
    config, processes = run.config, run.processes
    step = progress.step + 1
    progress, metrics, example = ppo_step(run, step, progress)
    wants_best = config.checkpoint.save == "best"
    # After the last step all held-out prompts are evaluated; what is best is chosen on these few.
    last = step == config.ppo.steps
    if (wants_best and last) or (_due(config.evaluation.every, step) and not last):
        metrics |= _evaluate(run, progress)
    if wants_best and "heldout/score" in metrics:
        progress = _keep_best(run, progress, metrics["heldout/score"])
    new = diagnosis.add(metrics)
    metrics["health/findings"] = len(diagnosis.findings)
    processes.track(metrics, step)
    if processes.is_main:
        append_metrics(run.metrics_file, metrics)
        stepper.advance(one_line(metrics), to=step)
        for finding in new:
            show_finding(finding)
        if _due(config.logging.sample_every, step):
            say(example)
    return progress


def _evaluate_start(run: PpoRun, progress: Progress) -> None:
    """The policy before its first step is the reference: what later evaluations compare with."""
    wanted = run.config.evaluation.every > 0 and progress.step == 0
    if wanted and not (run.heldout_file.is_file() and run.heldout_file.stat().st_size):
        _evaluate(run, progress)


def _evaluate(run: PpoRun, progress: Progress) -> Metrics:
    """Evaluate on held-out prompts; keeps the numbers and returns their means."""
    started = time.monotonic()
    found = run.evaluate(progress)
    if run.batches_after and found.rows:
        batches = -(-len(found.rows["score"]) // run.config.rollout.generation_batch_size)
        each = (time.monotonic() - started) / batches
        expect_after(seconds=each * run.batches_after)
    if found.rows and run.processes.is_main:
        append_metrics(run.heldout_file, {"step": progress.step, **found.rows})
    return found.metrics


def _restore(run: PpoRun) -> Progress:
    """Load the newest checkpoint, if there is one, and forget the metrics after it."""
    found = list_checkpoints(run.checkpoints)
    run.processes.wait()  # all have looked before one writes
    config = run.config
    progress = Progress(0, 0, 0, beta=config.kl.beta, penalty=config.ppo.penalty)
    if found:
        progress = read_progress(found[-1])
        load_checkpoint(found[-1], run.roles.policy, run.optimizer)
        if run.processes.is_main:
            say(f"ppo: going on after step {progress.step} ({found[-1]})")
    elif config.guard.action == "rollback":
        _save(run, progress)  # or there would be nowhere to go back to before the first checkpoint
    for file in (run.metrics_file, run.heldout_file):
        run.processes.on_main(partial(cut_metrics, file, progress.step))
    return progress


def _diagnosis_so_far(run: PpoRun) -> Diagnosis:
    """What the steps that are kept showed; it was said when they were made."""
    diagnosis = Diagnosis()
    for line in read_metrics(run.metrics_file):
        diagnosis.add(line)
    return diagnosis


def _roll_back(run: PpoRun, progress: Progress, reason: str) -> Progress | None:
    """Weights, optimizer and all numbers back to the last good checkpoint; None: no more.

    What lies after it is removed, its metrics are moved to `failures/`. The count of rollbacks,
    which seeds the noise and scales the learning rate, goes on.
    """
    guard, count = run.config.guard, progress.watch.rollbacks + 1
    if guard.action != "rollback" or count > guard.max_rollbacks:
        return None
    known = [(path, read_progress(path)) for path in list_checkpoints(run.checkpoints)]
    # What a step measures is the policy that the step before it left: a checkpoint of that one
    # holds the trouble, though it does not know yet.
    newest = max(0, progress.step - 2)
    good = [
        (path, then)
        for path, then in known
        if then.step <= newest and trouble(guard, then.watch) is None
    ]
    if not good:
        return None
    path, then = good[-1]
    load_checkpoint(path, run.roles.policy, run.optimizer)
    if run.processes.is_main:
        factor = guard.learning_rate_factor**count
        say(
            f"guard: step {progress.step}: {reason}. Rollback {count} of {guard.max_rollbacks}: "
            f"back to step {then.step}, other noise, learning rate x {factor:g}"
        )
    run.processes.wait()  # all have read before one removes
    for file, name in ((run.metrics_file, "rollback"), (run.heldout_file, "heldout-rollback")):
        lines = run.failures / f"{name}-{count}.jsonl"
        run.processes.on_main(partial(cut_metrics, file, then.step, lines))
    newer = [path for path, other in known if other.step > then.step]
    run.processes.on_main(lambda: remove_checkpoints(newer))
    return replace(then, watch=replace(then.watch, rollbacks=count))


def _keep_best(run: PpoRun, progress: Progress, score: float) -> Progress:
    """Keep the policy if its held-out score is the best so far and nothing is wrong with it."""
    better = progress.best_step == 0 or score > progress.best_score
    healthy = trouble(run.config.guard, progress.watch) is None and math.isfinite(score)
    if not (better and healthy):
        return progress
    run.processes.on_main(lambda: save_best(run.checkpoints, progress.step, run.roles.policy))
    return replace(progress, best_step=progress.step, best_score=score)


def _take_best(run: PpoRun, progress: Progress) -> None:
    """Put the best policy in place of the last one."""
    if not progress.best_step:
        message = "no evaluation came before the end: the last policy is kept"
    else:
        load_weights(best_folder(run.checkpoints, progress.best_step), run.roles.policy)
        score = f"held-out score {progress.best_score:.2f}"
        message = f"the policy of step {progress.best_step} is the best ({score})"
    if run.processes.is_main:
        say(f"checkpoint.save = best: {message}")


def _save(run: PpoRun, progress: Progress) -> None:
    policy, keep = run.roles.policy, run.config.checkpoint.keep
    run.processes.on_main(
        lambda: save_checkpoint(run.checkpoints, progress, policy, run.optimizer, keep)
    )


def _checkpoint_is_due(config: Config, step: int, finished: bool) -> bool:
    every = config.checkpoint.every
    return every > 0 and (finished or step % every == 0)


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
