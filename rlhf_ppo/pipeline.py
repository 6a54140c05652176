"""The stages of a run in order: supervised model, reward model, PPO, evaluation.

Each stage leaves a folder with a stamp of what it was made from (`stamps.py`). A stage whose result
exists for the same settings is kept; for other settings the run stops and says what differs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ppo.command_line import to_yaml
from rlhf_ppo.config import Config
from rlhf_ppo.console import quieten_libraries, say
from rlhf_ppo.data.prompts import (
    EncodedPrompt,
    check_room,
    encode_prompts,
)
from rlhf_ppo.errors import GuardError, UserError, problem_of, raise_all
from rlhf_ppo.evaluation.heldout import Evaluator, during_training, summarise, write_results
from rlhf_ppo.evaluation.table import show_plan, show_samples, show_summary
from rlhf_ppo.inputs import Inputs, check_inputs, read_inputs
from rlhf_ppo.models.load import check_model_path
from rlhf_ppo.models.policy import save_policy
from rlhf_ppo.plan import Plan, make_plan, stage_micro_batch
from rlhf_ppo.rollout.collect import Roles
from rlhf_ppo.stamps import (
    FOLDERS,
    Stamp,
    check_stamp,
    make_stamps,
    model_paths,
    read_stamp,
    write_stamp,
)
from rlhf_ppo.training.checkpoint import list_checkpoints, read_progress
from rlhf_ppo.training.distributed import Processes, folder_is_used
from rlhf_ppo.training.guard import trouble
from rlhf_ppo.training.loop import train_ppo
from rlhf_ppo.training.ppo import PpoRun
from rlhf_ppo.training.ptx import TextRow, encode_rows
from rlhf_ppo.training.reward_model import train_reward_model
from rlhf_ppo.training.roles import build_roles, load_for_evaluation, sampling_settings
from rlhf_ppo.training.sft import train_supervised
from rlhf_ppo.training.trainer import save_stage

STAGES = ("sft", "reward_model", "ppo", "evaluation")


def run_pipeline(config: Config, stages: Sequence[str] = STAGES) -> None:
    """Run the given stages of a config, in order.

    Raises:
        UserError: anything wrong with settings or data; nothing has been written then.
        GuardError: `guard` ended PPO before its time; all stages have left their results.
    """
    stages = _wanted(config, stages)
    _check_starting_points(config, stages)
    inputs = read_inputs(config, stages)
    quieten_libraries()
    sizes = check_inputs(config, stages, inputs)
    stamps = make_stamps(config)
    processes = Processes(config, with_trackers="ppo" in stages)  # knows them, opens none
    plan = _check_sizes(config, stages, sizes, processes.world)
    finished = _check_folder(config, stages, stamps)
    processes.wait()  # all have looked before one writes
    processes.on_main(lambda: _write_config(config))
    stopped = None
    for stage in stages:
        if stage in finished:
            if processes.is_main:
                say(f"{stage}: kept, made before with the same settings")
            continue
        if processes.is_main:
            say(f"\n== {stage} ==")
            if stage == "ppo" and plan is not None:
                show_plan(plan.lines())
        stopped = _run_stage(stage, config, inputs, stamps) or stopped
    if stopped is not None:
        raise GuardError(stopped)


def _run_stage(stage: str, config: Config, inputs: Inputs, stamps: dict[str, Stamp]) -> str | None:
    """Run one stage; returns why it was stopped before its time, if it was."""
    # Each stage gets fresh processes: TRL's trainers leave their own settings behind.
    processes = Processes(config, with_trackers=stage == "ppo")
    folder = Path(config.output_dir) / FOLDERS[stage]
    if stage == "sft" and config.sft is not None:
        train_supervised(
            config, config.sft, inputs.demonstrations, folder, stamps[stage], processes
        )
    elif stage == "reward_model" and config.reward_model is not None:
        train_reward_model(
            config,
            config.reward_model,
            inputs.preferences,
            inputs.probes,
            config.reward_model.init_from or model_paths(config).reference,
            folder,
            stamps[stage],
            processes,
        )
    elif stage == "ppo":
        return _train_policy(config, inputs, folder, stamps[stage], processes)
    elif stage == "evaluation":
        _evaluate(config, inputs, folder, stamps[stage], processes)
    return None


def _train_policy(
    config: Config, inputs: Inputs, folder: Path, stamp: Stamp, processes: Processes
) -> str | None:
    paths = model_paths(config)
    roles, optimizer = build_roles(config, paths, processes)
    tokenizer, limit = roles.tokenizer, config.data.max_prompt_tokens
    train, dropped = encode_prompts(inputs.train_prompts, tokenizer, limit, "data.prompts")
    heldout = _encode_heldout(config, inputs, tokenizer, processes)
    if dropped and processes.is_main:
        say(f"data.prompts: dropped {dropped} prompts longer than {limit} tokens")
    make_plan(config, processes.world, len(train), len(heldout))
    # Here also for a model that this run has made, which could not be asked before.
    for name, items in (("data.prompts", train), ("data.heldout_prompts", heldout)):
        check_room(items, roles.policy.lm.config, config.rollout.max_new_tokens, name)
    sampling = sampling_settings(config, roles)
    gold = inputs.gold
    evaluator = Evaluator(config, roles, sampling, processes, gold)
    shown = heldout[: config.evaluation.prompts_during_training]

    def monitor(prompts: Sequence[EncodedPrompt], responses: Sequence[str]) -> float:
        return 0.0 if gold is None else gold.mean([item.prompt for item in prompts], responses)

    checkpoints = Path(config.output_dir) / "checkpoints"
    processes.on_main(lambda: write_stamp(checkpoints, stamp))
    processes.start_trackers(config, {"seed": config.seed, "beta": config.kl.beta})
    run = PpoRun(
        config=config,
        roles=roles,
        optimizer=optimizer,
        prompts=train,
        sampling=sampling,
        processes=processes,
        gold=None if gold is None else monitor,
        evaluate=lambda step: during_training(evaluator, shown),
        ptx_rows=_encode_text(config, inputs, roles, processes),
    )
    progress = train_ppo(run)
    processes.stop_trackers()
    stopped = trouble(config.guard, progress.watch)
    if stopped is not None:
        stopped = f"after step {progress.step} of {config.ppo.steps}, {stopped}."
    reached = {"save": config.checkpoint.save, "steps": progress.step, "stopped": stopped}
    save_stage(
        folder,
        processes,
        stamp | reached,
        lambda target: save_policy(roles.policy, tokenizer, config, paths.reference, target),
    )
    return stopped


def _evaluate(
    config: Config, inputs: Inputs, folder: Path, stamp: Stamp, processes: Processes
) -> None:
    policy = Path(config.output_dir) / FOLDERS["ppo"]
    roles = load_for_evaluation(config, str(policy), model_paths(config), processes)
    prompts = _encode_heldout(config, inputs, roles.tokenizer, processes)
    sampling = sampling_settings(config, roles)
    evaluator = Evaluator(config, roles, sampling, processes, inputs.gold)
    policy_side = evaluator.policy_side(prompts)
    reference_side = evaluator.reference_side(prompts)
    summary = summarise(config, policy_side, reference_side)
    save_stage(
        folder,
        processes,
        stamp,
        lambda target: write_results(target, summary, prompts, policy_side, reference_side),
    )
    if processes.is_main:
        show_samples(prompts, policy_side, reference_side, config.evaluation.samples_shown)
        show_summary(summary)
        say(f"written to {folder}")


def _encode_heldout(
    config: Config, inputs: Inputs, tokenizer: Any, processes: Processes
) -> list[EncodedPrompt]:
    limit = config.data.max_prompt_tokens
    name = "data.heldout_prompts"
    heldout, dropped = encode_prompts(inputs.heldout_prompts, tokenizer, limit, name)
    if dropped and processes.is_main:
        say(f"{name}: dropped {dropped} prompts longer than {limit} tokens")
    return heldout


def _encode_text(
    config: Config, inputs: Inputs, roles: Roles, processes: Processes
) -> Sequence[TextRow]:
    """The rows of the next-token loss, if there is one."""
    if config.ptx is None:
        return ()
    limit = config.ptx.max_tokens
    rows, dropped = encode_rows(
        inputs.ptx, roles.tokenizer, roles.policy.lm.config, limit, "ptx.data"
    )
    if dropped and processes.is_main:
        say(f"ptx.data: dropped {dropped} rows that are too long, or have nothing to learn")
    return rows


def _wanted(config: Config, stages: Sequence[str]) -> list[str]:
    """The stages that this config describes; a model that is given is not trained."""
    skipped = set()
    if config.sft is None:
        skipped.add("sft")
    if config.reward_model is None or config.reward.path is not None:
        skipped.add("reward_model")
    wanted = [stage for stage in stages if stage not in skipped]
    if not wanted:
        section = stages[0]
        raise UserError(f"{section}: the config has no section `{section}`, so nothing to do.")
    return wanted


def _check_starting_points(config: Config, stages: Sequence[str]) -> None:
    """Every model that a stage starts from is given, or made by a stage before it."""
    problems = []
    folder = Path(config.output_dir)
    if config.sft is None and config.policy.path is None:
        problems.append("policy.path: missing; give a model, or an sft section to make one")
    if config.reward_model is None and config.reward.path is None and "ppo" in stages:
        problems.append(
            "reward.path: missing; give a reward model, or a reward_model section to train one"
        )
    if config.sft is not None and "sft" not in stages and not (folder / "sft").is_dir():
        problems.append(f"{folder / 'sft'}: not there yet; run scripts/sft.py first")
    needs_reward = {"ppo", "evaluation"} & set(stages)
    made = config.reward.path is None and config.reward_model is not None
    missing = not (folder / "reward_model").is_dir()
    if made and needs_reward and "reward_model" not in stages and missing:
        problems.append(
            f"{folder / 'reward_model'}: not there yet; run scripts/reward_model.py first"
        )
    if "evaluation" in stages and "ppo" not in stages and not (folder / "policy").is_dir():
        problems.append(f"{folder / 'policy'}: not there yet; run scripts/ppo.py first")
    given = {"policy.path": config.policy.path, "reward.path": config.reward.path}
    for setting, path in given.items():
        if path is not None:
            problems += problem_of(lambda p=path, s=setting: check_model_path(p, s))  # type: ignore[misc]
    raise_all(problems)


def _check_sizes(
    config: Config, stages: Sequence[str], sizes: dict[str, int], processes: int
) -> Plan | None:
    """The plan, if PPO is wanted; every stage's batch fits the number of processes."""
    if config.sft is not None and "sft" in stages:
        stage_micro_batch(config.sft, "sft", processes)
    if config.reward_model is not None and "reward_model" in stages:
        stage_micro_batch(config.reward_model, "reward_model", processes)
    if "ppo" not in stages:
        return None
    return make_plan(config, processes, sizes["data.prompts"], sizes["data.heldout_prompts"])


