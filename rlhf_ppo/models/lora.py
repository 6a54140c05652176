"""LoRA adapters (Hu et al. 2021), by PEFT."""

from typing import Literal

import peft

from rlhf_ppo.config import LoraConfig


def peft_config(lora: LoraConfig, task: Literal["CAUSAL_LM", "SEQ_CLS"]) -> peft.LoraConfig:
    """Our settings in PEFT's words; no dropout, as everywhere."""
    modules = lora.target_modules
    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides it, nothing more
        lora_dropout=0.0,
        target_modules=modules[0] if modules == ("all-linear",) else list(modules),
        task_type=task,
    )
