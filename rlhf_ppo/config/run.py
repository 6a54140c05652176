"""What goes in, what is kept and shown, and on which machine."""

from typing import Any, Literal

from pydantic import Field, field_validator

from rlhf_ppo.config.base import (
    Count,
    CountOrShare,
    CountOrZero,
    Positive,
    Settings,
    Share,
    Threads,
)

SOURCES = ("prompts", "heldout_prompts", "demonstrations", "preferences", "heldout_preferences")


class DataConfig(Settings):
    """Where prompts, demonstrations and preferences come from, and what is done with their rows.

    Each source is a .jsonl, .json, .csv or .parquet file, a folder written by `datasets`, or a hub
    id: "owner/name", "owner/name:split" or "owner/name:config:split"; the split is "train" when
    left out. A slice may follow: "pairs.jsonl.gz[:1000]". See docs/data.md for the rows.
    """

    prompts: str | None = None
    """Prompts to train on: rows with `prompt` (a string or chat messages) or `messages`."""
    heldout_prompts: str | None = None
    """Prompts for evaluation, never trained on; same form as `prompts`."""
    demonstrations: str | None = None
    """For the supervised stage: rows with `messages`, or with `prompt` and `completion`."""
    preferences: str | None = None
    """For the reward model: rows with `chosen` and `rejected`, and `prompt` unless they hold it."""
    heldout_preferences: str | None = None
    """Pairs that test the reward model; a column `kind` splits its accuracy by kind of error."""
    heldout: CountOrShare | None = None
    """Cut held-out prompts and pairs from `prompts` and `preferences`: so many, or this share."""
    chosen_as_demonstrations: bool = False
    """Let `demonstrations` hold preferences too, whose chosen side is the one to imitate."""
    columns: dict[str, str] = Field(default={})
    """Our column name: theirs, as in {prompt: question}; for each source that has that column."""
    system_prompt: str | None = None
    """Put before every conversation that has no system message of its own."""
    to_chat: Literal["transcripts", "always", "never"] = "transcripts"
    """Which plain strings become chat messages: HH-RLHF transcripts, all strings, or none."""
    max_prompt_tokens: Count = 1024
    """Longer prompts are dropped, refused or cut, see `long_rows` (tokens)."""
    bad_rows: Literal["refuse", "drop"] = "refuse"
    """Rows that are broken, empty or lack a column: stop the run, or drop and report them."""
    long_rows: Literal["drop", "refuse", "truncate"] = "drop"
    """Rows longer than `max_prompt_tokens`, a stage's `max_tokens` or the positions of a model."""
    duplicates: Literal["keep", "drop", "refuse"] = "keep"
    """Repeated rows are always reported; kept ones count as often as they stand in the data."""
    overlap: Literal["refuse", "drop"] = "refuse"
    """Training prompts that are held out as well: stop the run, or drop them from training."""

    @property
    def sources(self) -> dict[str, str | None]:
        """Where each kind of data comes from, by the name of its setting in this section."""
        return {name: getattr(self, name) for name in SOURCES}


class CheckpointConfig(Settings):
    """What a run can be resumed from."""

    every: CountOrZero = 50
    """PPO steps between checkpoints; 0: only the finished model is saved."""
    keep: CountOrZero = 2
    """Newest checkpoints to keep; 0: all."""
    save: Literal["last", "best"] = "last"
    """Which policy the run leaves: its last, or the one with the best held-out score."""


class GuardConfig(Settings):
    """When a run has gone wrong, and what then: see docs/health.md."""

    max_skipped: Count = 5
    """Optimizer steps in a row that may be skipped because loss or gradient is not finite."""
    max_kl: Positive | None = None
    """Highest KL to the reference, mean over a step (nats a response); null: any."""
    max_score_drop: Positive | None = None
    """How far the running score may fall below its best (standard deviations); null: any."""
    action: Literal["stop", "rollback"] = "stop"
    """Beyond a limit: end with the policy saved, or go back to the last good checkpoint."""
    max_rollbacks: Count = 3
    """rollback: so often, then stop."""
    learning_rate_factor: Share = 0.5
    """rollback: learning rates are multiplied by this each time."""


class LoggingConfig(Settings):
    """What is shown and recorded while a run goes on; `metrics.jsonl` is always written."""

    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers that Accelerate knows by name: tensorboard, wandb, trackio, ..."""
    project: str = "rlhf_ppo"
    """Project in the trackers that have projects; the run is named after `output_dir`."""
    sample_every: CountOrZero = 20
    """PPO steps between samples printed in the terminal; 0: none."""


class HardwareConfig(Settings):
    """Devices and number formats; processes and sharding are `accelerate launch`'s business."""

    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """Autocast of forward passes; null: what `accelerate launch` was told."""
    offload: bool = False
    """Keep reference and reward models in the CPU's memory while they are not asked (GPU only)."""
    cpu_threads: Threads = 0
    """Threads of one process on a CPU; 0: `OMP_NUM_THREADS`, else cores divided by processes."""

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare `no` as False
