"""What goes in, what is kept and shown, and on which machine."""

from typing import Any, Literal

from pydantic import field_validator

from rlhf_ppo.config.base import Count, CountOrZero, Settings


class DataConfig(Settings):
    """Where prompts, demonstrations and preferences come from.

    Each is a .jsonl or .json file, a folder written by `datasets`, or a hub id with an optional
    split ("trl-lib/tldr:validation"; the split is "train" when left out).
    """

    prompts: str | None = None
    """Prompts to train on: rows with `prompt`, a string or a list of chat messages."""
    heldout_prompts: str | None = None
    """Prompts for evaluation, never trained on; same form as `prompts`."""
    demonstrations: str | None = None
    """For the supervised stage: rows with `messages`, or with `prompt` and `completion`."""
    preferences: str | None = None
    """For the reward model: rows with `prompt`, `chosen` and `rejected`."""
    heldout_preferences: str | None = None
    """Pairs that test the reward model; a column `kind` splits its accuracy by kind of error."""
    max_prompt_tokens: Count = 1024
    """Longer prompts are dropped, counted and reported; never cut (tokens)."""


class CheckpointConfig(Settings):
    """What a run can be resumed from."""

    every: CountOrZero = 50
    """PPO steps between checkpoints; 0: only the finished model is saved."""
    keep: CountOrZero = 2
    """Newest checkpoints to keep; 0: all."""


class EvaluationConfig(Settings):
    """Policy against reference on held-out prompts."""

    every: CountOrZero = 50
    """PPO steps between evaluations during training; 0: only at the end."""
    prompts_during_training: Count = 64
    """Held-out prompts of an evaluation during training; the last one takes all."""
    gold: str | None = None
    """Scorer that training never sees, as "folder/file.py:function" or "module:function"."""
    bootstrap_samples: Count = 10000
    """Resamples behind each 95 % interval."""
    samples_shown: CountOrZero = 4
    """Before/after samples printed at the end."""


class LoggingConfig(Settings):
    """What is shown and recorded while a run goes on; `metrics.jsonl` is always written."""

    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers that Accelerate knows by name: tensorboard, wandb, trackio, ..."""
    project: str = "rlhf_ppo"
    """Project name handed to the trackers."""
    sample_every: CountOrZero = 20
    """PPO steps between samples printed in the terminal; 0: none."""


class HardwareConfig(Settings):
    """Devices and number formats; processes and sharding are `accelerate launch`'s business."""

    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """Autocast of forward passes; null: what `accelerate launch` was told."""
    offload: bool = False
    """Keep reference and reward models in the CPU's memory while they are not asked (GPU only)."""
    cpu_threads: CountOrZero = 0
    """Threads of one process on a CPU; 0: the machine's cores divided by its processes."""

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare `no` as False
