"""Every setting of a run: typed, frozen, validated, documented.

Nothing derived lives here (see `plan.py`) and nothing is ever written back. The docstring below
each field is its documentation: `--help`, error messages and the docs are made from it.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)


def _whole_number(value: Any) -> Any:
    """Refuse `true` and `2.5` where a count is asked for; pydantic alone would read `true` as 1."""
    if isinstance(value, bool | float):
        raise ValueError("must be a whole number")
    return value


def _real_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Count = Annotated[int, BeforeValidator(_whole_number), Field(ge=1)]
CountOrZero = Annotated[int, BeforeValidator(_whole_number), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_real_number), Field(gt=0)]
PositiveOrZero = Annotated[float, BeforeValidator(_real_number), Field(ge=0)]
Fraction = Annotated[float, BeforeValidator(_real_number), Field(ge=0, le=1)]
Number = Annotated[float, BeforeValidator(_real_number)]


class Settings(BaseModel):
    """Base of all sections: frozen, unknown keys refused, no infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


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
    """Folder or hub id of a causal language model; empty: made from nothing by `scratch`."""
    scratch: ScratchConfig | None = None
    """Shape of a model made from nothing, when `path` is empty."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in memory. Keep float32 for full fine-tuning: it holds small updates."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class LoraConfig(Settings):
    """Train low-rank adapters instead of all weights (needs far less memory)."""

    rank: Count = 16
    """Rank of each adapter matrix."""
    alpha: Positive = 32.0
    """The adapter's output is scaled by alpha / rank."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Names of the layers that get an adapter; "all-linear" takes all but the output layer."""
    save: Literal["merged", "adapter"] = "merged"
    """What is left in policy/: a full model with the adapter merged in, or the adapter alone."""


class ValueConfig(Settings):
    """The value function V(state), one number a token."""

    model: Literal["shared", "policy", "reward"] = "shared"
    """A head on the policy's trunk, or a separate model started from the policy or the reward."""
    coefficient: Positive = 0.1
    """Weight of the value loss in the total loss. On a shared trunk 0.5 can wreck the policy."""
    learning_rate: Positive | None = None
    """Peak learning rate of the value head or value model; null: `ppo.learning_rate`."""
    clip_range: PositiveOrZero | None = 0.2
    """New values stay within this distance of the old ones (reward units); null: no clipping."""


class RewardConfig(Settings):
    """What a response is worth."""

    path: str | None = None
    """Folder or hub id of a sequence-classification model with one output; empty: train one."""
    max_tokens: Count = 2048
    """A longer conversation is an error, never cut (tokens of the reward model's tokenizer)."""
    batch_tokens: Count = 16384
    """Tokens, padding included, in one forward pass of the reward model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the reward model's weights in memory."""
    missing_stop_penalty: PositiveOrZero = 0.0
    """Subtracted from the score of a response that did not end by itself (reward units)."""
    missing_stop_score: Number | None = None
    """If set, the whole score of a response that did not end by itself (reward units)."""
    normalization: Literal["none", "center", "standardize"] = "none"
    """Shift (and scale) scores so that the reference's responses have mean 0 (and variance 1)."""

    @model_validator(mode="after")
    def _one_rule_for_missing_stops(self) -> "RewardConfig":
        if self.missing_stop_score is not None and self.missing_stop_penalty > 0:
            raise ValueError("set missing_stop_penalty or missing_stop_score, not both")
        return self


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
    adam_beta2: Fraction = 0.999
    """Decay of AdamW's second moment."""
    adam_epsilon: Positive = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: PositiveOrZero = 0.0
    """Decoupled weight decay of AdamW."""
    max_tokens: Count = 1024
    """Longer examples are dropped, counted and reported; never cut (tokens)."""


class RewardModelConfig(SupervisedConfig):
    """Reward model from `data.preferences`, by TRL's RewardTrainer (Bradley-Terry loss)."""

    learning_rate: Positive = 1e-5
    """Peak learning rate of AdamW, reached after the warm-up."""
    center_coefficient: PositiveOrZero = 0.01
    """Weight of the (chosen + rejected)^2 term that keeps scores around 0."""
    init_from: str | None = None
    """Folder or hub id to start from; empty: the supervised model."""
    order: Literal["shuffled", "file"] = "shuffled"
    """`file`: roughly the order of the file, for data that begins with its most telling pairs."""


