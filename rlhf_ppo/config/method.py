"""The method: rollout, advantages, KL, update."""

from typing import Literal

from rlhf_ppo.config.base import (
    AboveOne,
    BelowOne,
    Count,
    CountOrZero,
    Fraction,
    Positive,
    PositiveOrZero,
    Settings,
)


class RolloutConfig(Settings):
    """How responses are sampled."""

    batch_size: Count = 64
    """Prompts a PPO step, over all processes."""
    samples_per_prompt: Count = 1
    """Responses to each of them; rloo and grpo compare these, so they need two or more."""
    max_new_tokens: Count = 128
    """A response that has not ended by then is cut (tokens)."""
    temperature: Positive = 1.0
    """Logits are divided by this, in sampling and in every log-probability alike."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens that end a response, besides those the model's generation config names."""
    generation_batch_size: Count = 256
    """Responses decoded at once on one process."""


class AdvantageConfig(Settings):
    """How much better a token was than expected."""

    kind: Literal[
        "reward_to_go", "monte_carlo", "one_step", "n_step", "gae", "rloo", "grpo", "reinforce_pp"
    ] = "gae"
    """monte_carlo, one_step, n_step and gae learn a value function; the others need none."""
    gamma: Fraction = 1.0
    """Discount of a reward one token later."""
    lam: Fraction = 0.95
    """gae: 0: one-step advantage, low variance; 1: Monte Carlo minus V, no bias."""
    value_lam: Fraction | None = None
    """gae: another lambda for the targets of the value function (VC-PPO); null: `lam`."""
    length_alpha: Positive | None = None
    """gae: lambda = 1 - 1 / (length_alpha * tokens) in place of `lam` (VAPO: 0.05); null: no."""
    n: Count | None = None
    """n_step: rewards counted before the value function takes over (tokens)."""
    scale_groups: bool = True
    """grpo: divide by the standard deviation of a prompt's scores; false: Dr. GRPO."""
    whiten: bool | None = None
    """Mean 0 and variance 1 over a step, all processes; null: yes, except for rloo and grpo."""


class KlConfig(Settings):
    """The penalty for leaving the reference (Ziegler et al. 2019, equation 2)."""

    beta: PositiveOrZero = 0.05
    """Weight of the penalty, at the start unless fixed (reward units per nat)."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the per-token KL; k1 is the unbiased log-ratio."""
    place: Literal["reward", "loss"] = "reward"
    """Part of each token's reward, or of the loss (then beta is in advantage units per nat)."""
    controller: Literal["fixed", "adaptive", "target"] = "fixed"
    """Keep beta, or steer it to `target`: by Ziegler et al.'s rule, or damped (`target`)."""
    target: Positive = 6.0
    """KL to the reference that a controller aims at (nats a response)."""
    horizon: Count = 10000
    """Responses over which a controller reacts."""
    gain: PositiveOrZero = 0.3
    """target: how much of a change of log KL is answered at once; 0 swings, too much jitters."""


class PpoConfig(Settings):
    """The update (Schulman et al. 2017)."""

    steps: Count = 100
    """Number of rounds of collect and update."""
    epochs: Count = 4
    """Passes over each rollout."""
    minibatches: Count = 1
    """Optimizer steps a pass: the rollout is split into this many parts."""
    micro_batch_tokens: Count | None = None
    """Tokens in one training forward pass on one process; null: 512 on a CPU, 8192 on a GPU."""
    judge_batch_tokens: Count | None = None
    """Tokens in one forward pass without gradients; null: 2048 on a CPU, 32768 on a GPU."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit: moments in 8 bits, a quarter of the memory; needs `bitsandbytes`."""
    learning_rate: Positive = 1e-6
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear"] = "constant"
    """`linear` falls to zero over `steps`; resuming with other `steps` changes its slope."""
    warmup_steps: CountOrZero = 0
    """PPO steps over which the learning rate rises linearly."""
    value_warmup_steps: CountOrZero = 0
    """First PPO steps in which only the value function is trained, if there is one."""
    objective: Literal["policy_gradient", "surrogate", "kl_penalty", "clipped"] = "clipped"
    """What is maximised: log pi * A, ratio * A, that minus penalty * KL(old || new), clipped."""
    clip_range: Positive = 0.2
    """clipped: the probability ratio is clipped to [1 - clip_range, 1 + clip_range]."""
    clip_range_high: Positive | None = None
    """clipped: another distance on the upper side (clip-higher); null: `clip_range`."""
    dual_clip: AboveOne | None = None
    """clipped: a bad token's loss is at most this times -A, however likely it became; null: no."""
    penalty: Positive = 1.0
    """kl_penalty: weight of KL(old || new), at the start if adaptive (advantage units a nat)."""
    penalty_target: Positive | None = None
    """kl_penalty: KL(old || new) an update should have; adapts `penalty` (nats a token)."""
    target_kl: Positive | None = None
    """Stop an update before the step at which KL(new || old) exceeds this (nats a token)."""
    entropy_coefficient: PositiveOrZero = 0.0
    """Weight of the policy's entropy, which keeps it from narrowing (advantage units a nat)."""
    loss_aggregation: Literal["token", "sequence", "fixed"] = "token"
    """All tokens alike, all responses alike, or each token over `rollout.max_new_tokens`."""
    max_grad_norm: Positive | None = 1.0
    """Gradients are scaled down to this norm; null: never."""
    adam_beta2: BelowOne = 0.999
    """Decay of AdamW's second moment."""
    adam_epsilon: Positive = 1e-5
    """Added to AdamW's denominator."""
    weight_decay: PositiveOrZero = 0.0
    """Decoupled weight decay of AdamW."""


class PtxConfig(Settings):
    """Next-token loss on given text beside PPO's (PPO-ptx: Ouyang et al. 2022, equation 2)."""

    data: str | None = None
    """Text to keep in mind: rows as in `data.demonstrations`; null: those."""
    coefficient: Positive = 0.1
    """Weight of the loss, which is a mean over tokens (advantage units a nat)."""
    batch_size: Count = 32
    """Rows in each optimizer step, over all processes."""
    max_tokens: Count = 1024
    """Longer rows are dropped, refused or cut, see `data.long_rows` (tokens)."""