def _check_folder(config: Config, stages: Sequence[str], stamps: dict[str, Stamp]) -> set[str]:
    """Which stages are finished; refuses to touch what another run left.

    Raises:
        UserError: results are there and `resume` is not set, or they are of other settings.
    """
    folder = Path(config.output_dir)
    if not config.resume:
        whole = len(stages) > 1
        targets = [folder] if whole else [folder / FOLDERS[stages[0]]]
        if stages[0] == "ppo":
            targets += [folder / "checkpoints", folder / "metrics.jsonl"]
        for target in targets:
            if folder_is_used(target):
                raise UserError(
                    f"output_dir: {target} is not empty. Go on with that run by --resume true, or "
                    "choose another --output_dir. Nothing was changed."
                )
        return set()
    if folder_is_used(folder) and not folder.is_dir():
        raise UserError(f"output_dir: {folder} is a file. Choose another --output_dir.")
    finished = {
        stage
        for stage in stages
        if stage in ("sft", "reward_model") and check_stamp(folder / FOLDERS[stage], stamps[stage])
    }
    if "ppo" in stages:
        check_stamp(folder / "checkpoints", stamps["ppo"])
        if _policy_is_finished(config, stamps["ppo"]):
            finished.add("ppo")
    if read_stamp(folder / "evaluation") is None:
        check_stamp(folder / "evaluation", stamps["evaluation"])  # absent, or not ours
    evaluated = read_stamp(folder / "evaluation") == stamps["evaluation"]
    if "evaluation" in stages and "ppo" in finished and evaluated:
        finished.add("evaluation")
    return finished


