"""Settings that are right alone and wrong together, or that would change nothing.

Each message names the settings with their values, and the remedy.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlhf_ppo.config.rewards import EnsembleSource, ModelSource, leaves, trained_source

if TYPE_CHECKING:
    from rlhf_ppo.config import Config

WITHOUT_VALUES = ("reward_to_go", "rloo", "grpo", "reinforce_pp")


def contradictions(config: "Config") -> Iterator[str]:
    """Every problem of a config as a whole."""
    yield from _of_data(config)
    yield from _of_reward(config)
    yield from _of_sources(config)
    yield from _of_models(config)
    yield from _of_adapters(config)
    yield from _of_memory(config)
    yield from _of_advantage(config)
    yield from _of_update(config)
    yield from _of_guard(config)
    yield from _of_evaluation(config)
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


def _of_data(config: "Config") -> Iterator[str]:
    data = config.data
    if data.system_prompt is not None and not data.system_prompt.strip():
        yield f"data.system_prompt = {data.system_prompt!r} is empty; remove it"
    for ours, theirs in data.columns.items():
        if ours == theirs:
            yield f"data.columns.{ours} = {theirs!r} changes nothing; remove it"
        elif not ours.strip() or not theirs.strip():
            yield f"data.columns: {ours!r}: {theirs!r} has an empty name; give both, or remove it"
        elif [*data.columns.values()].count(theirs) > 1:
            yield (
                f"data.columns.{ours} = {theirs!r}: a column can have one name only, and another "
                "has it too; remove one of the two"
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


def _of_sources(config: "Config") -> Iterator[str]:
    sources = config.reward.sources
    groups = [("reward.sources", sources)] + [
        (f"reward.sources[{source.name}].members", source.members)
        for source in sources
        if isinstance(source, EnsembleSource)
    ]
    for place, group in groups:
        names = [source.name for source in group]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{place}: {names.count(name)} are called {name!r}; give each its own name"
    if all(source.weight == 0 for source in sources):
        yield "reward.sources: every weight is 0, so nothing is rewarded; give one a weight"
    for source in sources:
        place = f"reward.sources[{source.name}]"
        if source.weight == 0 and source.normalization != "none":
            yield f"{place}.normalization has no effect with weight = 0; remove it"
        if not isinstance(source, EnsembleSource):
            continue
        for member in source.members:
            if member.weight != 1:
                yield (
                    f"{place}.members[{member.name}].weight = {member.weight} has no effect in an "
                    "ensemble; remove it, or make the member a source of its own"
                )
        if source.combine == "lower" and source.k is None:
            yield f"{place}.k: missing; combine = lower needs it (standard deviations)"
        if source.combine != "lower" and source.k is not None:
            yield f"{place}.k = {source.k} has no effect with combine = {source.combine}; remove it"


def _of_models(config: "Config") -> Iterator[str]:
    models = [leaf for _, leaf in leaves(config.reward.sources) if isinstance(leaf, ModelSource)]
    if sum(model.path is None for model in models) > 1:
        yield (
            "reward.sources: two models without a path would be one and the same, the one that "
            "this run trains; give a path"
        )
    if config.reward_model is not None and trained_source(config.reward) is None:
        yield (
            "reward_model: would train a model that no reward source uses; add the source "
            "{kind: model} without a path to reward.sources, or set reward_model to null"
        )
    if config.value.model == "reward" and len(models) != 1:
        yield (
            f"value.model = reward with {len(models)} reward sources of kind model: it must be "
            "clear which one to start from; use one, or set value.model to shared or policy"
        )


def _of_adapters(config: "Config") -> Iterator[str]:
    remedy = "add a lora section, or set it to"
    if config.lora is None and config.value.model == "adapter":
        yield f"value.model = adapter needs a base that is not trained itself; {remedy} shared"
    if config.value.updates not in (None, 1) and config.value.model != "pooled":
        yield (
            f"value.updates = {config.value.updates} with value.model = {config.value.model}, "
            "where each needs a pass through a whole model; set value.updates to 1, or value.model "
            "to pooled"
        )
    made = config.reward_model
    if config.lora is None and made is not None and made.save == "adapter":
        yield f"reward_model.save = adapter: without lora there is no adapter; {remedy} merged"
    if config.value.init == "saved":
        if config.policy.path is None or config.sft is not None:
            yield (
                "value.init = saved: there is none, as the run makes its own starting model; set "
                "policy.path to the policy/ folder of an earlier run and leave out sft, or set it "
                "to new"
            )
        if config.advantage.kind in WITHOUT_VALUES:
            yield (
                f"value.init = saved has no effect with advantage.kind = {config.advantage.kind}, "
                "which learns no value function; set it to new"
            )


def _of_memory(config: "Config") -> Iterator[str]:
    if config.policy.quantization is not None:
        what = f"policy.quantization = {config.policy.quantization}"
        if config.lora is None:
            yield f"{what}: 4 bits cannot be trained; add a lora section, or set it to null"
        elif config.lora.save == "merged":
            yield (
                f"{what} with lora.save = merged: an adapter cannot be merged into 4 bits without "
                "loss; set lora.save to adapter"
            )
        if config.sft is not None:
            yield (
                f"{what} with an sft section, whose result is merged; make the supervised model in "
                "a run of its own and give it as policy.path"
            )
        if config.value.model == "policy":
            yield (
                f"{what} with value.model = policy: a copy in 4 bits cannot be trained; set "
                "value.model to shared or adapter"
            )
    asked = [leaf for _, leaf in leaves(config.reward.sources) if isinstance(leaf, ModelSource)]
    if config.hardware.offload and config.lora is not None and not asked:
        yield (
            "hardware.offload = true has no effect: with lora the policy is its own reference, and "
            "no reward source is a model; set it to false"
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
    if kind in WITHOUT_VALUES and config.value.model not in ("shared", "pooled"):
        yield (
            f"value.model = {config.value.model} would load a model for nothing: advantage.kind = "
            f"{kind} learns no value function; set it to pooled"
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


def _of_evaluation(config: "Config") -> Iterator[str]:
    evaluation = config.evaluation
    if evaluation.best_of == 1:
        yield (
            "evaluation.best_of = 1: the best of one sample is that sample; set it to 2 or more, "
            "or to 0 for none"
        )
    most = evaluation.best_of_prompts
    if evaluation.best_of == 0 and most != type(evaluation).model_fields["best_of_prompts"].default:
        yield (
            f"evaluation.best_of_prompts = {most} has no effect with evaluation.best_of = 0; "
            "remove it, or set evaluation.best_of to 2 or more"
        )
