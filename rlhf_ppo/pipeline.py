"""The stages of a run in order: supervised model, reward model, PPO, evaluation.

Each stage leaves a folder with a stamp of what it was made from (`stamps.py`). A stage whose result
exists for the same settings is kept; for other settings the run stops and says what differs.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rlhf_ppo.algorithm.rewards import Moments
from rlhf_ppo.config import Config
from rlhf_ppo.config.reading import to_yaml
from rlhf_ppo.console import activity, expect_after, say, show_findings
from rlhf_ppo.data.prompts import (
    EncodedPrompt,
    check_room,
    encode_prompts,
)
from rlhf_ppo.diagnostics import diagnose, read_metrics, write_findings
from rlhf_ppo.errors import GuardError, UserError
from rlhf_ppo.evaluation.heldout import during_training
from rlhf_ppo.evaluation.sides import Evaluator
from rlhf_ppo.evaluation.stage import evaluate, write_evaluation
from rlhf_ppo.evaluation.table import show_frontier, show_plan, show_samples, show_summary
from rlhf_ppo.inputs import Inputs
from rlhf_ppo.machine import timed_stage, write_machine
from rlhf_ppo.models.save import save_policy
from rlhf_ppo.plan import generated_batches, make_plan
from rlhf_ppo.preflight import assumptions
from rlhf_ppo.prepare import STAGES, Prepared, finished_stages, prepare
from rlhf_ppo.report.page import write_report
from rlhf_ppo.resources import NoForecast, check_memory
from rlhf_ppo.rewards.combine import normalized_sources
from rlhf_ppo.rollout.collect import Roles
from rlhf_ppo.stamps import (
    FOLDERS,
    Stamp,
    make_stamps,
    model_paths,
    read_stamp,
    write_stamp,
)
from rlhf_ppo.stopping import told_when_stopped, what_is_there
from rlhf_ppo.training.distributed import Processes, threads_line
from rlhf_ppo.training.guard import trouble
from rlhf_ppo.training.loop import train_ppo
from rlhf_ppo.training.memory import Forecast
from rlhf_ppo.training.ppo import PpoRun
from rlhf_ppo.training.ptx import TextRow, encode_rows
from rlhf_ppo.training.reward_model import train_reward_model
from rlhf_ppo.training.roles import build_roles, load_for_evaluation, sampling_settings
from rlhf_ppo.training.sft import train_supervised
from rlhf_ppo.training.trackers import Trackers, numbers_of
from rlhf_ppo.training.trainer import save_stage


def run_pipeline(config: Config, stages: Sequence[str] = STAGES) -> None:
    """Run the given stages of a config, in order.

    Raises:
        UserError: anything wrong with settings or data; nothing has been written then.
        GuardError: `guard` ended PPO before its time; all stages have left their results.
    """
    with told_when_stopped(lambda: "Nothing was written."):
        prepared = prepare(config, stages)
        stages, processes = prepared.stages, prepared.processes
        stamps = make_stamps(config)
        if processes.is_main:
            _show_memory(prepared.memory)
        check_memory(config, prepared.memory, processes.sharers)
        finished = finished_stages(config, stages, stamps)
        processes.wait()  # all have looked before one writes
        busy = set(stages) > finished
        trackers = Trackers(config, opened_here=processes.is_main and busy)
    try:
        stopped = _run_stages(config, prepared, stamps, finished, trackers)
    finally:
        trackers.close()
    if stopped is not None:
        raise GuardError(stopped)


def show_plans(config: Config) -> None:
    """Print data, sizes and memory of a run; nothing is trained, nothing is written.

    Raises:
        UserError: anything wrong with settings or data, or PPO does not fit into memory.
    """
    prepared = prepare(config, STAGES)
    if prepared.processes.is_main:
        _show_data(config, prepared.inputs)
    if prepared.processes.is_main and prepared.plan is not None:
        say("what the run will do:")
        show_plan(prepared.plan.lines())
        _show_memory(prepared.memory)
    check_memory(config, prepared.memory, prepared.processes.sharers)


def _show_data(config: Config, inputs: Inputs) -> None:
    """What was found in the data, and what is assumed of the tokenizers."""
    for line in [*inputs.report.lines(), *assumptions(config, inputs.texts)]:
        say(line)


def _run_stages(
    config: Config,
    prepared: Prepared,
    stamps: dict[str, Stamp],
    finished: set[str],
    trackers: Trackers,
) -> str | None:
    """Run all stages that are not finished; returns why PPO was stopped, if it was."""
    stages, inputs, processes = prepared.stages, prepared.inputs, prepared.processes
    folder = Path(config.output_dir)
    # A finished run that is evaluated again: what it says of itself stays.
    again = list(stages) == ["evaluation"] and (folder / "config.yaml").exists()
    processes.on_main(lambda: _write_start(config, prepared, again=again))
    if not again:
        processes.on_main(lambda: write_machine(folder, processes))
    stopped = None
    for stage in stages:
        if stage in finished:
            if processes.is_main:
                say(f"{stage}: kept, made before with the same settings")
            continue
        left = [name for name in stages[stages.index(stage) + 1 :] if name not in finished]
        expect_after(share=_share_of_later(config, prepared, stage, left))
        if processes.is_main:
            say(f"\n== {stage} ==" + (f"  then {', '.join(left)}" if left else ""))
            if stage == "ppo" and prepared.plan is not None:
                say("what the run will do:")
                show_plan(prepared.plan.lines())
        there = partial(what_is_there, config, stages, stamps, stage, time.monotonic())
        with told_when_stopped(there):
            with nullcontext() if again else timed_stage(folder, stage, processes):
                stopped = _run_stage(stage, config, inputs, stamps, trackers, left) or stopped
            if stage == "evaluation" and processes.is_main:
                _draw_report(folder)
    return stopped


def _show_memory(memory: Sequence[Forecast | NoForecast]) -> None:
    for each in memory:
        if isinstance(each, NoForecast):
            say(str(each))
            continue
        say(f"memory of {each.stage} on this device, by role and phase:")
        show_plan(each.lines())


def _share_of_later(config: Config, prepared: Prepared, stage: str, later: Sequence[str]) -> float:
    """Sequences that the stages after a supervised one learn from, as a share of its own.

    What PPO generates and scores besides, and what is evaluated, is not counted: the time that
    follows is a least one. 0: not known, or a reward model that starts from another model.
    """
    inputs, model = prepared.inputs, config.reward_model
    learnt = {
        "sft": 0.0 if config.sft is None else len(inputs.demonstrations) * config.sft.epochs,
        "ppo": 0.0 if prepared.plan is None else prepared.plan.episodes * config.ppo.epochs,
    }
    if model is not None and model.init_from is None:
        learnt["reward_model"] = 2 * len(inputs.preferences) * model.epochs
    if stage == "ppo" or not learnt.get(stage):
        return 0.0
    return sum(learnt.get(name, 0.0) for name in later) / learnt[stage]


def _run_stage(
    stage: str,
    config: Config,
    inputs: Inputs,
    stamps: dict[str, Stamp],
    trackers: Trackers,
    later: Sequence[str],
) -> str | None:
    """Run one stage; returns why it was stopped before its time, if it was."""
    # Each stage gets fresh processes: TRL's trainers leave their own settings behind.
    processes = Processes(config, trackers)
    folder, fitted = Path(config.output_dir) / FOLDERS[stage], inputs.fitted
    if stage == "sft" and config.sft is not None:
        assert fitted.demonstrations is not None  # `check_inputs` has encoded them
        train_supervised(
            config,
            config.sft,
            inputs.demonstrations,
            fitted.demonstrations,
            folder,
            stamps[stage],
            processes,
        )
    elif stage == "reward_model" and config.reward_model is not None:
        assert fitted.pairs is not None
        train_reward_model(
            config,
            config.reward_model,
            fitted.pairs,
            fitted.heldout_pairs,
            {pair.where: pair.kind for pair in inputs.probes},
            config.reward_model.init_from or model_paths(config).reference,
            folder,
            stamps[stage],
            processes,
        )
    elif stage == "ppo":
        final = "evaluation" in later
        return _train_policy(config, inputs, folder, stamps[stage], processes, final)
    elif stage == "evaluation":
        _evaluate(config, inputs, folder, stamps[stage], processes)
    return None


def _train_policy(
    config: Config,
    inputs: Inputs,
    folder: Path,
    stamp: Stamp,
    processes: Processes,
    evaluated: bool,
) -> str | None:
    """PPO and its policy's folder; `evaluated`: an evaluation of the result follows."""
    paths = model_paths(config)
    with activity("ppo: loading the models"):
        roles, optimizer = build_roles(config, paths, processes)
    tokenizer = roles.tokenizer
    train, heldout = _encode_all_prompts(config, inputs, roles, processes)
    sampling = sampling_settings(config, roles)
    gold = inputs.gold
    evaluator = Evaluator(config, roles, sampling, processes, gold)
    shown = heldout[: config.evaluation.prompts_during_training]

    def monitor(prompts: Sequence[EncodedPrompt], responses: Sequence[str]) -> float:
        return 0.0 if gold is None else gold.mean([item.prompt for item in prompts], responses)

    checkpoints = Path(config.output_dir) / "checkpoints"
    processes.on_main(lambda: write_stamp(checkpoints, stamp))
    run = PpoRun(
        config=config,
        roles=roles,
        optimizer=optimizer,
        prompts=train,
        sampling=sampling,
        processes=processes,
        gold=None if gold is None else monitor,
        evaluate=lambda progress: during_training(evaluator, shown, progress.sources),
        ptx_rows=_encode_text(config, inputs, roles, processes),
        batches_after=generated_batches(config, len(heldout)) if evaluated else 0,
    )
    progress = train_ppo(run)
    stopped = trouble(config.guard, progress.watch)
    if stopped is not None:
        stopped = f"after step {progress.step} of {config.ppo.steps}, {stopped}."
    reached = {
        "save": config.checkpoint.save,
        "steps": progress.step,
        "stopped": stopped,
        # So that evaluation weighs the reward sources as the last step did.
        "moments": {name: asdict(found) for name, found in progress.sources.items()},
    }
    save_stage(
        folder,
        processes,
        stamp | reached,
        lambda target: save_policy(
            roles.policy, tokenizer, config, paths.reference, sampling.stop_ids, target
        ),
    )
    return stopped


