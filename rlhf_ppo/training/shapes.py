"""Models of a run's shapes without data, built by the run's own code (PyTorch's fake tensors)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.moe import ExpertsInterface

from rlhf_ppo.config import Config
from rlhf_ppo.models.dropout import disable_dropout
from rlhf_ppo.models.load import DTYPES
from rlhf_ppo.models.lora import add_frozen_adapter, peft_config
from rlhf_ppo.models.packing import NAME
from rlhf_ppo.models.policy import FrozenPolicy, PolicyWithValueHead, build_policy

EXPERTS = "rlhf_ppo_forecast"  # an implementation of layers of experts


@dataclass(frozen=True)
class RewardShape:
    """A reward model that nobody has loaded."""

    config: PretrainedConfig
    dtype: str
    adapter: peft.PeftConfig | None = None  # it stands on the policy's base; None: a whole model


def build_shapes(
    config: Config,
    policy: PretrainedConfig,
    rewards: Sequence[RewardShape],
    start: peft.PeftConfig | None,
) -> tuple[PolicyWithValueHead, FrozenPolicy | None, list[PreTrainedModel]]:
    """Policy, reference and whole reward models by the run's own code, shapes alone."""
    dtype = config.policy.dtype
    with torch.device("meta"):
        lm: Any = empty_model(AutoModelForCausalLM, policy, dtype)
        models = [
            empty_model(AutoModelForSequenceClassification, each.config, each.dtype)
            for each in rewards
            if each.adapter is None
        ]
        if start is not None:
            lm = peft.PeftModel(lm, start)
        first = models[0] if models else None
        checkpointing = config.policy.gradient_checkpointing
        trained = build_policy(lm, config.lora, config.value, first, checkpointing)
        on_base = [each.adapter for each in rewards if each.adapter is not None]
        for number, adapter in enumerate(on_base):
            add_frozen_adapter(trained.lm, f"rlhf_reward_{number}", adapter)
        reference = None
        if config.lora is None:
            reference = FrozenPolicy(empty_model(AutoModelForCausalLM, policy, dtype))
    return trained, reference, models


def empty_model(kind: Any, architecture: PretrainedConfig, dtype: str) -> PreTrainedModel:
    """A model without data, as Transformers would load it."""
    model: PreTrainedModel = kind.from_config(architecture, dtype=DTYPES[dtype])
    disable_dropout(model)
    return model


def empty_language_model(config: Config, shape: RewardShape, *, classifies: bool) -> nn.Module:
    """What a supervised stage trains, without data: whole, or by adapters."""
    kind = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    with torch.device("meta"):
        model: Any = empty_model(kind, shape.config, shape.dtype)
        if config.policy.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if config.lora is not None:
            task: Any = "SEQ_CLS" if classifies else "CAUSAL_LM"
            model = peft.get_peft_model(model, peft_config(config.lora, task))
    found: nn.Module = model
    return found


def fill(role: nn.Module, device: torch.device) -> None:
    """Tensors without data for a role that was built on no device; it takes packed rows."""
    role.to_empty(device=device)
    for module in role.modules():
        if isinstance(module, PreTrainedModel):
            module.tie_weights()
            # The trial that decides this otherwise needs data.
            if module.config._attn_implementation == "sdpa":
                module.set_attn_implementation(NAME)
            if getattr(module.config, "_experts_implementation", None) is not None:
                module.config._experts_implementation = EXPERTS


def _experts(self: Any, states: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """A layer of experts as far as memory sees it; whose expert gets which token needs data.

    Args:
        self: the layer of experts.
        states: (T, H).
        experts, weights: (T, K), of each token's experts.
    """
    chosen = states.repeat_interleave(experts.shape[1], dim=0)
    inner = _one_expert(self, chosen, "gate_up_proj" if self.has_gate else "up_proj")
    inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
    found = _one_expert(self, inner, "down_proj") * weights.reshape(-1, 1)
    return found.view(*experts.shape, -1).sum(dim=1).to(states.dtype)


def _one_expert(layer: Any, rows: Tensor, name: str) -> Tensor:
    weight = getattr(layer, name)[0]
    made: Tensor = rows.to(weight.dtype) @ (weight if layer.is_transposed else weight.T)
    return made + getattr(layer, f"{name}_bias")[0] if layer.has_bias else made


ExpertsInterface.register(EXPERTS, _experts)
