"""The weights of every model that is given, compared with their models before anything is written.

From the headers of the files alone, so it takes no time worth mentioning: a reward model without
its head is found before the supervised stage has trained for hours.
"""

from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from rlhf_ppo.config import Config, ModelSource, leaves
from rlhf_ppo.errors import UserError, problem_of, raise_all
from rlhf_ppo.models.adapters import check_targets
from rlhf_ppo.models.files import is_adapter, quantized_by
from rlhf_ppo.models.load import check_causal_lm, check_classifier, load_model_config
from rlhf_ppo.rewards.sources import setting_of


def check_weights(config: Config, stages: Sequence[str]) -> None:
    """Every given model is there as a whole, of a kind that its role can use.

    Raises:
        UserError: lists the models of which weights are missing, have another shape or no place,
            or that are to be trained in a quantised form.
    """
    problems = []
    used = {"ppo", "evaluation"} & set(stages)
    start, own = config.policy.path, config.sft is None
    if start is not None and ("sft" in stages or (used and own)):
        allow, merged = config.policy.allow_unmatched, config.policy.quantization is None
        problems += problem_of(
            lambda: check_causal_lm(start, "policy.path", allow, merged=merged)
        ) or problem_of(lambda: _check_trained(config, start, "policy.path"))
    for name, leaf in leaves(config.reward.sources):
        if isinstance(leaf, ModelSource) and leaf.path is not None and used:
            setting = f"{setting_of(name)}.path"
            problems += problem_of(
                lambda p=leaf.path, s=setting, a=leaf.allow_unmatched: check_classifier(p, s, a)  # type: ignore[misc]
            )
            if config.value.model == "reward":
                problems += problem_of(lambda p=leaf.path, s=setting: _refuse_quantized(p, s))  # type: ignore[misc]
    if config.reward_model is not None and "reward_model" in stages:
        problems += _problems_of_reward_start(config)
    if "evaluation" in stages:
        given = {f"evaluation.models.{name}": p for name, p in config.evaluation.models.items()}
        if config.evaluation.policy is not None:
            given["evaluation.policy"] = config.evaluation.policy
        allow = config.evaluation.allow_unmatched
        for setting, path in given.items():
            problems += problem_of(lambda p=path, s=setting: check_causal_lm(p, s, allow))  # type: ignore[misc]
    raise_all(problems)


def check_adapter_targets(config: Config, policy: PretrainedConfig) -> None:
    """The layers that `lora.target_modules` names are there, and can be merged again.

    Raises:
        UserError: one is not a layer of the policy, or shares its weights with another.
    """
    start = config.policy.path
    goes_on = start is not None and config.sft is None and is_adapter(start)
    if config.lora is None or goes_on:
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(policy)
    check_targets(model, config.lora)


def _problems_of_reward_start(config: Config) -> list[str]:
    """What is wrong with the model that the reward model starts from, if it is given."""
    settings = config.reward_model
    if settings is None:
        return []
    if settings.init_from is not None:
        path, setting, allow = (
            settings.init_from,
            "reward_model.init_from",
            settings.allow_unmatched,
        )
    elif config.sft is None and config.policy.path is not None:
        path, setting, allow = config.policy.path, "policy.path", config.policy.allow_unmatched
    else:
        return []  # the run makes it
    return problem_of(lambda: check_classifier(path, setting, allow, new_head=True)) or problem_of(
        lambda: _refuse_quantized(path, setting)
    )


def _check_trained(config: Config, path: str, setting: str) -> None:
    """A quantised policy is trained by adapters beside it that are never merged, or not at all."""
    kept = config.lora is not None and config.lora.save == "adapter"
    if config.sft is None and kept and config.value.model in ("shared", "adapter"):
        return
    _refuse_quantized(path, setting)


def _refuse_quantized(path: str, setting: str) -> None:
    method = quantized_by(load_model_config(path, setting))
    if method is not None:
        raise UserError(
            f"{setting}: the weights of {path!r} are quantised ({method}), and this run would "
            "train them or merge an adapter into them. Give the model as it was "
            "before quantisation, or train adapters beside it: lora.save: adapter, "
            "without an sft section."
        )