class RolloutConfig(Settings):
    """How responses are sampled."""

    batch_size: Count = 64
    """Prompts a PPO step, over all processes; one response each."""
    max_new_tokens: Count = 128
    """A response that has not ended by then is cut (tokens)."""
    temperature: Positive = 1.0
    """Logits are divided by this, in sampling and in every log-probability alike."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens that end a response, besides those the model's generation config names."""
    generation_batch_size: Count = 256
    """Prompts decoded at once on one process."""


class PpoConfig(Settings):
    """The clipped update (Schulman et al. 2017, equation 7)."""

    steps: Count = 100
    """Number of rounds of collect and update."""
    epochs: Count = 4
    """Passes over each rollout."""
    minibatches: Count = 1
    """Optimizer steps a pass: the rollout is split into this many parts."""
    micro_batch_tokens: Count = 4096
    """Tokens, padding included, in one training forward pass on one process."""
    judge_batch_tokens: Count = 16384
    """Tokens, padding included, in one forward pass without gradients on one process."""
    learning_rate: Positive = 1e-6
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear"] = "constant"
    """`linear` falls to zero over `steps`; resuming with other `steps` changes its slope."""
    warmup_steps: CountOrZero = 0
    """PPO steps over which the learning rate rises linearly."""
    value_warmup_steps: CountOrZero = 0
    """First PPO steps in which only the value function is trained."""
    clip_range: Positive = 0.2
    """The probability ratio is clipped to [1 - clip_range, 1 + clip_range]."""
    max_grad_norm: Positive | None = 1.0
    """Gradients are scaled down to this norm; null: never."""
    adam_beta2: Fraction = 0.999
    """Decay of AdamW's second moment."""
    adam_epsilon: Positive = 1e-5
    """Added to AdamW's denominator."""
    weight_decay: PositiveOrZero = 0.0
    """Decoupled weight decay of AdamW."""


class AdvantageConfig(Settings):
    """Generalized advantage estimation (Schulman et al. 2016, equation 16)."""

    gamma: Fraction = 1.0
    """Discount of a reward one token later."""
    lam: Fraction = 0.95
    """0: one-step advantage, low variance; 1: Monte Carlo minus V, no bias."""
    whiten: bool = True
    """Give the advantages of a step mean 0 and variance 1, over all processes."""


class KlConfig(Settings):
    """The penalty for leaving the reference (Ziegler et al. 2019, equation 2)."""

    beta: PositiveOrZero = 0.05
    """Weight of the penalty, at the start if adaptive (reward units per nat)."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the per-token KL in the reward; k1 is the unbiased log-ratio."""
    controller: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive` steers beta so that the KL of a response meets `target`."""
    target: Positive = 6.0
    """KL to the reference that the adaptive controller aims at (nats a response)."""
    horizon: Count = 10000
    """Episodes over which the adaptive controller reacts."""


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
    cpu_threads: CountOrZero = 0
    """Threads of one process on a CPU; 0: the machine's cores divided by its processes."""

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare `no` as False


class Config(Settings):
    """All settings of one run: supervised model, reward model, PPO, evaluation."""

    seed: CountOrZero = 1
    """Source of all randomness; the same seed and settings give the same run."""
    output_dir: str
    """Folder that the run writes to; must be new or empty unless `resume` is set."""
    resume: bool = False
    """Go on with the run in `output_dir`: finished stages are kept, PPO continues."""
    data: DataConfig = DataConfig()
    policy: PolicyConfig = PolicyConfig()
    lora: LoraConfig | None = None
    value: ValueConfig = ValueConfig()
    reward: RewardConfig = RewardConfig()
    sft: SupervisedConfig | None = None
    reward_model: RewardModelConfig | None = None
    rollout: RolloutConfig = RolloutConfig()
    ppo: PpoConfig = PpoConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    kl: KlConfig = KlConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    hardware: HardwareConfig = HardwareConfig()
