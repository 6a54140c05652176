"""From model folders to the four roles on their devices."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf_ppo.config import Config
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.load import (
    check_installed,
    check_same_vocabulary,
    load_causal_lm,
    load_tokenizer,
    stop_token_ids,
)
from rlhf_ppo.models.lora import base_path
from rlhf_ppo.models.policy import FrozenPolicy, PolicyWithValueHead, base_model, build_policy
from rlhf_ppo.models.save import load_values
from rlhf_ppo.models.shared import SharedBase
from rlhf_ppo.models.trial import try_language_model, try_value_trunk
from rlhf_ppo.rewards.sources import Places, load_sources
from rlhf_ppo.rollout.collect import Roles
from rlhf_ppo.rollout.decoder import way_of
from rlhf_ppo.rollout.generation import SamplingSettings
from rlhf_ppo.seeds import derive_seed
from rlhf_ppo.stamps import ModelPaths
from rlhf_ppo.training.distributed import Processes

POOLED_RATE = 3e-3  # of a small new network: what suits it hangs on no policy's size


def build_roles(
    config: Config, paths: ModelPaths, processes: Processes
) -> tuple[Roles, torch.optim.Optimizer]:
    """Load the models for training: a fresh policy, its reference, the reward sources.

    Raises:
        UserError: a model cannot be loaded or does not fit the others.
    """
    tokenizer = load_tokenizer(paths.reference, "policy.path")
    device, offload = processes.device, config.hardware.offload
    lm = _start(config, paths.reference, device, keep_adapter=config.lora is not None)
    _check_lengths(config, lm)
    # With adapters the policy without them is the reference; otherwise it is a frozen copy.
    reference = None
    if config.lora is None:
        copy = _start(config, paths.reference, device)
        reference = FrozenPolicy(copy) if offload else FrozenPolicy(copy).to(device)
    reward, start_of_values = None, None
    if config.value.model == "reward":  # rules.py: there is one model among the sources
        # Not on the policy's base even if it is an adapter: a value model is trained as a whole.
        places = Places(device, offload, seed=config.seed)
        reward = load_sources(config.reward, paths.reward_model, places)
        found = reward.first_model()
        if found is not None:
            check_same_vocabulary(tokenizer, found.tokenizer, found.setting)
            start_of_values = found.model
    policy = build_policy(
        lm,
        config.lora,
        config.value,
        start_of_values,
        config.policy.gradient_checkpointing,
        derive_seed(config.seed, "ppo", "adapter"),
    )
    if config.value.init == "saved":
        load_values(policy, paths.reference)
    optimizer = make_optimizer(config, policy)
    policy.to(device)
    _try_policy(policy, paths.reference, in_training=config.policy.gradient_checkpointing)
    if reward is None:
        base = _shared_base(config, policy, paths.reference)
        places = Places(device, offload, base, config.seed)
        reward = load_sources(config.reward, paths.reward_model, places)
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


def _start(
    config: Config, path: str, device: torch.device, *, keep_adapter: bool = False
) -> PreTrainedModel:
    """The model that the run starts from; the same at each call."""
    return load_causal_lm(
        path,
        config.policy.dtype,
        "policy.path",
        keep_adapter=keep_adapter,
        quantization=config.policy.quantization,
        device=device,
        allow=config.policy.allow_unmatched,
        seed=config.seed,
    )


def _try_policy(policy: PolicyWithValueHead, path: str, *, in_training: bool) -> None:
    """See that the policy's numbers are those of its own forward pass, sampled or scored."""
    base = base_model(policy.lm)
    try_language_model(base, f"policy.path = {path!r}", in_training=in_training)
    way_of(base)
    if policy.value_trunk is not None:
        try_value_trunk(policy.value_trunk, "value.model")


def _shared_base(config: Config, policy: PolicyWithValueHead, path: str) -> SharedBase | None:
    """The policy's base, if it is never trained and is what a reward model was trained on."""
    if config.lora is None or config.policy.quantization is not None:
        return None
    return SharedBase(policy.lm, base_path(path, "policy.path"), config.policy.dtype)


def load_for_evaluation(
    config: Config, policy_path: str, paths: ModelPaths, processes: Processes
) -> Roles:
    """Load a finished policy beside its reference and reward sources; nothing is trained."""
    device, offload = processes.device, config.hardware.offload
    given = config.evaluation.policy is not None
    setting = "evaluation.policy" if given else "policy"
    allow = config.evaluation.allow_unmatched if given else ()
    lm = _frozen(config, policy_path, setting, allow, processes)
    policy = PolicyWithValueHead(lm).eval().requires_grad_(False)
    allow = config.policy.allow_unmatched
    reference = FrozenPolicy(_frozen(config, paths.reference, "policy.path", allow, processes))
    policy.to(device)
    _try_policy(policy, policy_path, in_training=False)
    places = Places(device, offload, seed=config.seed)
    return Roles(
        policy=policy,
        policy_forward=_Autocast(policy, processes),
        reference=reference if offload else reference.to(device),
        reward=load_sources(config.reward, paths.reward_model, places),
        tokenizer=load_tokenizer(paths.reference, "policy.path"),
        autocast=processes.autocast,
    )


def load_other(config: Config, path: str, setting: str, processes: Processes) -> FrozenPolicy:
    """Load a model that is only compared, as the policy is for evaluation.

    Raises:
        UserError: it cannot be loaded.
    """
    lm = _frozen(config, path, setting, config.evaluation.allow_unmatched, processes)
    found = FrozenPolicy(lm).to(processes.device)
    try_language_model(base_model(found.lm), f"{setting} = {path!r}")
    return found


def _frozen(
    config: Config, path: str, setting: str, allow: Sequence[str], processes: Processes
) -> PreTrainedModel:
    return load_causal_lm(
        path,
        config.policy.dtype,
        setting,
        quantization=config.policy.quantization,
        device=processes.device,
        allow=allow,
        seed=config.seed,
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


def make_optimizer(config: Config, policy: PolicyWithValueHead) -> torch.optim.Optimizer:
    """AdamW over what is trained, one group for the policy and one for the values."""
    ppo = config.ppo
    of_values = POOLED_RATE if config.value.model == "pooled" else ppo.learning_rate
    rates = (ppo.learning_rate, config.value.learning_rate or of_values)
    parts = (policy.policy_parameters(), policy.value_parameters())
    groups = [
        # `peak` stays; `lr` is set from it before each step.
        {"params": [p for p in part.values() if p.requires_grad], "lr": rate, "peak": rate}
        for part, rate in zip(parts, rates, strict=True)
    ]
    options: dict[str, Any] = {
        "betas": (0.9, ppo.adam_beta2),
        "eps": ppo.adam_epsilon,
        "weight_decay": ppo.weight_decay,
    }
    if ppo.optimizer == "adamw_8bit":
        check_installed("bitsandbytes", "ppo.optimizer = adamw_8bit")
        eight_bit: Any = importlib.import_module("bitsandbytes").optim.AdamW8bit
        made: torch.optim.Optimizer = eight_bit(groups, **options)
        return made
    return torch.optim.AdamW(groups, fused=True, **options)  # one pass over the memory, not eight


def _check_lengths(config: Config, lm: PreTrainedModel) -> None:
    positions = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    new = config.rollout.max_new_tokens
    if positions is not None and new >= positions:
        raise UserError(
            f"rollout.max_new_tokens = {new} leaves no room for a prompt: the model has "
            f"{positions} positions. Lower it."
        )
