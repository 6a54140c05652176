"""How much memory a stage will take, before anything is loaded: a step is tried on empty tensors.

Models of the run's shapes are built without data (`shapes.py`), the largest micro-batch of each
phase goes through them, and every byte that is alive is counted. So the forecast knows each
architecture, adapters, checkpointing and autocast without a formula for any of them.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig, PreTrainedModel

from rlhf_ppo.config import Config, ModelSource, leaves
from rlhf_ppo.models.forward import Layout, find_trunk, sequence_states
from rlhf_ppo.models.load import DTYPES
from rlhf_ppo.models.policy import FrozenPolicy, PolicyWithValueHead, base_model
from rlhf_ppo.plan import judging_tokens, training_tokens
from rlhf_ppo.rollout.cache import ROOM, roomy_cache
from rlhf_ppo.rollout.decoder import way_by_layers
from rlhf_ppo.training.live_bytes import LiveBytes, available_bytes, gib, held_bytes
from rlhf_ppo.training.roles import make_optimizer
from rlhf_ppo.training.shapes import RewardShape, build_shapes, empty_language_model, fill

# What a working process holds beside tensors and imports: buffers of the matrix library and what
# the allocator keeps of freed memory, measured; on a GPU the driver's own context.
LIBRARIES = {"cpu": 150 * 2**20, "cuda": 700 * 2**20}
# Adapters keep small tensors between the large ones, and the C allocator cannot use the gaps again:
# measured .3 to 1.8 of the update's activations. A GPU's allocator keeps the two apart.
ADAPTER_HOLES = 1.0
SAMPLING_BYTES = 20  # a vocabulary entry: logits, log-probabilities and their float64 sums


@dataclass(frozen=True)
class Work:
    """The largest pieces of work on one process."""

    responses: int  # sampled in a step
    prompt_tokens: int  # of the longest prompt
    device: str  # type, like "cpu"
    precision: str = "no"  # what autocast computes in: no, bf16 or fp16

    @property
    def half(self) -> bool:
        """Whether autocast is on."""
        return self.precision != "no"


@dataclass(frozen=True)
class Forecast:
    """Bytes on one process."""

    stage: str
    roles: dict[str, int]  # what stays, by role
    phases: dict[str, int]  # what each phase needs besides
    held: int = 0  # what the process holds already: imports and data
    available: int | None = field(default=None)  # beside that; None: unknown

    @property
    def largest(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def needed(self) -> int:
        """The most that is alive at any time, beside what the process holds already."""
        return sum(self.roles.values()) + max(self.phases.values())

    @property
    def peak(self) -> int:
        """The most that the process holds at any time."""
        return self.held + self.needed

    def lines(self) -> list[tuple[str, str]]:
        """Name and size of each part, for a table."""
        held = {"held already": self.held}
        rows = [(name, size) for name, size in (held | self.roles).items() if size]
        rows += [(f"+ in {name}", size) for name, size in self.phases.items()]
        rows.append(("= at the peak", self.peak))
        if self.available is not None:
            rows.append(("there are", self.held + self.available))
        return [(name, gib(size)) for name, size in rows]


def forecast_ppo(
    config: Config,
    policy: PretrainedConfig,
    rewards: Sequence[RewardShape],
    work: Work,
    start: peft.PeftConfig | None = None,
) -> Forecast:
    """Bytes that PPO will take on one process.

    Args:
        config: settings.
        policy: configuration of the policy's model.
        rewards: each reward model.
        work: the largest pieces of work.
        start: of the adapter that a LoRA run goes on with.
    """
    trained, reference, models = build_shapes(config, policy, rewards, start)
    judges: list[nn.Module] = [find_trunk(base_model(trained.lm))] * (len(models) < len(rewards))
    with empty_tensors(work) as live:
        roles = _fill_roles(live, work, trained, reference, models)
        with autocast(work):
            phases = {"rollout": _rollout(config, trained, work)}
            live.extra(live.now)
            phases["judge"] = _judge(config, live, trained, reference, [*judges, *models], work)
            update, optimizer, gradients = _update(config, live, trained, work)
    roles["optimizer"] = optimizer
    # Gradients are there in the update alone: between the steps they are forgotten.
    states = _seen_states(config, policy, work)
    phases["update"] = with_holes(config, work, update) + gradients + states
    return finished("ppo", roles, phases, work)


def forecast_evaluation(
    config: Config, policy: PretrainedConfig, rewards: Sequence[RewardShape], work: Work
) -> Forecast:
    """Bytes that the evaluation at the end will take: policy, reference and reward models alone."""
    whole = config.model_copy(update={"lora": None, "value": type(config.value)()})
    apart = [RewardShape(each.config, each.dtype) for each in rewards]
    trained, reference, models = build_shapes(whole, policy, apart, None)
    with empty_tensors(work) as live:
        roles = _fill_roles(live, work, trained, reference, models)
        with autocast(work):
            phases = {"rollout": _rollout(config, trained, work)}
            live.extra(live.now)
            phases["judge"] = _judge(config, live, trained, reference, models, work)
    return finished("evaluation", roles, phases, work)


def forecast_supervised(
    config: Config, stage: str, model: RewardShape, rows: int, tokens: int, work: Work
) -> Forecast:
    """Bytes that TRL's trainer will take for the supervised model or the reward model.

    Args:
        config: settings.
        stage: `sft` or `reward_model`.
        model: that is trained.
        rows: sequences of a forward pass, both sides of each pair.
        tokens: of the longest one.
        work: the device and what autocast computes in.
    """
    trained: Any = empty_language_model(config, model, classifies=stage == "reward_model")
    with empty_tensors(work) as live:
        fill(trained, torch.device(work.device))
        trained.train()
        roles = {"model": live.now}
        parameters = [p for p in trained.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, fused=True)
        ids = torch.zeros(rows, tokens, dtype=torch.int64)

        def backward() -> None:
            if stage == "sft":
                trained(input_ids=ids, labels=ids).loss.backward()
            else:
                trained(input_ids=ids).logits.sum().backward()

        with autocast(work):
            update, roles["optimizer"], gradients = _step(live, optimizer, backward)
    return finished(stage, roles, {"update": with_holes(config, work, update) + gradients}, work)


@contextmanager
def empty_tensors(work: Work) -> Iterator[LiveBytes]:
    """Inside, tensors are made without data on the run's device, and counted."""
    place = torch.device(work.device)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live, place:
        yield live