def _encode_all_prompts(
    config: Config, inputs: Inputs, roles: Roles, processes: Processes
) -> tuple[list[EncodedPrompt], list[EncodedPrompt]]:
    """Training and held-out prompts that are short enough, and leave room for a response."""
    found = []
    for name, prompts in inputs.prompts.items():
        limit = config.data.max_prompt_tokens
        found.append(encode_prompts(prompts, roles.tokenizer, limit, name)[0])
    train, heldout = found
    make_plan(config, processes.world, len(train), len(heldout))
    # Here also for a model that this run has made, which could not be asked before.
    for name, items in zip(inputs.prompts, found, strict=True):
        check_room(items, roles.policy.lm.config, config.rollout.max_new_tokens, name)
    return train, heldout


def _evaluate(
    config: Config, inputs: Inputs, folder: Path, stamp: Stamp, processes: Processes
) -> None:
    policy = config.evaluation.policy or str(Path(config.output_dir) / FOLDERS["ppo"])
    with activity("evaluation: loading the models"):
        roles = load_for_evaluation(config, policy, model_paths(config), processes)
    prompts, _ = encode_prompts(
        inputs.heldout_prompts,
        roles.tokenizer,
        config.data.max_prompt_tokens,
        "data.heldout_prompts",
    )
    sampling = sampling_settings(config, roles)
    evaluator = Evaluator(config, roles, sampling, processes, inputs.gold)
    found = evaluate(evaluator, prompts, _moments_of(Path(policy), config))
    # Another policy than this run's own has no steps to look at.
    own = config.evaluation.policy is None
    steps = read_metrics(Path(config.output_dir) / "metrics.jsonl") if own else []
    findings = diagnose(steps, found.summary)
    last = int(steps[-1]["step"]) if steps else 0
    processes.track(numbers_of(found.summary), last, "evaluation")

    def write(target: Path) -> None:
        write_evaluation(target, config, prompts, found)
        write_findings(target / "diagnostics.json", findings)

    save_stage(folder, processes, stamp, write)
    if processes.is_main:
        answers = found.answers
        show_samples(prompts, answers.policy, answers.reference, config.evaluation.samples_shown)
        show_summary(found.summary)
        show_frontier(found.frontier)
        show_findings(findings)
        say(f"written to {folder}")
    if found.judge_failed is not None:
        raise UserError(found.judge_failed)


