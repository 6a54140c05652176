"""The models that are trained: policy and value function."""

from typing import Literal

from rlhf_ppo.config.base import Count, Positive, PositiveOrZero, Settings


class ScratchConfig(Settings):
    """A tiny Llama and its tokenizer, made from nothing: for learning and for tests."""

    vocabulary_size: Count = 1024
    """Upper limit of the byte-level BPE vocabulary (tokens)."""
    hidden_size: Count = 96
    """Width of the residual stream."""
    layers: Count = 2
    """Number of transformer blocks."""
    heads: Count = 3
    """Attention heads in a block; must divide `hidden_size`."""
    intermediate_size: Count = 256
    """Width of the MLP."""
    max_positions: Count = 256
    """Longest sequence, prompt and response together (tokens)."""
    initializer_range: Positive = 0.05
    """Standard deviation of the initial weights."""


class PolicyConfig(Settings):
    """The model that is tuned."""

    path: str | None = None
    """Folder or hub id of a causal language model, or folder of an adapter; empty: `scratch`."""
    scratch: ScratchConfig | None = None
    """Shape of a model made from nothing, when `path` is empty."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in memory. Keep float32 for full fine-tuning: it holds small updates."""
    quantization: Literal["4bit"] | None = None
    """Hold the base of a LoRA run in 4 bits (QLoRA, needs `bitsandbytes`); null: as `dtype`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class LoraConfig(Settings):
    """Train low-rank adapters instead of all weights (needs far less memory).

    A run whose `policy.path` is an adapter goes on with it, and is held to it as it was.
    """

    rank: Count | None = None
    """Rank of each adapter matrix; null: 16, or that of the adapter the run starts from."""
    alpha: Positive | None = None
    """The adapter's output is scaled by alpha / rank; null: 32, or as in the starting adapter."""
    target_modules: tuple[str, ...] | None = None
    """Layers that get an adapter; null: all linear ones but the output layer, or as it was."""
    save: Literal["merged", "adapter"] = "merged"
    """What is left in policy/: a full model with the adapter merged in, or the adapter alone."""


POOLED_UPDATES = 4


class ValueConfig(Settings):
    """V(state), one number a token; unused where `advantage.kind` learns no value function."""

    model: Literal["shared", "pooled", "adapter", "policy", "reward"] = "pooled"
    """Head that trains the policy's trunk, or only reads it (pooled); own adapter; own copy."""
    init: Literal["new", "saved"] = "new"
    """saved: go on with the value function that an earlier run left in the folder `policy.path`."""
    coefficient: Positive = 0.1
    """Weight of the value loss in the total loss. On a shared trunk 0.5 can wreck the policy."""
    learning_rate: Positive | None = None
    """Peak learning rate of the value function; null: 3e-3 if pooled, else `ppo.learning_rate`."""
    updates: Count | None = None
    """pooled: optimizer steps of the values for each of the policy; null: 4. All others make 1."""
    clip_range: PositiveOrZero | None = 0.2
    """New values stay within this distance of the old ones (reward units); null: no clipping."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the values for each of the policy."""
        return (self.updates or POOLED_UPDATES) if self.model == "pooled" else 1
