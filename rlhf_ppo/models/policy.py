"""The policy with its value head, and the frozen reference."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_ppo.algorithm.batch import TokenOutputs
from rlhf_ppo.config import Config, LoraConfig, ValueConfig
from rlhf_ppo.models.forward import Layout, find_trunk, hidden_states, spread, token_logprobs
from rlhf_ppo.models.lora import peft_config
from rlhf_ppo.models.packing import enable_packing

VALUE_HEAD_FILE = "value_head.safetensors"


class PolicyWithValueHead(nn.Module):
    """A language model and V(state), from one pass of one trunk unless a value model is given.

    The whole computation goes through `forward`, so that wrappers (DDP, FSDP) see it.
    """

    def __init__(self, lm: PreTrainedModel, value_trunk: nn.Module | None = None) -> None:
        """Join a language model and a zero-initialised value head.

        Args:
            lm: causal language model, perhaps with LoRA adapters.
            value_trunk: a separate trunk for the values; None: they share the policy's.
        """
        super().__init__()
        self.lm = lm
        self.value_trunk = value_trunk
        enable_packing(base_model(lm), find_trunk(base_model(lm)))
        if value_trunk is not None:
            enable_packing(value_trunk, value_trunk)
        config: Any = (lm if value_trunk is None else value_trunk).config
        width = config.get_text_config().hidden_size
        self.value_head = nn.Linear(int(width), 1)
        # V starts at exactly 0 everywhere: no random values in the first advantages.
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

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
        with torch.autocast(states.device.type, enabled=False):  # so small a layer keeps float32
            values = self.value_head(states.to(self.value_head.weight.dtype)).squeeze(-1).float()
        return TokenOutputs(
            logprobs=spread(logprobs, layout.mask),
            values=spread(values, layout.mask),
            entropy=spread(entropy, layout.mask),
        )

    def without_adapter(self) -> AbstractContextManager[Any]:
        """A context in which LoRA adapters are off, so that the model is its own reference."""
        disable: Callable[[], AbstractContextManager[Any]] | None
        disable = getattr(self.lm, "disable_adapter", None)
        return nullcontext() if disable is None else disable()


class FrozenPolicy(nn.Module):
    """A language model without gradients; the reference of full fine-tuning."""

    def __init__(self, lm: PreTrainedModel) -> None:
        """Freeze `lm`, which must not share weights with what is trained."""
        super().__init__()
        self.lm = lm.eval().requires_grad_(False)
        enable_packing(self.lm, find_trunk(self.lm))

    def forward(self, layout: Layout, temperature: float) -> Tensor:
        """Log-probabilities of the response tokens, (B, R) float32, nats."""
        states = hidden_states(find_trunk(self.lm), layout)
        logprobs, _ = token_logprobs(self.lm, states, layout.targets, temperature)
        return spread(logprobs, layout.mask)


def base_model(lm: Any) -> PreTrainedModel:
    """The Transformers model inside a PEFT wrapper, or `lm` itself; adapters stay in place."""
    inner: PreTrainedModel = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
    return inner


def build_policy(
    lm: PreTrainedModel,
    lora: LoraConfig | None,
    value: ValueConfig,
    reward_model: PreTrainedModel | None,
    gradient_checkpointing: bool,
) -> PolicyWithValueHead:
    """Assemble the policy from a loaded model.

    Args:
        lm: the starting point, which becomes the policy.
        lora: train adapters instead of all weights.
        value: where the values come from.
        reward_model: needed when the value model starts from it.
        gradient_checkpointing: recompute activations in the backward pass.
    """
    value_trunk, head_weight = None, None
    if value.model == "policy":
        value_trunk = copy.deepcopy(find_trunk(lm))
    elif value.model == "reward" and reward_model is not None:
        value_trunk = copy.deepcopy(reward_model.base_model).float().requires_grad_(True)
        head_weight = getattr(reward_model, "score").weight.detach()  # noqa: B009
    if gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained: Any = lm
    if lora is not None:  # fresh adapters change nothing until they are trained
        trained = peft.get_peft_model(lm, peft_config(lora, "CAUSAL_LM"))
    policy = PolicyWithValueHead(trained, value_trunk)
    if head_weight is not None:
        with torch.no_grad():
            policy.value_head.weight.copy_(head_weight)
    # train() switches checkpointing on in Transformers' models; dropout is 0 already.
    return policy.train(gradient_checkpointing)


def save_policy(
    policy: PolicyWithValueHead,
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    start: str,
    folder: Path,
) -> None:
    """Write a plain model folder, with tokenizer, model card and the value head for a later run.

    Args:
        policy: after training; LoRA adapters are merged unless `lora.save` says otherwise.
        tokenizer: saved beside it, chat template included.
        config: for the model card.
        start: what the policy started from, for the model card.
        folder: must exist.
    """
    lm: Any = policy.lm
    if config.lora is not None and config.lora.save == "merged":
        lm = lm.merge_and_unload()
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in policy.value_head.state_dict().items()}
    save_file(state, folder / VALUE_HEAD_FILE)
    (folder / "README.md").write_text(_model_card(config, start), encoding="utf-8")


def _model_card(config: Config, start: str) -> str:
    return f"""---
library_name: transformers
tags: [rlhf, ppo]
---
# {Path(config.output_dir).name}: policy

A causal language model, fine-tuned by PPO with `rlhf_ppo`.

| | |
|---|---|
| started from (and held to, by the KL penalty) | {start} |
| PPO steps x prompts a step | {config.ppo.steps} x {config.rollout.batch_size} |
| learning rate, epochs, minibatches | {config.ppo.learning_rate}, {config.ppo.epochs}, \
{config.ppo.minibatches} |
| KL penalty beta ({config.kl.controller}) | {config.kl.beta} |
| sampling temperature | {config.rollout.temperature} |
| seed | {config.seed} |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

`{VALUE_HEAD_FILE}` is the value head of the run; generation does not need it.
"""
