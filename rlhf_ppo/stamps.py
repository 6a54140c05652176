"""What a stage's result was made from: decides whether it can be kept, and says what differs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ppo.config import (
    Config,
    DataConfig,
    EnsembleSource,
    FunctionSource,
    ModelSource,
    correctness_source,
    leaves,
)
from rlhf_ppo.data.loading import fingerprint
from rlhf_ppo.errors import UserError, shown

Stamp = dict[str, Any]


@dataclass(frozen=True)
class ModelPaths:
    """Folders or hub ids of the models that a PPO run needs."""

    reference: str  # where the policy starts, and what the KL penalty refers to
    reward_model: str  # where the one that this run trains is, or will be


FOLDERS = {
    "sft": "sft",
    "reward_model": "reward_model",
    "ppo": "policy",
    "evaluation": "evaluation",
}
STAMP_FILE = "stage.json"
NOT_SET = "not set"
# Settings that do not change what PPO computes, or that other stages answer for.
# Limits of the guard may change: a run that was stopped can go on with others.
NOT_PPO = ("output_dir", "resume", "data", "sft", "guard", "checkpoint", "evaluation", "logging")
ASKED = ("greedy", "best_of", "best_of_prompts", "judge", "gold", "bootstrap_samples")
# Settings of the data section that change what rows say or how often, if they are not refused.
READING = ("columns", "system_prompt", "to_chat", "duplicates")


def model_paths(config: Config) -> ModelPaths:
    """Where the models of a run are, or will be."""
    folder = Path(config.output_dir)
    reference = config.policy.path or ""
    if config.sft is not None:
        reference = str(folder / FOLDERS["sft"])
    return ModelPaths(reference=reference, reward_model=str(folder / FOLDERS["reward_model"]))


def make_stamps(config: Config) -> dict[str, Stamp]:
    """The stamp of each stage under these settings; a later stage holds those it builds on."""
    settings = config.model_dump(mode="json")
    data = {
        name: None if source is None else fingerprint(source)
        for name, source in config.data.sources.items()
    }
    reading = _reading(config.data, data)
    start: Any = None if config.policy.path is None else _model(config.policy.path)
    if config.sft is not None:
        start = {
            "seed": config.seed,
            "policy": settings["policy"] | {"path": start},
            "lora": settings["lora"],
            "sft": settings["sft"],
            "demonstrations": data["demonstrations"],
            "reading": reading,
        }
    reward: Any = None
    if config.reward_model is not None:
        reward = {
            "seed": config.seed,
            "start": config.reward_model.init_from or start,
            "lora": settings["lora"],
            "reward_model": settings["reward_model"],
            "preferences": data["preferences"],
            "reading": reading,
        }
    ppo = {name: value for name, value in settings.items() if name not in NOT_PPO}
    ppo.pop("reward_model")
    ppo["reward"] = _reward(config, settings["reward"])
    ppo["ppo"] = {name: value for name, value in ppo["ppo"].items() if name != "steps"}
    if config.ptx is not None:
        source = config.ptx.data
        known = data["demonstrations"] if source is None else fingerprint(source)
        ppo["ptx"] = settings["ptx"] | {"data": known}
    ppo["hardware"] = {"mixed_precision": settings["hardware"]["mixed_precision"]}
    ppo["max_prompt_tokens"] = config.data.max_prompt_tokens
    ppo["reading"] = reading
    if config.data.overlap == "drop":  # then the held-out prompts decide what is trained on
        ppo["without"] = data["heldout_prompts"]
    ppo |= {"start": start, "reward_from": reward, "prompts": data["prompts"]}
    asked = settings["evaluation"]
    if config.evaluation.judge is not None:  # not how it is asked
        judge = config.evaluation.judge.model_dump(include={"model", "prompts", "template"})
        asked["judge"] = judge | {"options": config.evaluation.judge.options}
    models = {name: _model(path) for name, path in config.evaluation.models.items()}
    given = config.evaluation.policy
    evaluation = {
        **{name: asked[name] for name in ASKED},
        **_correctness(config),
        "models": models,
        "given": None if given is None else _model(given),
        "policy": ppo,
        "steps": config.ppo.steps,
        "save": config.checkpoint.save,
        "heldout_prompts": data["heldout_prompts"],
    }
    return {"sft": start or {}, "reward_model": reward or {}, "ppo": ppo, "evaluation": evaluation}


def _reading(rules: DataConfig, fingerprints: dict[str, str | None]) -> Stamp:
    """The settings that change what rows say, or which rows a stage learns from."""
    reading = rules.model_dump(mode="json", include=set(READING))
    if rules.chosen_as_demonstrations:
        reading["chosen_as_demonstrations"] = True
    if rules.heldout is not None:  # all rows of these decide which are cut
        split = {name: fingerprints[name] for name in ("prompts", "preferences")}
        reading["heldout"] = {"amount": rules.heldout, **split}
    if rules.long_rows == "truncate":  # its other values change no row that is used
        reading["long_rows"] = "truncate"
    return reading


def write_stamp(folder: Path, stamp: Stamp) -> None:
    """Leave a stamp in a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STAMP_FILE).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")


