"""From what the models said of a rollout to what the update is given."""

from torch import Tensor

from rlhf_ppo.algorithm.advantages import (
    GROUPED,
    WITHOUT_VALUES,
    AdvantageSettings,
    estimate_advantages,
)
from rlhf_ppo.algorithm.batch import Rollout, TrainBatch
from rlhf_ppo.algorithm.kl import (
    AdaptiveController,
    Controller,
    FixedController,
    TargetController,
)
from rlhf_ppo.algorithm.losses import LossSettings
from rlhf_ppo.algorithm.masked import whiten
from rlhf_ppo.algorithm.rewards import (
    Moments,
    clip_scores,
    normalize_scores,
    penalize_length,
    settle_unstopped,
    shape_rewards,
)
from rlhf_ppo.config import Config, KlConfig, RewardConfig


def shape_scores(
    reward: RewardConfig, scores: Tensor, rollout: Rollout, moments: Moments
) -> tuple[Tensor, Moments]:
    """Scores as the policy is paid them: normalised, clipped, after the rules for bad lengths.

    Args:
        reward: settings.
        scores: (B,) reward units, the weighted sum of the sources.
        rollout: of all processes, B responses.
        moments: of the scores before this step.

    Returns:
        Shaped scores (B,), and the moments to go on with.
    """
    # In the first step the policy is the reference, so its scores are the reference's.
    if moments.count == 0 or reward.normalization_from == "running":
        moments = moments.add(scores)
    scores = normalize_scores(scores, moments, reward.normalization)
    scores = clip_scores(scores, reward.clip_range)
    scores = settle_unstopped(
        scores,
        rollout.responses.stopped,
        reward.missing_stop_penalty,
        reward.missing_stop_score,
    )
    mask = rollout.responses.tokens.response_mask
    scores = penalize_length(scores, mask, reward.length_penalty, reward.length_free_tokens)
    return scores, moments


def make_train_batch(config: Config, rollout: Rollout, scores: Tensor, beta: float) -> TrainBatch:
    """Per-token rewards, then advantages, over the rollout of all processes.

    Args:
        config: settings.
        rollout: B responses.
        scores: (B,), shaped.
        beta: weight of the KL penalty, reward units per nat.
    """
    tokens = rollout.responses.tokens
    mask = tokens.response_mask
    in_reward = beta if config.kl.place == "reward" else 0.0
    rewards = shape_rewards(
        scores, rollout.logprobs, rollout.ref_logprobs, mask, in_reward, config.kl.estimator
    )
    if config.reward.whiten:
        rewards = whiten(rewards, mask, shift_mean=False)
    settings = advantage_settings(config)
    advantages, returns = estimate_advantages(rewards, rollout.values, mask, settings)
    wanted = config.advantage.whiten
    if wanted or (wanted is None and settings.kind not in GROUPED):
        advantages = whiten(advantages, mask)
    return TrainBatch(
        tokens=tokens,
        logprobs=rollout.logprobs,
        ref_logprobs=rollout.ref_logprobs,
        values=rollout.values,
        advantages=advantages,
        returns=returns,
    )


def advantage_settings(config: Config) -> AdvantageSettings:
    """The config's advantage, in the words of `algorithm/`."""
    advantage = config.advantage
    return AdvantageSettings(
        kind=advantage.kind,
        gamma=advantage.gamma,
        n=advantage.n or 1,
        lam=advantage.lam,
        value_lam=advantage.value_lam,
        length_alpha=advantage.length_alpha,
        group_size=config.rollout.samples_per_prompt,
        scale_groups=advantage.scale_groups,
    )


def loss_settings(config: Config, beta: float, penalty: float) -> LossSettings:
    """The config's loss, in the words of `algorithm/`.

    Args:
        config: settings.
        beta: weight of the KL to the reference in this step, per nat.
        penalty: weight of KL(old || new) in this step, advantage units per nat.
    """
    ppo = config.ppo
    return LossSettings(
        objective=ppo.objective,
        clip_range=ppo.clip_range,
        clip_range_high=ppo.clip_range_high,
        dual_clip=ppo.dual_clip,
        penalty=penalty,
        value_coefficient=config.value.coefficient if learns_values(config) else 0.0,
        value_clip_range=config.value.clip_range,
        entropy_coefficient=ppo.entropy_coefficient,
        kl_coefficient=beta if config.kl.place == "loss" else 0.0,
        kl_estimator=config.kl.estimator,
    )


def learns_values(config: Config) -> bool:
    """Whether the advantages need a value function."""
    return config.advantage.kind not in WITHOUT_VALUES


def compared_responses(config: Config) -> int:
    """Responses to one prompt that are compared with one another: 1 where each stands alone."""
    compares = (*GROUPED, "reinforce_pp")
    return config.rollout.samples_per_prompt if config.advantage.kind in compares else 1


def make_controller(kl: KlConfig, beta: float, error: float) -> Controller:
    """The controller that the settings ask for, at its present state."""
    match kl.controller:
        case "fixed":
            return FixedController(beta, error)
        case "adaptive":
            return AdaptiveController(beta, kl.target, kl.horizon, error)
        case "target":
            return TargetController(beta, kl.target, kl.horizon, kl.gain, error)
