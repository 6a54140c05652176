"""Settings that are right alone and wrong together, or that would change nothing.

Each message names the settings with their values, and the remedy.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_ppo.config import Config

WITHOUT_VALUES = ("reward_to_go", "rloo", "grpo", "reinforce_pp")


def contradictions(config: "Config") -> Iterator[str]:
    """Every problem of a config as a whole."""
    yield from _of_reward(config)
    yield from _of_advantage(config)
    yield from _of_update(config)
    yield from _of_guard(config)
    kl = config.kl
    if kl.controller != "fixed" and kl.beta == 0:
        yield (
            f"kl.beta = 0 with kl.controller = {kl.controller}: a controller multiplies beta, so "
            "it would stay 0; set kl.beta above 0, or kl.controller to fixed"
        )
    responses = config.rollout.batch_size * config.rollout.samples_per_prompt
    if kl.controller == "adaptive" and responses >= 5 * kl.horizon:
        yield (
            f"kl.horizon = {kl.horizon} with {responses} responses a step: one step could turn "
            f"beta negative; set it above {responses // 5}, better to those of a hundred steps"
        )


def _of_reward(config: "Config") -> Iterator[str]:
    reward = config.reward
    if reward.missing_stop_score is not None and reward.missing_stop_penalty > 0:
        yield (
            f"reward.missing_stop_penalty = {reward.missing_stop_penalty} and "
            f"reward.missing_stop_score = {reward.missing_stop_score}: two rules for the same "
            "responses; set one of them"
        )
    if reward.length_free_tokens and not reward.length_penalty:
        yield (
            f"reward.length_free_tokens = {reward.length_free_tokens} has no effect with "
            "reward.length_penalty = 0; set that too, or remove it"
        )
    if reward.normalization_from == "running" and reward.normalization == "none":
        yield (
            "reward.normalization_from = running has no effect with reward.normalization = none; "
            "set that to center, scale or standardize"
        )


def _of_advantage(config: "Config") -> Iterator[str]:
    advantage, kind = config.advantage, config.advantage.kind
    remedy = f"has no effect with advantage.kind = {kind}; remove it"
    for name in ("value_lam", "length_alpha"):
        value = getattr(advantage, name)
        if value is not None and kind != "gae":
            yield f"advantage.{name} = {value} {remedy}"
    if kind == "n_step" and advantage.n is None:
        yield "advantage.n: missing; advantage.kind = n_step needs it (tokens)"
    if kind != "n_step" and advantage.n is not None:
        yield f"advantage.n = {advantage.n} {remedy}"
    if kind != "grpo" and not advantage.scale_groups:
        yield f"advantage.scale_groups = false {remedy}"
    if kind in ("rloo", "grpo"):
        if advantage.gamma != 1:
            yield (
                f"advantage.gamma = {advantage.gamma} with advantage.kind = {kind}: a response has "
                "one reward there; set it to 1"
            )
        if config.rollout.samples_per_prompt < 2:
            yield (
                f"rollout.samples_per_prompt = 1 with advantage.kind = {kind}, which compares the "
                "responses to one prompt; set it to 2 or more"
            )
    if kind == "reinforce_pp" and advantage.whiten is False:
        yield (
            "advantage.whiten = false with advantage.kind = reinforce_pp, which whitens by "
            "definition; use advantage.kind = reward_to_go"
        )
    if kind in WITHOUT_VALUES and config.value.model != "shared":
        yield (
            f"value.model = {config.value.model} would load a model for nothing: advantage.kind = "
            f"{kind} learns no value function; set it to shared"
        )


def _of_update(config: "Config") -> Iterator[str]:
    ppo = config.ppo
    for name, needed in (
        ("clip_range_high", "clipped"),
        ("dual_clip", "clipped"),
        ("penalty_target", "kl_penalty"),
    ):
        value = getattr(ppo, name)
        if value is not None and ppo.objective != needed:
            yield (
                f"ppo.{name} = {value} has no effect with ppo.objective = {ppo.objective}; remove "
                f"it, or set ppo.objective to {needed}"
            )
    if ppo.objective == "policy_gradient" and ppo.epochs * ppo.minibatches > 1:
        yield (
            f"ppo.epochs = {ppo.epochs} and ppo.minibatches = {ppo.minibatches} with ppo.objective "
            "= policy_gradient, which is right for the first optimizer step on a rollout only; set "
            "both to 1, or ppo.objective to surrogate"
        )


def _of_guard(config: "Config") -> Iterator[str]:
    guard, kl, checkpoint = config.guard, config.kl, config.checkpoint
    if guard.action == "rollback" and checkpoint.every == 0:
        yield (
            "guard.action = rollback with checkpoint.every = 0: there would be nothing to go back "
            "to; set checkpoint.every to 1 or more, or guard.action to stop"
        )
    if guard.action == "rollback" and checkpoint.keep == 1:
        yield (
            "guard.action = rollback with checkpoint.keep = 1: the newest checkpoint may hold the "
            "trouble already; set checkpoint.keep to 2 or more, or to 0 for all"
        )
    for name in ("max_rollbacks", "learning_rate_factor"):
        value = getattr(guard, name)
        if guard.action != "rollback" and value != type(guard).model_fields[name].default:
            yield (
                f"guard.{name} = {value} has no effect with guard.action = {guard.action}; remove "
                "it, or set guard.action to rollback"
            )
    if guard.max_kl is not None and kl.controller != "fixed" and guard.max_kl <= kl.target:
        yield (
            f"guard.max_kl = {guard.max_kl} with kl.target = {kl.target}: the kl.controller would "
            "steer into the limit; set guard.max_kl well above kl.target"
        )
    if checkpoint.save == "best" and config.evaluation.every == 0:
        yield (
            "checkpoint.save = best with evaluation.every = 0: nothing would be compared; set "
            "evaluation.every to 1 or more, or checkpoint.save to last"
        )
