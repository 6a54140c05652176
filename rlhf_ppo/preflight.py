"""What can be known of models and data before anything is written or trained.

A run of hours should not stop at its last stage for something that its first second could tell.
"""

from collections.abc import Sequence
from functools import partial

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_ppo.config import Config, FunctionSource, HttpSource, ModelSource, leaves
from rlhf_ppo.data.prompts import Prompt, check_room, encode_prompts
from rlhf_ppo.data.report import TooLong
from rlhf_ppo.data.template import Text, assumed_template, check_template
from rlhf_ppo.errors import UserError, problem_of, raise_all
from rlhf_ppo.models import families
from rlhf_ppo.models.families import check_kind
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
    lines = []
    for setting, path in paths.items():
        if path is not None:
            line = assumed_template(load_tokenizer(path, setting), setting, texts)
            lines += [] if line is None else [line]
    return lines


def check_policy(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    model: PretrainedConfig | None,
    prompts: dict[str, Sequence[Prompt]],
    conversations: dict[str, Sequence[Text]],
) -> tuple[dict[str, list[TooLong]], int]:
    """Try texts on the policy's tokenizer and positions.

    Args:
        config: settings.
        tokenizer: of the policy.
        model: its configuration, or None where that is checked later.
        prompts: by setting; those that responses are sampled for.
        conversations: by setting; demonstrations and preferences.

    Returns:
        By setting the prompts that are too long, and the tokens of the longest other one.

    Raises:
        UserError: messages that the template refuses, no room for a response, bad stop tokens.
    """
    check_stop_tokens(tokenizer, config.rollout.stop_tokens)
    for setting, texts in conversations.items():
        check_template(tokenizer, texts, setting)
    long, longest = {}, 0
    for setting, items in prompts.items():
        if items:
            limit = config.data.max_prompt_tokens
            encoded, long[setting] = encode_prompts(items, tokenizer, limit, setting)
            longest = max(longest, *(len(item.ids) for item in encoded))
            if model is not None:
                check_room(encoded, model, config.rollout.max_new_tokens, setting)
    return long, longest


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


def check_models(config: Config, prompts: Sequence[Prompt]) -> None:
    """Try the held-out prompts on the other models of the evaluation.

    Raises:
        UserError: lists all whose tokenizer or configuration cannot be loaded, whose template
            refuses the messages, or that lack a stop token of the run.
    """
    given = {f"evaluation.models.{name}": path for name, path in config.evaluation.models.items()}
    problems: list[str] = []
    for setting, path in given.items():
        problems += problem_of(partial(_check_other, config, setting, path, prompts))
    policy = config.evaluation.policy
    if policy is not None:
        problems += problem_of(partial(load_model_config, policy, "evaluation.policy"))
    raise_all(problems)


def _check_other(config: Config, setting: str, path: str, prompts: Sequence[Prompt]) -> None:
    tokenizer = load_tokenizer(path, setting)
    load_model_config(path, setting)
    check_stop_tokens(tokenizer, config.rollout.stop_tokens)
    check_template(tokenizer, [prompt.text for prompt in prompts], setting)


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
