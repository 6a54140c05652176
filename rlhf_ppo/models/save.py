"""What a run leaves of its policy: a plain model folder, and the value function beside it."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from rlhf_ppo.config import Config
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.files import first_damage, is_adapter
from rlhf_ppo.models.lora import POLICY
from rlhf_ppo.models.policy import PolicyWithValueHead, base_model

VALUE_FILE = "value_head.safetensors"


def save_policy(
    policy: PolicyWithValueHead,
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    start: str,
    stop_ids: tuple[int, ...],
    folder: Path,
) -> None:
    """Write a plain model folder: weights, tokenizer, generation config, card, value function.

    Args:
        policy: after training; its adapter is merged unless `lora.save` says otherwise, and the
            policy is of no use afterwards.
        tokenizer: saved beside it, chat template included.
        config: for the model card.
        start: what the policy started from, for the model card.
        stop_ids: what ended a response in training.
        folder: must exist.
    """
    save_file(_on_cpu(policy.value_parameters()), folder / VALUE_FILE)
    base: Any = base_model(policy.lm)
    before = base.generation_config.bos_token_id
    base.generation_config = generation_config(config, tokenizer, stop_ids, before)
    base.generation_config.save_pretrained(folder)
    lm: Any = policy.lm
    if config.lora is None:
        lm.save_pretrained(folder)
    elif config.lora.save == "merged":
        lm.merge_and_unload(adapter_names=[POLICY]).save_pretrained(folder)
    else:
        name_base(lm.peft_config[POLICY])
        lm.save_pretrained(folder, selected_adapters=[POLICY])
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_model_card(config, start), encoding="utf-8")


def find_values(folder: str, *, needs_adapter: bool) -> Path:
    """The file in which an earlier run left its value function.

    Args:
        folder: of that run's policy.
        needs_adapter: the values stand on the base of that run by an adapter of their own.

    Raises:
        UserError: none is there, it is damaged, or the base has been merged with the policy's
            adapter.
    """
    file = Path(folder) / VALUE_FILE
    if not file.is_file():
        raise UserError(
            f"value.init = saved: {folder} holds no {VALUE_FILE}, so no run left a value function "
            "there. Set value.init to new."
        )
    damage = first_damage(Path(folder), [VALUE_FILE])
    if damage is not None:
        raise UserError(f"value.init = saved: {damage} Or set value.init to new.")
    if needs_adapter and not is_adapter(folder):
        raise UserError(
            f"value.init = saved: the value adapter in {folder} belongs to the base of that run, "
            "which has taken in the policy's adapter since. Save it with lora.save = adapter, or "
            "set value.init to new."
        )
    return file


def load_values(policy: PolicyWithValueHead, folder: str) -> None:
    """Go on with the value function that an earlier run left beside its policy.

    Raises:
        UserError: none is there, or one of another `value.model`.
    """
    file = find_values(folder, needs_adapter=policy.value_adapter)
    saved = load_file(file)
    wanted = policy.value_parameters()
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in wanted.items()}:
        raise UserError(
            f"value.init = saved: {file} holds the weights of another kind of value function. Use "
            "the value.model and lora settings of the run that left it, or set value.init to new."
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(saved[name])


def generation_config(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: tuple[int, ...],
    begin: int | None,
) -> GenerationConfig:
    """How `generate` must draw to follow the distribution that was trained, and nothing else.

    What the start model's file says beyond that (top-k, top-p, penalties, forced or forbidden
    tokens, greedy decoding) shaped no response in training, so it is not kept.

    Args:
        config: `rollout.temperature` divides the logits.
        tokenizer: gives a pad token for batches.
        stop_ids: what ended a response in training.
        begin: the start model's token for the begin of a text, if it has one.
    """
    return GenerationConfig(
        do_sample=True,
        temperature=config.rollout.temperature,
        top_k=0,  # off; left out, `generate` takes 50
        top_p=1.0,
        bos_token_id=begin,
        eos_token_id=list(stop_ids) if len(stop_ids) > 1 else stop_ids[0],
        pad_token_id=tokenizer.pad_token_id,
    )


def name_base(adapter: Any) -> None:
    """Let an adapter's settings name a base that is a folder so that it is found from anywhere."""
    base = Path(str(adapter.base_model_name_or_path))
    if base.is_dir():
        adapter.base_model_name_or_path = str(base.resolve())


def _on_cpu(parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().contiguous() for name, p in parameters.items()}


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

`{VALUE_FILE}` is the value function of the run (`value.init: saved` goes on with it); generation
does not need it.
"""
