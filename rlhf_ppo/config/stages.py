"""The supervised model and the reward model."""

from typing import Literal

from rlhf_ppo.config.base import (
    BelowOne,
    Count,
    CountOrZero,
    Place,
    Positive,
    PositiveOrZero,
    Settings,
)


class SupervisedConfig(Settings):
    """Supervised fine-tuning on `data.demonstrations`, by TRL's SFTTrainer."""

    epochs: Count = 1
    """Passes over the data."""
    batch_size: Count = 32
    """Examples an optimizer step, over all processes."""
    micro_batch_size: Count = 8
    """Examples a forward pass on one process."""
    learning_rate: Positive = 2e-5
    """Peak learning rate of AdamW, reached after the warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: CountOrZero = 0
    """Optimizer steps of linear warm-up."""
    adam_beta2: BelowOne = 0.999
    """Decay of AdamW's second moment."""
    adam_epsilon: Positive = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: PositiveOrZero = 0.0
    """Decoupled weight decay of AdamW."""
    max_tokens: Count = 1024
    """Longer examples are dropped, refused or cut, see `data.long_rows` (tokens)."""


class RewardModelConfig(SupervisedConfig):
    """Reward model from `data.preferences`, by TRL's RewardTrainer (Bradley-Terry loss)."""

    learning_rate: Positive = 1e-5
    """Peak learning rate of AdamW, reached after the warm-up."""
    center_coefficient: PositiveOrZero = 0.01
    """Weight of the (chosen + rejected)^2 term that keeps scores around 0."""
    init_from: Place | None = None
    """Folder or hub id to start from; empty: the supervised model."""
    allow_unmatched: tuple[str, ...] = ()
    """Patterns of weights in which the files of `init_from` may differ from the model's trunk."""
    save: Literal["merged", "adapter"] = "merged"
    """With lora: a whole model, or the adapter alone, which PPO puts on the policy's own base."""
    order: Literal["shuffled", "file"] = "shuffled"
    """`file`: roughly the order of the file, for data that begins with its most telling pairs."""