def _draw_report(folder: Path) -> None:
    """The page for people; a run whose page cannot be drawn keeps its results and its exit code."""
    try:
        with activity("report: drawing"):
            page = write_report(folder)
        say(f"report: {page}")
    except Exception as error:
        say(
            f"report: could not be drawn ({type(error).__name__}: {error}); all results are in "
            f"place. Draw it by `python scripts/report.py {folder}`."
        )


def _moments_of(policy: Path, config: Config) -> dict[str, Moments]:
    """What the last PPO step normalised each reward source by."""
    saved = (read_stamp(policy) or {}).get("moments", {})
    missing = [name for name in normalized_sources(config.reward) if name not in saved]
    if missing:
        raise UserError(
            f"reward.sources[{missing[0]}].normalization: {policy} does not say by which mean and "
            "deviation; it was not made by a run with this setting. Set it to none."
        )
    return {name: Moments(**found) for name, found in saved.items()}


def _encode_text(
    config: Config, inputs: Inputs, roles: Roles, processes: Processes
) -> Sequence[TextRow]:
    """The rows of the next-token loss, if there is one."""
    if config.ptx is None:
        return ()
    limit = config.ptx.max_tokens
    model, rule = roles.policy.lm.config, config.data.long_rows
    rows, dropped = encode_rows(inputs.ptx, roles.tokenizer, model, limit, "ptx.data", rule)
    if dropped and processes.is_main:
        say(f"ptx.data: dropped {dropped} rows that are too long, or have nothing to learn")
    return rows


def _write_start(config: Config, prepared: Prepared, *, again: bool) -> None:
    """What the run was given, what it found in its data, and what it assumes of its tokenizers."""
    inputs = prepared.inputs
    _show_data(config, inputs)
    if prepared.processes.device.type == "cpu":
        say(threads_line(config.hardware.cpu_threads))
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if again:
        return  # these stay those of the run; evaluation/ has its own settings
    text = to_yaml(config.model_copy(update={"resume": False}))
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    inputs.report.write(folder)
