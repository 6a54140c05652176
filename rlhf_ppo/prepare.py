"""What is known before anything is written: data, models, sizes, memory, finished stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_ppo.config import Config, ModelSource, leaves, trained_source
from rlhf_ppo.console import activity, quieten_libraries
from rlhf_ppo.errors import UserError, problem_of, raise_all, shown
from rlhf_ppo.inputs import Inputs, check_inputs, read_inputs
from rlhf_ppo.models.find import check_model_path
from rlhf_ppo.models.lora import check_start, is_adapter
from rlhf_ppo.models.save import find_values
from rlhf_ppo.plan import Plan, make_plan, stage_micro_batch
from rlhf_ppo.preflight import check_families, check_machine
from rlhf_ppo.resources import NoForecast, plan_memory
from rlhf_ppo.stamps import FOLDERS, Stamp, check_stamp, read_stamp
from rlhf_ppo.training.checkpoint import check_checkpoint, list_checkpoints, read_progress
from rlhf_ppo.training.distributed import Processes, folder_is_used
from rlhf_ppo.training.memory import Forecast
from rlhf_ppo.training.trackers import check_trackers
from rlhf_ppo.weights import check_adapter_targets, check_weights

STAGES = ("sft", "reward_model", "ppo", "evaluation")


@dataclass(frozen=True)
class Prepared:
    """All that is known before anything is written."""

    stages: Sequence[str]
    inputs: Inputs
    processes: Processes
    plan: Plan | None  # None: PPO is not among the stages
    memory: Sequence[Forecast | NoForecast]  # one a stage; none: the policy is not made yet


def prepare(config: Config, stages: Sequence[str]) -> Prepared:
    """Read and check everything that the stages need.

    Raises:
        UserError: anything wrong with settings or data.
    """
    stages = _wanted(config, stages)
    quieten_libraries()
    _check_starting_points(config, stages)
    check_trackers(config.logging.trackers)
    check_weights(config, stages)
    with activity("reading the data"):
        inputs = read_inputs(config, stages)
    check_families(config, stages)
    with activity("checking the data with the tokenizers and rewards"):
        checked = check_inputs(config, stages, inputs)
    processes = Processes(config)
    check_machine(config, processes.device)
    if checked.policy is not None:
        check_adapter_targets(config, checked.policy)
    plan = _check_sizes(config, stages, checked.sizes, processes.world)
    with activity("forecasting the memory"):
        memory = plan_memory(config, stages, checked.inputs, checked, plan, processes)
    return Prepared(stages, checked.inputs, processes, plan, memory)


def finished_stages(config: Config, stages: Sequence[str], stamps: dict[str, Stamp]) -> set[str]:
    """Which stages are finished; refuses to touch what another run left.

    Raises:
        UserError: results are there and `resume` is not set, or they are of other settings.
    """
    folder = Path(config.output_dir)
    if not config.resume:
        whole = len(stages) > 1
        again = folder / FOLDERS["evaluation"]
        if list(stages) == ["evaluation"] and folder_is_used(again):
            raise UserError(
                f"output_dir: {again} is there already. Evaluate again and replace it by "
                "--resume true, or move it away. Nothing was changed."
            )
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
    made_before = (folder / FOLDERS["reward_model"]).is_dir() and "ppo" not in stages
    if untrained is not None and {"ppo", "evaluation"} & set(stages) and not made_before:
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
    problems += _problems_of_evaluation(config, stages)
    given = {"policy.path": config.policy.path} | {
        f"reward.sources[{name}].path": leaf.path
        for name, leaf in leaves(config.reward.sources)
        if isinstance(leaf, ModelSource)
    }
    if "evaluation" in stages:
        models = config.evaluation.models
        given |= {f"evaluation.models.{name}": path for name, path in models.items()}
        given["evaluation.policy"] = config.evaluation.policy
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


def _problems_of_evaluation(config: Config, stages: Sequence[str]) -> list[str]:
    """There is one policy to evaluate: the one that is given, or the run's."""
    given, made = config.evaluation.policy, Path(config.output_dir) / FOLDERS["ppo"]
    if "evaluation" not in stages:
        return []
    if given is not None and "ppo" in stages:
        return [
            f"evaluation.policy = {shown(given)}: this run makes a policy of its own and evaluates "
            "that; leave it out, name the other model in evaluation.models, or use "
            "scripts/evaluate.py"
        ]
    if given is None and "ppo" not in stages and not made.is_dir():
        return [
            f"{made}: not there yet; run scripts/ppo.py first, or give the model to evaluate as "
            "evaluation.policy"
        ]
    return []


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


def _policy_is_finished(config: Config, stamp: Stamp) -> bool:
    folder = Path(config.output_dir)
    policy = folder / FOLDERS["ppo"]
    saved, stopped = 0, None
    kept = stamp | {"save": config.checkpoint.save}
    if check_stamp(policy, kept, ignore=("steps", "stopped", "moments")):
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
    finished = saved == config.ppo.steps and stopped is None
    if found and not finished:
        check_checkpoint(found[-1])
    return finished
