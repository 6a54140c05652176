"""The policy with its value head, and the frozen reference."""

import copy
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_ppo.algorithm.batch import TokenOutputs
from rlhf_ppo.config import LoraConfig, ValueConfig
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.adapters import fresh_adapter
from rlhf_ppo.models.forward import Layout, find_trunk, hidden_states, spread, token_logprobs
from rlhf_ppo.models.lora import (
    REFERENCE,
    VALUE,
    adapter_parameters,
    checkpoint_contexts,
    copy_policy_adapter,
    using_adapter,
)
from rlhf_ppo.models.packing import enable_packing
from rlhf_ppo.models.value_head import PooledValueHead

WIDTH = "value_states_width"  # on a value model: features of its last hidden states


class PolicyWithValueHead(nn.Module):
    """A language model and V(state), from one pass of one trunk unless a value model is given.

    The whole computation goes through `forward`, so that wrappers (DDP, FSDP) see it.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        value_trunk: nn.Module | None = None,
        pooled: PooledValueHead | None = None,
    ) -> None:
        """Join a language model and a zero-initialised value head.

        Args:
            lm: causal language model, perhaps with LoRA adapters; one called `VALUE` serves the
                values, one called `REFERENCE` is what the policy is held to.
            value_trunk: a separate trunk for the values; None: they share the policy's.
            pooled: in place of a linear head; it reads the policy's trunk and does not train it.
        """
        super().__init__()
        self.lm = lm
        adapters: Any = getattr(lm, "peft_config", {})
        self.value_adapter = VALUE in adapters
        self.reference_adapter = REFERENCE if REFERENCE in adapters else None
        self.value_trunk = value_trunk
        enable_packing(base_model(lm), find_trunk(base_model(lm)))
        if value_trunk is not None:
            enable_packing(value_trunk, value_trunk)
        width = states_width(base_model(lm), value_trunk)
        self.value_head: Any = pooled or _linear_head(width)

    def forward(
        self, layout: Layout, temperature: float, entropy_gradient: bool = False
    ) -> TokenOutputs:
        """Log-probabilities, values and entropies of the response tokens.

        Args:
            layout: N response tokens in B rows.
            temperature: divides the logits.
            entropy_gradient: let gradients flow through the entropy, which costs memory.
        """
        base = base_model(self.lm)
        states = hidden_states(find_trunk(base), layout)
        logprobs, entropy = token_logprobs(
            base, states, layout.targets, temperature, entropy_gradient
        )
        if self.value_trunk is not None:
            states = hidden_states(self.value_trunk, layout)
        elif self.value_adapter:
            with using_adapter(self.lm, VALUE):
                states = hidden_states(find_trunk(base), layout)
        with torch.autocast(states.device.type, enabled=False):  # so small a layer keeps float32
            values = self._values(states, layout)
        return TokenOutputs(
            logprobs=spread(logprobs, layout.mask),
            values=spread(values, layout.mask),
            entropy=spread(entropy, layout.mask),
        )

    def _values(self, states: Tensor, layout: Layout) -> Tensor:
        """(N,) float32 from (N, H)."""
        head = self.value_head
        if isinstance(head, PooledValueHead):
            values: Tensor = head(states, layout.cells, layout.mask)
        else:
            values = head(states.to(head.weight.dtype)).squeeze(-1).float()
        return values

    def as_reference(self) -> AbstractContextManager[Any]:
        """A context in which a policy with LoRA is its own reference.

        That is its base without an adapter, or with the frozen copy of the one it started from.
        """
        return using_adapter(self.lm, self.reference_adapter)

    def reference_logprobs(self, layout: Layout, temperature: float) -> Tensor:
        """Log-probabilities of the response tokens under that reference, (B, R) float32, nats."""
        with self.as_reference():
            return _logprobs(base_model(self.lm), layout, temperature)

    @property
    def values_apart(self) -> bool:
        """Whether the value loss trains no weight of the policy."""
        pooled = isinstance(self.value_head, PooledValueHead)
        return pooled or self.value_adapter or self.value_trunk is not None

    def value_parameters(self) -> dict[str, nn.Parameter]:
        """What belongs to the value function alone, by name."""
        own = {k: p for k, p in self.named_parameters() if not k.startswith("lm.")}
        return own | {f"lm.{k}": p for k, p in adapter_parameters(self.lm, VALUE).items()}

    def policy_parameters(self) -> dict[str, nn.Parameter]:
        """All others, by name."""
        of_value = self.value_parameters()
        return {k: p for k, p in self.named_parameters() if k not in of_value}


def _linear_head(width: int) -> nn.Linear:
    """V starts at exactly 0 everywhere: no random values in the first advantages."""
    head = nn.Linear(width, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class FrozenPolicy(nn.Module):
    """A language model without gradients; the reference of full fine-tuning."""

    def __init__(self, lm: PreTrainedModel) -> None:
        """Freeze `lm`, which must not share weights with what is trained."""
        super().__init__()
        self.lm = lm.eval().requires_grad_(False)
        base = base_model(self.lm)
        enable_packing(base, find_trunk(base))

    def forward(self, layout: Layout, temperature: float) -> Tensor:
        """Log-probabilities of the response tokens, (B, R) float32, nats."""
        return _logprobs(base_model(self.lm), layout, temperature)


def base_model(lm: Any) -> PreTrainedModel:
    """The Transformers model inside a PEFT wrapper, or `lm` itself; adapters stay in place."""
    inner: PreTrainedModel = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
    return inner


def states_width(lm: PreTrainedModel, value_trunk: nn.Module | None) -> int:
    """Features of the hidden states that a value head reads.

    What the output layer takes, or what comes out of a value model: a configuration's `hidden_size`
    is another number where a projection follows (OPT-350m).
    """
    if value_trunk is not None:
        return int(getattr(value_trunk, WIDTH))
    head: Any = lm.get_output_embeddings()
    return int(getattr(head, "in_features", 0) or head.weight.shape[-1])


def _logprobs(lm: PreTrainedModel, layout: Layout, temperature: float) -> Tensor:
    states = hidden_states(find_trunk(lm), layout)
    logprobs, _ = token_logprobs(lm, states, layout.targets, temperature)
    return spread(logprobs, layout.mask)


def build_policy(
    lm: PreTrainedModel | peft.PeftModel,
    lora: LoraConfig | None,
    value: ValueConfig,
    reward_model: PreTrainedModel | None,
    gradient_checkpointing: bool,
    adapter_seed: int = 0,
) -> PolicyWithValueHead:
    """Assemble the policy from a loaded model.

    Args:
        lm: the starting point, which becomes the policy; with an adapter, that one is trained on.
        lora: train adapters instead of all weights.
        value: where the values come from.
        reward_model: needed when the value model starts from it.
        gradient_checkpointing: recompute activations in the backward pass.
        adapter_seed: of the first weights of a fresh adapter.
    """
    value_trunk = _value_trunk(lm, value, reward_model)
    if gradient_checkpointing:
        _checkpoint(base_model(lm), value_trunk, with_adapters=lora is not None)
    trained: Any = lm
    if isinstance(lm, peft.PeftModel):
        copy_policy_adapter(lm, REFERENCE, trained=False)
    elif lora is not None:  # fresh adapters change nothing until they are trained
        trained = _with_adapters(lm, lora, adapter_seed)
    if value.model == "adapter":
        copy_policy_adapter(trained, VALUE, trained=True)
    pooled = None
    if value.model == "pooled":
        pooled = PooledValueHead(states_width(base_model(trained), None))
    policy = PolicyWithValueHead(trained, value_trunk, pooled)
    if value.model == "reward" and reward_model is not None:
        with torch.no_grad():
            policy.value_head.weight.copy_(score_head(reward_model).weight)
    # train() switches checkpointing on in Transformers' models; dropout is 0 already.
    return policy.train(gradient_checkpointing)


def _with_adapters(lm: PreTrainedModel, lora: LoraConfig, seed: int) -> Any:
    try:
        return fresh_adapter(lm, lora, "CAUSAL_LM", seed)
    except ValueError as error:  # layers that PEFT does not adapt (Mamba's), or none of that name
        raise UserError(
            f"lora.target_modules: {type(lm).__name__} (model type {lm.config.model_type}): "
            f"{str(error).splitlines()[0]} Name the layers to adapt as a list."
        ) from error


def _value_trunk(
    lm: PreTrainedModel | peft.PeftModel, value: ValueConfig, reward_model: PreTrainedModel | None
) -> Any:
    """A trunk of its own for the values, all weights trained and so in float32; or None."""
    width = states_width(base_model(lm), None)
    if value.model == "reward" and reward_model is not None:
        trunk = copy.deepcopy(reward_model.base_model)
        width = score_head(reward_model).in_features
    elif value.model == "policy":
        if isinstance(lm, peft.PeftModel):
            trunk = find_trunk(copy.deepcopy(lm).merge_and_unload())
        else:
            trunk = copy.deepcopy(find_trunk(lm))
    else:
        return None
    setattr(trunk, WIDTH, width)
    return trunk.float().requires_grad_(True)


def score_head(reward_model: PreTrainedModel) -> nn.Linear:
    """The linear layer that a reward model ends in, which a value head can start from.

    Raises:
        UserError: it ends in something else.
    """
    found = getattr(reward_model, "score", None)
    if isinstance(found, nn.Linear):
        return found
    raise UserError(
        f"value.model = reward: {type(reward_model).__name__} (model type "
        f"{reward_model.config.model_type}) does not end in one linear layer on the states of a "
        "causal model, so values cannot start from it. Use value.model shared or policy."
    )


def _checkpoint(lm: PreTrainedModel, value_trunk: Any, *, with_adapters: bool) -> None:
    for model in (lm, value_trunk):
        if model is not None and not model.supports_gradient_checkpointing:
            raise UserError(
                f"policy.gradient_checkpointing: {type(model).__name__} (model type "
                f"{model.config.model_type}) cannot recompute its activations. Set it to false."
            )
    options: dict[str, Any] = {"use_reentrant": False}
    if value_trunk is not None:
        value_trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(options))
    if with_adapters:
        options["context_fn"] = partial(checkpoint_contexts, lm)
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