def read_stamp(folder: Path) -> Stamp | None:
    """The stamp of a finished result, or None.

    Raises:
        UserError: the stamp cannot be read.
    """
    file = folder / STAMP_FILE
    if not file.is_file():
        return None
    try:
        stamp: Stamp = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error}). Remove {folder} to make it again.") from error
    return stamp


def check_stamp(folder: Path, expected: Stamp, ignore: Sequence[str] = ()) -> bool:
    """True if `folder` holds a result made from the same settings, False if it holds none.

    Raises:
        UserError: it was made from other settings (names each that differs), or not by us.
    """
    found = read_stamp(folder)
    if found is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(
                f"{folder}: holds files, but no {STAMP_FILE}, so no run of this program left them. "
                "Move them away, or choose another output_dir."
            )
        return False
    then = _flatten({name: value for name, value in found.items() if name not in ignore})
    now = _flatten(json.loads(json.dumps(expected)))
    changed = [
        f"  - {name}: {shown(then.get(name, NOT_SET))} then, {shown(now.get(name, NOT_SET))} now"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if changed:
        raise UserError(
            f"{folder} was made with other settings:\n" + "\n".join(changed) + "\nUse those "
            "settings, choose another output_dir, or remove that folder to make it again."
        )
    return True


def _model(path: str) -> str:
    """A local model is known by its files, a hub model by its id."""
    return f"{path} {fingerprint(path)}" if Path(path).is_dir() else path


def _correctness(config: Config) -> Stamp:
    """It changes what is evaluated, not what is trained; not said where it is not used."""
    source = correctness_source(config.reward)
    return {} if source is None else {"correctness": source}


def _reward(config: Config, settings: Stamp) -> Stamp:
    """What decides a score: not how often a service is asked, nor how much failure is borne."""
    sources = {}
    beside = {"timeout", "retries", "batch_size", "correctness"}  # the last is evaluation's
    for name, leaf in leaves(config.reward.sources):
        source = leaf.model_dump(mode="json", exclude=beside)
        if isinstance(leaf, ModelSource) and leaf.path is not None:
            source["path"] = _model(leaf.path)
        if isinstance(leaf, FunctionSource):  # of a file, its bytes; what it imports is not seen
            source["code"] = fingerprint(leaf.path.rpartition(":")[0])
        sources[name] = source
    for source_config in config.reward.sources:
        if isinstance(source_config, EnsembleSource):
            sources[source_config.name] = source_config.model_dump(exclude={"members"})
    kept = {name: value for name, value in settings.items() if name != "max_failed"}
    return kept | {"sources": sources}


def _flatten(nested: Stamp, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