def _policy_is_finished(config: Config, stamp: Stamp) -> bool:
    folder = Path(config.output_dir)
    policy = folder / FOLDERS["ppo"]
    saved, stopped = 0, None
    kept = stamp | {"save": config.checkpoint.save}
    if check_stamp(policy, kept, ignore=("steps", "stopped")):
        found_stamp = read_stamp(policy) or {}
        saved, stopped = int(found_stamp["steps"]), found_stamp["stopped"]
    reached = saved
    found = list_checkpoints(folder / "checkpoints")
    if found:
        reached = max(reached, read_progress(found[-1]).step)
    if reached > config.ppo.steps:
        raise UserError(
            f"ppo.steps = {config.ppo.steps}: the run in {folder} is already at step {reached}. "
            "Ask for more steps, or choose another output_dir."
        )
    if reached and not found and reached < config.ppo.steps:
        raise UserError(
            f"ppo.steps = {config.ppo.steps}: the run in {folder} reached step {reached} but left "
            "no checkpoint to go on from (checkpoint.every was 0). Choose another output_dir."
        )
    # A checkpoint may be ahead of the saved policy: the run died between the two.
    return saved == config.ppo.steps and stopped is None


def _write_config(config: Config) -> None:
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = to_yaml(config.model_copy(update={"resume": False}))
    (folder / "config.yaml").write_text(text, encoding="utf-8")