@contextmanager
def autocast(work: Work) -> Iterator[None]:
    """The run's own autocast."""
    kind = torch.float16 if work.precision == "fp16" else torch.bfloat16
    with torch.autocast(work.device, dtype=kind, enabled=work.half):
        yield


def with_holes(config: Config, work: Work, activations: int) -> int:
    """Bytes of activations, and of what adapters make unusable between them."""
    holes = ADAPTER_HOLES if config.lora is not None and work.device == "cpu" else 0
    return round(activations * (1 + holes))


def finished(stage: str, roles: dict[str, int], phases: dict[str, int], work: Work) -> Forecast:
    """The forecast, with what the libraries take and what the machine has."""
    whole = roles | {"libraries": LIBRARIES.get(work.device, LIBRARIES["cuda"])}
    return Forecast(stage, whole, phases, held_bytes(work.device), available_bytes(work.device))


def _fill_roles(
    live: LiveBytes,
    work: Work,
    policy: PolicyWithValueHead,
    reference: FrozenPolicy | None,
    rewards: Sequence[PreTrainedModel],
) -> dict[str, int]:
    """Bytes of each role's weights and buffers."""
    place = torch.device(work.device)
    roles: dict[str, int] = {}
    parts: dict[str, list[nn.Module]] = {
        "policy and values": [policy],
        "reference": [] if reference is None else [reference],
        "reward models": list(rewards),
    }
    for name, models in parts.items():
        for model in models:
            fill(model, place)
        roles[name] = live.now - sum(roles.values())
    return roles


