"""The stages of a run in order: supervised model, reward model, PPO, evaluation.

Each stage leaves a folder with a stamp of what it was made from (`stamps.py`). A stage whose result
exists for the same settings is kept; for other settings the run stops and says what differs.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_ppo.algorithm.rewards import Moments
from rlhf_ppo.command_line import to_yaml
from rlhf_ppo.config import Config, ModelSource, leaves, trained_source
from rlhf_ppo.console import quieten_libraries, say
from rlhf_ppo.data.prompts import (
    EncodedPrompt,
    check_room,
    encode_prompts,
)
from rlhf_ppo.errors import UserError, problem_of, raise_all
from rlhf_ppo.evaluation.heldout import Evaluator, during_training, summarise, write_results
from rlhf_ppo.evaluation.table import show_plan, show_samples, show_summary
from rlhf_ppo.inputs import Inputs, check_inputs, read_inputs
from rlhf_ppo.models.load import check_model_path
from rlhf_ppo.models.lora import check_start, is_adapter
from rlhf_ppo.models.save import find_values, save_policy
from rlhf_ppo.plan import Plan, make_plan, stage_micro_batch
from rlhf_ppo.preflight import assumptions, check_machine
from rlhf_ppo.rewards.combine import normalized_sources
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
from rlhf_ppo.training.ppo import PpoRun, train_ppo
from rlhf_ppo.training.reward_model import train_reward_model
from rlhf_ppo.training.roles import build_roles, load_for_evaluation, sampling_settings
from rlhf_ppo.training.sft import train_supervised
from rlhf_ppo.training.trainer import save_stage

STAGES = ("sft", "reward_model", "ppo", "evaluation")


def run_pipeline(config: Config, stages: Sequence[str] = STAGES) -> None:
    """Run the given stages of a config, in order.

    Raises:
        UserError: anything wrong with settings or data; nothing has been written then.
    """
    stages = _wanted(config, stages)
    _check_starting_points(config, stages)
    inputs = read_inputs(config, stages)
    quieten_libraries()
    sizes = check_inputs(config, stages, inputs)
    stamps = make_stamps(config)
    processes = Processes(config, with_trackers="ppo" in stages)  # knows them, opens none
    check_machine(config, processes.device)
    plan = _check_sizes(config, stages, sizes, processes.world)
    finished = _check_folder(config, stages, stamps)
    processes.wait()  # all have looked before one writes
    processes.on_main(lambda: _write_config(config))
    if processes.is_main:
        for line in assumptions(config, inputs.texts):
            say(line)
    for stage in stages:
        if stage in finished:
            if processes.is_main:
                say(f"{stage}: kept, made before with the same settings")
            continue
        if processes.is_main:
            say(f"\n== {stage} ==")
            if stage == "ppo" and plan is not None:
                show_plan(plan.lines())
        _run_stage(stage, config, inputs, stamps)


def _run_stage(stage: str, config: Config, inputs: Inputs, stamps: dict[str, Stamp]) -> None:
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
        _train_policy(config, inputs, folder, stamps[stage], processes)
    elif stage == "evaluation":
        _evaluate(config, inputs, folder, stamps[stage], processes)


def _train_policy(
    config: Config, inputs: Inputs, folder: Path, stamp: Stamp, processes: Processes
) -> None:
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
        evaluate=lambda progress: during_training(evaluator, shown, progress.sources),
    )
    progress = train_ppo(run)
    processes.stop_trackers()
    save_stage(
        folder,
        processes,
        # The moments: so that evaluation weighs the reward sources as the last step did.
        stamp
        | {
            "steps": progress.step,
            "moments": {name: asdict(found) for name, found in progress.sources.items()},
        },
        lambda target: save_policy(
            roles.policy, tokenizer, config, paths.reference, sampling.stop_ids, target
        ),
    )


def _evaluate(
    config: Config, inputs: Inputs, folder: Path, stamp: Stamp, processes: Processes
) -> None:
    policy = Path(config.output_dir) / FOLDERS["ppo"]
    roles = load_for_evaluation(config, str(policy), model_paths(config), processes)
    prompts = _encode_heldout(config, inputs, roles.tokenizer, processes)
    sampling = sampling_settings(config, roles)
    evaluator = Evaluator(config, roles, sampling, processes, inputs.gold)
    moments = _moments_of(policy, config)
    policy_side = evaluator.policy_side(prompts, moments)
    reference_side = evaluator.reference_side(prompts, moments)
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


def _encode_heldout(
    config: Config, inputs: Inputs, tokenizer: Any, processes: Processes
) -> list[EncodedPrompt]:
    limit = config.data.max_prompt_tokens
    name = "data.heldout_prompts"
    heldout, dropped = encode_prompts(inputs.heldout_prompts, tokenizer, limit, name)
    if dropped and processes.is_main:
        say(f"{name}: dropped {dropped} prompts longer than {limit} tokens")
    return heldout


def _wanted(config: Config, stages: Sequence[str]) -> list[str]:
    """The stages that this config describes; a model that is given is not trained."""
    skipped = set()
    if config.sft is None:
        skipped.add("sft")
    if config.reward_model is None:
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
    untrained = trained_source(config.reward) if config.reward_model is None else None
    if untrained is not None and "ppo" in stages:
        problems.append(
            f"reward.sources[{untrained.name}].path: missing; give a reward model, a reward_model "
            "section to train one, or another kind of reward source"
        )
    if config.sft is not None and "sft" not in stages and not (folder / "sft").is_dir():
        problems.append(f"{folder / 'sft'}: not there yet; run scripts/sft.py first")
    needs_reward = {"ppo", "evaluation"} & set(stages)
    made = config.reward_model is not None
    missing = not (folder / "reward_model").is_dir()
    if made and needs_reward and "reward_model" not in stages and missing:
        problems.append(
            f"{folder / 'reward_model'}: not there yet; run scripts/reward_model.py first"
        )
    if "evaluation" in stages and "ppo" not in stages and not (folder / "policy").is_dir():
        problems.append(f"{folder / 'policy'}: not there yet; run scripts/ppo.py first")
    given = {"policy.path": config.policy.path} | {
        f"reward.sources[{name}].path": leaf.path
        for name, leaf in leaves(config.reward.sources)
        if isinstance(leaf, ModelSource)
    }
    for setting, path in given.items():
        if path is not None:
            problems += problem_of(lambda p=path, s=setting: check_model_path(p, s))  # type: ignore[misc]
    start, lora = config.policy.path, config.lora
    if start is not None and lora is not None and config.sft is None and is_adapter(start):
        problems += problem_of(lambda: check_start(start, lora, "policy.path"))
    if start is not None and config.value.init == "saved":
        own = config.value.model == "adapter"
        problems += problem_of(lambda: find_values(start, needs_adapter=own))
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
    saved = 0
    if check_stamp(policy, stamp, ignore=("steps", "moments")):
        saved = int((read_stamp(policy) or {})["steps"])
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
    return saved == config.ppo.steps


def _write_config(config: Config) -> None:
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = to_yaml(config.model_copy(update={"resume": False}))
    (folder / "config.yaml").write_text(text, encoding="utf-8")
