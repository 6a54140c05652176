"""From model folders to the four roles on their devices."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf_ppo.config import Config
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.forward import check_output_layer
from rlhf_ppo.models.load import (
    check_same_vocabulary,
    load_causal_lm,
    load_tokenizer,
    stop_token_ids,
)
from rlhf_ppo.models.policy import FrozenPolicy, PolicyWithValueHead, build_policy
from rlhf_ppo.rewards.sources import load_sources
from rlhf_ppo.rollout.collect import Roles
from rlhf_ppo.rollout.generation import SamplingSettings
from rlhf_ppo.stamps import ModelPaths
from rlhf_ppo.training.distributed import Processes


def build_roles(
    config: Config, paths: ModelPaths, processes: Processes
) -> tuple[Roles, torch.optim.Optimizer]:
    """Load the models for training: a fresh policy, its reference, the reward sources.

    Raises:
        UserError: a model cannot be loaded or does not fit the others.
    """
    tokenizer = load_tokenizer(paths.reference, "policy.path")
    lm = load_causal_lm(paths.reference, config.policy.dtype, "policy.path")
    check_output_layer(lm, paths.reference)
    _check_lengths(config, lm)
    # With adapters the policy without them is the reference; otherwise it is a frozen copy.
    reference = None
    if config.lora is None:
        copy = load_causal_lm(paths.reference, config.policy.dtype, "policy.path")
        reference = FrozenPolicy(copy)
        reference.to(processes.device)
    reward = load_sources(config.reward, paths.reward_model, processes.device)
    start_of_values = None
    if config.value.model == "reward":  # rules.py: there is one model among the sources
        found = reward.first_model()
        if found is not None:
            check_same_vocabulary(tokenizer, found.tokenizer, found.setting)
            start_of_values = found.model
    policy = build_policy(
        lm, config.lora, config.value, start_of_values, config.policy.gradient_checkpointing
    )
    optimizer = _make_optimizer(config, policy)
    policy.to(processes.device)
    wrapped, optimizer = processes.prepare(policy, optimizer)
    roles = Roles(
        policy=policy,
        policy_forward=wrapped,
        reference=reference,
        reward=reward,
        tokenizer=tokenizer,
        autocast=processes.autocast,
    )
    return roles, optimizer


def load_for_evaluation(
    config: Config, policy_path: str, paths: ModelPaths, processes: Processes
) -> Roles:
    """Load a finished policy beside its reference and reward sources; nothing is trained."""
    dtype, device = config.policy.dtype, processes.device
    lm = load_causal_lm(policy_path, dtype, "policy")
    policy = PolicyWithValueHead(lm).eval().requires_grad_(False).to(device)
    reference = FrozenPolicy(load_causal_lm(paths.reference, dtype, "policy.path")).to(device)
    return Roles(
        policy=policy,
        policy_forward=_Autocast(policy, processes),
        reference=reference,
        reward=load_sources(config.reward, paths.reward_model, device),
        tokenizer=load_tokenizer(paths.reference, "policy.path"),
        autocast=processes.autocast,
    )


def sampling_settings(config: Config, roles: Roles) -> SamplingSettings:
    """How this run draws responses."""
    lm: PreTrainedModel = roles.policy.lm
    return SamplingSettings(
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=config.rollout.temperature,
        stop_ids=stop_token_ids(lm, roles.tokenizer, config.rollout.stop_tokens),
        batch_size=config.rollout.generation_batch_size,
    )


class _Autocast(nn.Module):
    """Runs a module under the run's autocast, as Accelerate's wrapper does in training."""

    def __init__(self, module: nn.Module, processes: Processes) -> None:
        super().__init__()
        self.module = module
        self.autocast: Callable[..., object] = processes.autocast

    def forward(self, *arguments: object) -> object:
        with self.autocast():  # type: ignore[attr-defined]
            return self.module(*arguments)


def _make_optimizer(config: Config, policy: PolicyWithValueHead) -> torch.optim.Optimizer:
    ppo = config.ppo
    of_policy: list[nn.Parameter] = []
    of_value: list[nn.Parameter] = []
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            (of_policy if name.startswith("lm.") else of_value).append(parameter)
    value_rate = config.value.learning_rate or ppo.learning_rate
    return torch.optim.AdamW(
        # `peak` stays; `lr` is set from it before each step.
        [
            {"params": of_policy, "lr": ppo.learning_rate, "peak": ppo.learning_rate},
            {"params": of_value, "lr": value_rate, "peak": value_rate},
        ],
        betas=(0.9, ppo.adam_beta2),
        eps=ppo.adam_epsilon,
        weight_decay=ppo.weight_decay,
        fused=True,  # one pass over the memory in place of eight
    )


def _check_lengths(config: Config, lm: PreTrainedModel) -> None:
    positions = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    new = config.rollout.max_new_tokens
    if positions is not None and new >= positions:
        raise UserError(
            f"rollout.max_new_tokens = {new} leaves no room for a prompt: the model has "
            f"{positions} positions. Lower it."
        )
