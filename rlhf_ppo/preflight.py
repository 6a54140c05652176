"""What can be known of models and data before anything is written or trained.

A run of hours should not stop at its last stage for something that its first second could tell.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_ppo.config import Config, FunctionSource, HttpSource, ModelSource, leaves
from rlhf_ppo.data.lengths import LengthLimit
from rlhf_ppo.data.prompt_fitting import Reader
from rlhf_ppo.data.prompts import Prompt, check_room, encode_prompts
from rlhf_ppo.data.template import Text, assumed_template, check_template
from rlhf_ppo.errors import UserError, problem_of, raise_all
from rlhf_ppo.models import families
from rlhf_ppo.models.families import check_kind
from rlhf_ppo.models.limits import limits_of, missing_token
from rlhf_ppo.models.load import (
    adapter_outputs,
    check_installed,
    check_same_vocabulary,
    check_stop_tokens,
    load_causal_lm,
    load_classifier,
    load_model_config,
    load_tokenizer,
)
from rlhf_ppo.models.lora import is_adapter
from rlhf_ppo.models.trial import try_language_model
from rlhf_ppo.rewards.classifier import RewardModel, output_of
from rlhf_ppo.rewards.function import RewardFunction
from rlhf_ppo.rewards.service import RewardService
from rlhf_ppo.rewards.sources import setting_of
from rlhf_ppo.rollout.decoder import way_of


def check_machine(config: Config, device: torch.device) -> None:
    """What the settings need is installed, and would do something on this machine.

    Raises:
        UserError: lists all that is missing or in vain.
    """
    problems: list[str] = []
    if config.ppo.optimizer == "adamw_8bit":
        what = "ppo.optimizer = adamw_8bit"
        problems += problem_of(partial(check_installed, "bitsandbytes", what))
    if config.policy.quantization is not None:
        what = f"policy.quantization = {config.policy.quantization}"
        problems += problem_of(partial(check_installed, "bitsandbytes", what))
    if config.hardware.offload and device.type == "cpu":
        problems.append(
            "hardware.offload = true has no effect: this run computes on the CPU, where all models "
            "are already. Set it to false."
        )
    raise_all(problems)


def check_families(config: Config, stages: Sequence[str]) -> None:
    """Every given model is of a family that works; one that nobody has tried is tried here.

    Raises:
        UserError: lists all that are not.
    """
    problems: list[str] = []
    policies = {"policy.path": config.policy.path}
    if "evaluation" in stages:
        policies["evaluation.policy"] = config.evaluation.policy
        others = config.evaluation.models
        policies |= {f"evaluation.models.{name}": path for name, path in others.items()}
    for setting, path in policies.items():
        if path is not None:
            problems += problem_of(partial(_check_policy_family, config, setting, path))
    if {"ppo", "evaluation"} & set(stages):
        for name, leaf in leaves(config.reward.sources):
            if isinstance(leaf, ModelSource) and leaf.path is not None:
                problems += problem_of(partial(_check_reward_family, leaf, setting_of(name)))
    raise_all(problems)


def _check_policy_family(config: Config, setting: str, path: str) -> None:
    kind = load_model_config(path, setting)
    check_kind(kind, f"{setting} = {path!r}")
    if kind.model_type in families.POLICIES or config.policy.quantization is not None:
        return
    model = load_causal_lm(path, config.policy.dtype, setting)
    try_language_model(
        model, f"{setting} = {path!r}", in_training=config.policy.gradient_checkpointing
    )
    way_of(model)


def _check_reward_family(source: ModelSource, setting: str) -> None:
    path = source.path or ""
    kind = load_model_config(path, f"{setting}.path")
    check_kind(kind, f"{setting}.path = {path!r}")
    if kind.model_type not in families.REWARD_MODELS:
        model = load_classifier(path, source.dtype, f"{setting}.path")
        RewardModel(model, load_tokenizer(path, f"{setting}.path"), source, setting)


def assumptions(config: Config, texts: Sequence[Text]) -> list[str]:
    """What is assumed of the given tokenizers, one line each; `texts` is what they will read."""
    paths = {"policy.path": config.policy.path}
    paths |= {f"evaluation.models.{name}": path for name, path in config.evaluation.models.items()}
    if config.reward_model is not None:
        paths["reward_model.init_from"] = config.reward_model.init_from
    for name, leaf in leaves(config.reward.sources):
        if isinstance(leaf, ModelSource):
            paths[f"{setting_of(name)}.path"] = leaf.path
    lines = _rounding(config)
    for setting, path in paths.items():
        if path is not None:
            line = assumed_template(load_tokenizer(path, setting), setting, texts)
            lines += [] if line is None else [line]
    return lines


def _rounding(config: Config) -> list[str]:
    """What bfloat16 weights do to small updates, if all of them are trained."""
    if config.policy.dtype != "bfloat16" or config.lora is not None:
        return []
    rate = config.ppo.learning_rate
    return [
        f"policy.dtype = bfloat16 without lora: weights have 8 significant bits, so an Adam step "
        f"of about ppo.learning_rate = {rate:g} is rounded away in every weight beyond "
        f"{512 * rate:.2g}, and in most beyond {256 * rate:.2g}. float32 with "
        "hardware.mixed_precision: bf16 keeps all steps."
    ]


def policy_reader(
    config: Config, tokenizer: PreTrainedTokenizerBase, model: PretrainedConfig
) -> Reader:
    """The policy as a reader of prompts, with room for a response.

    Raises:
        UserError: responses alone take all positions.
    """
    limits = limits_of(model, policy_setting(config)).strict()
    new = config.rollout.max_new_tokens
    source = _value_start(config)
    if source is not None:  # its value model reads prompts and responses too
        value = limits_of(load_model_config(source, "value.model"), "the value model")
        if value.positions is not None and value.positions < (limits.positions or 10**9):
            limits = replace(limits, setting=value.setting, positions=value.positions)
        if value.vocabulary is not None and value.vocabulary < (limits.vocabulary or 10**9):
            limits = replace(limits, setting=value.setting, vocabulary=value.vocabulary)
    if limits.positions is not None and new >= limits.positions:
        raise UserError(
            f"rollout.max_new_tokens = {new} leaves no room for a prompt: {limits.setting} has "
            f"{limits.positions} positions. Lower it."
        )
    limit = LengthLimit("data.max_prompt_tokens", config.data.max_prompt_tokens, limits, new)
    return Reader(tokenizer, limit)


def policy_setting(config: Config) -> str:
    """The setting that says which policy a run starts from."""
    return "policy.scratch" if config.policy.path is None else "policy.path"


def scoring_readers(
    config: Config,
    policy: PreTrainedTokenizerBase,
    model: PretrainedConfig | None,
) -> list[Reader]:
    """The reward models as readers of prompts, the one that this run trains included.

    Args:
        config: settings.
        policy: tokenizer that a reward model without `init_from` starts with.
        model: configuration of the policy; None: not made yet.
    """
    readers = []
    for name, leaf in leaves(config.reward.sources):
        if isinstance(leaf, ModelSource):
            found = _reader_of(config, leaf, f"{setting_of(name)}", policy, model)
            readers += [] if found is None else [found]
    return readers


def _reader_of(
    config: Config,
    leaf: ModelSource,
    setting: str,
    policy: PreTrainedTokenizerBase,
    model: PretrainedConfig | None,
) -> Reader | None:
    start = None if config.reward_model is None else config.reward_model.init_from
    path = leaf.path or start
    if path is not None:
        place = f"{setting}.path" if leaf.path else "reward_model.init_from"
        tokenizer, model = load_tokenizer(path, place), load_model_config(path, place)
    elif config.reward_model is not None and model is not None:
        tokenizer = policy
    else:
        return None
    limits = limits_of(model, setting)
    new = config.rollout.max_new_tokens
    return Reader(tokenizer, LengthLimit(f"{setting}.max_tokens", leaf.max_tokens, limits, new))


def _value_start(config: Config) -> str | None:
    """The reward model that a value model starts from, if it is there already."""
    models = [leaf for _, leaf in leaves(config.reward.sources) if isinstance(leaf, ModelSource)]
    if config.value.model != "reward" or not models:
        return None
    start = None if config.reward_model is None else config.reward_model.init_from
    return models[0].path or start


def check_reward(
    config: Config, policy: PreTrainedTokenizerBase | None, prompts: Sequence[Prompt]
) -> None:
    """Try prompts on every reward source that is given; services and functions are asked once.

    Raises:
        UserError: lists all that is wrong with models, functions and services.
    """
    problems: list[str] = []
    for name, leaf in leaves(config.reward.sources):
        setting = setting_of(name)
        match leaf:
            case ModelSource(path=str()):
                problems += problem_of(
                    partial(_check_model, config, leaf, setting, policy, prompts)
                )
            case FunctionSource() if prompts:
                problems += problem_of(partial(_check_function, leaf, setting, prompts))
            case HttpSource() if prompts:
                problems += problem_of(partial(RewardService(leaf, setting).check, prompts))
    raise_all(problems)


def check_models(
    config: Config, policy: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> None:
    """Try the held-out prompts on the other models of the evaluation.

    Args:
        config: settings.
        policy: tokenizer that a policy to be evaluated is given.
        prompts: held-out ones.

    Raises:
        UserError: lists all whose tokenizer or configuration cannot be loaded, whose template
            refuses the messages, that lack a stop token of the run, or for which a prompt with its
            response is too long or holds a token without an embedding.
    """
    given = {f"evaluation.models.{name}": path for name, path in config.evaluation.models.items()}
    problems: list[str] = []
    for setting, path in given.items():
        problems += problem_of(partial(_check_other, config, setting, path, prompts))
    other = config.evaluation.policy
    if other is not None:
        check = partial(_check_other, config, "evaluation.policy", other, prompts, policy)
        problems += problem_of(check)
    raise_all(problems)


def _check_other(
    config: Config,
    setting: str,
    path: str,
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Another model answers the held-out prompts: all of them, so none may be too long for it."""
    tokenizer = tokenizer or load_tokenizer(path, setting)
    model = load_model_config(path, setting)
    check_stop_tokens(tokenizer, config.rollout.stop_tokens)
    texts = [prompt.text for prompt in prompts]
    check_template(tokenizer, texts, setting)
    if prompts:
        # Which prompts are answered was decided by the reference's tokenizer.
        encoded, _ = encode_prompts(prompts, tokenizer, 10**9, setting)
        check_room(encoded, model, config.rollout.max_new_tokens, setting)
        found = missing_token(limits_of(model, setting), tokenizer, [item.ids for item in encoded])
        if found is not None:
            raise UserError(f"{setting}: {prompts[found[0]].where} {found[1]}.")


def _check_function(source: FunctionSource, setting: str, prompts: Sequence[Prompt]) -> None:
    RewardFunction(source, setting).check(prompts)


def _check_model(
    config: Config,
    source: ModelSource,
    setting: str,
    policy: PreTrainedTokenizerBase | None,
    prompts: Sequence[Prompt],
) -> None:
    path = source.path or ""
    tokenizer = load_tokenizer(path, f"{setting}.path")
    model = load_model_config(path, f"{setting}.path")
    if is_adapter(path):
        model.num_labels = adapter_outputs(path, f"{setting}.path")
    output_of(model, source, setting)
    if config.value.model == "reward" and model.num_labels != 1:
        raise UserError(
            f"value.model = reward: {path!r} has {model.num_labels} outputs; a value model "
            "starts from a reward model with one. Use value.model shared or policy."
        )
    check_template(tokenizer, [prompt.text for prompt in prompts], f"{setting}.path")
    if config.value.model == "reward" and policy is not None:
        check_same_vocabulary(policy, tokenizer, path)