def _layout(config: Config, work: Work, tokens: int) -> Layout:
    """A micro-batch that fills the budget, as far as a step has so many tokens."""
    new = config.rollout.max_new_tokens
    whole = work.prompt_tokens + new
    total = max(whole, min(tokens, work.responses * whole))
    lengths = [whole] * (total // whole)
    if total % whole:  # a budget that is not a multiple of the longest sequence is filled too
        lengths.append(total % whole)
    learnt = [min(new, length - 1) for length in lengths]
    ids = torch.zeros(sum(lengths), dtype=torch.int64)
    places = torch.zeros(sum(learnt), dtype=torch.int64)
    mask = torch.arange(new) < torch.tensor(learnt)[:, None]
    cells = torch.zeros_like(places)
    return Layout(ids, ids.clone(), tuple(lengths), places, places.clone(), cells, mask)


def _update(
    config: Config, live: LiveBytes, policy: PolicyWithValueHead, work: Work
) -> tuple[int, int, int]:
    """Most bytes of activations, those of the optimizer's state, and those of the gradients."""
    optimizer = make_optimizer(config, policy)
    layout = _layout(config, work, training_tokens(config.ppo, work.device, work.half))

    def backward() -> None:
        found = policy(layout, config.rollout.temperature, config.ppo.entropy_coefficient > 0)
        loss = found.logprobs.sum() + found.values.sum()
        if found.entropy.requires_grad:
            loss = loss + found.entropy.sum()
        loss.backward()

    return _step(live, optimizer, backward)


def _step(
    live: LiveBytes, optimizer: torch.optim.Optimizer, backward: Callable[[], None]
) -> tuple[int, int, int]:
    """Most bytes of activations, those of the optimizer's state, and those of the gradients."""
    before = live.now
    backward()
    gradients = live.now - before
    optimizer.step()
    state = live.now - before - gradients
    live.extra(live.now)
    backward()
    return live.extra(before + gradients + state), state, gradients


def _seen_states(config: Config, policy: PretrainedConfig, work: Work) -> int:
    """Bytes of the states that further value updates read: those of a minibatch's responses."""
    if config.value.steps == 1:
        return 0
    tokens = work.responses // config.ppo.minibatches * config.rollout.max_new_tokens
    width = int(policy.get_text_config().hidden_size)
    return tokens * width * DTYPES[config.policy.dtype].itemsize


@torch.no_grad()
def _judge(
    config: Config,
    live: LiveBytes,
    policy: PolicyWithValueHead,
    reference: FrozenPolicy | None,
    judges: Sequence[nn.Module],
    work: Work,
) -> int:
    """Most bytes of a forward pass of any role; `judges` are reward models, or trunks of them."""
    layout = _layout(config, work, judging_tokens(config.ppo, work.device))
    resident = live.now
    policy(layout, config.rollout.temperature)
    if reference is not None:
        reference(layout, config.rollout.temperature)
    sources = [leaf for _, leaf in leaves(config.reward.sources) if isinstance(leaf, ModelSource)]
    if sources:
        part = _layout(config, work, max(source.batch_tokens for source in sources))
        for model in judges:
            if model is find_trunk(base_model(policy.lm)):
                sequence_states(model, part.ids, part.positions, part.lengths)
            else:
                model(input_ids=torch.zeros(len(part.lengths), part.lengths[0], dtype=torch.int64))
    return live.extra(resident)


@torch.no_grad()
def _rollout(config: Config, policy: PolicyWithValueHead, work: Work) -> int:
    """Bytes of the cache, of reordered weights, and of one token's distribution."""
    base: Any = base_model(policy.lm)
    rows = min(config.rollout.generation_batch_size, work.responses)
    length = work.prompt_tokens + config.rollout.max_new_tokens
    size: int = rows * _cache_bytes(base, length)
    size += rows * int(base.config.get_text_config().vocab_size) * SAMPLING_BYTES
    if work.device == "cpu":
        linears = [m for m in base.modules() if type(m) is nn.Linear]
        size += sum(
            m.weight.numel() * (2 if work.half else m.weight.element_size()) for m in linears
        )
    return size


def _cache_bytes(base: Any, length: int) -> int:
    """What a response of so many tokens, with its prompt, keeps in a cache."""
    cache = roomy_cache(base.config)
    known = inspect.signature(base.forward).parameters
    if way_by_layers(base) == "whole":
        return 0
    name = "past_key_values" if "past_key_values" in known else "cache_params"
    find_trunk(base)(
        **{"input_ids": torch.zeros(1, 1, dtype=torch.int64), name: cache, "use_cache": True}
    )
    size = 0
    for layer in cache.layers:
        a_token, once = _layer_bytes(layer)
        window = getattr(layer, "sliding_window", None)
        size += once + a_token * (length + ROOM if window is None else min(length, window))
    return size


def _layer_bytes(layer: Any) -> tuple[int, int]:
    """Bytes a token, and bytes whatever the length, of a layer's cache that holds one token."""
    states = [*getattr(layer, "conv_states", {}).values()]
    states += [*getattr(layer, "recurrent_states", {}).values()]
    kept = [getattr(layer, name, None) for name in ("keys", "values")]
    a_token, once = (
        sum(x.element_size() * x.numel() for x in part if isinstance(x, Tensor))
        for part in (kept, states)
    )
    return a_token, once
