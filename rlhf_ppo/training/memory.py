"""How much memory PPO will take, before anything is loaded: the step is tried on empty tensors.

Models of the run's shapes are built without data (PyTorch's fake tensors), the largest micro-batch
of each phase goes through them, and every byte that is alive is counted. So the forecast knows each
architecture, adapters, checkpointing and autocast without a formula for any of them.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from rlhf_ppo.config import Config, ModelSource, leaves
from rlhf_ppo.models.forward import Layout, find_trunk, sequence_states
from rlhf_ppo.models.load import DTYPES
from rlhf_ppo.models.lora import add_frozen_adapter
from rlhf_ppo.models.packing import NAME
from rlhf_ppo.models.policy import FrozenPolicy, PolicyWithValueHead, base_model, build_policy
from rlhf_ppo.plan import judging_tokens, training_tokens
from rlhf_ppo.rollout.cache import ROOM, roomy_cache
from rlhf_ppo.training.roles import make_optimizer

GIB = 2**30
# What a process holds beside tensors once it works: buffers of the matrix library and of the
# allocator, measured; on a GPU the driver's own context.
LIBRARIES = {"cpu": 150 * 2**20, "cuda": 700 * 2**20}
# Adapters keep small tensors between the large ones, and the C allocator cannot use the gaps again:
# measured .3 to 1.8 of the update's activations. A GPU's allocator keeps the two apart.
ADAPTER_HOLES = 1.0
SAMPLING_BYTES = 20  # a vocabulary entry: logits, log-probabilities and their float64 sums


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and still alive."""

    def __init__(self) -> None:
        """Nothing is alive yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let an operator run, and count what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        name, size = id(storage), storage.nbytes()
        if name in self._known:
            return
        self._known.add(name)
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed() -> None:
            self._known.discard(name)
            self.now -= size

        weakref.finalize(storage, freed)

    def extra(self, resident: int) -> int:
        """Most bytes since the last call beyond those that stay; begins anew."""
        most = self.peak - resident
        self.peak = self.now
        return most


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
class RewardShape:
    """A reward model that nobody has loaded."""

    config: PretrainedConfig
    dtype: str
    adapter: peft.PeftConfig | None = None  # it stands on the policy's base; None: a whole model


@dataclass(frozen=True)
class Forecast:
    """Bytes on one process."""

    roles: dict[str, int]  # what stays, by role
    phases: dict[str, int]  # what each phase needs besides
    available: int | None  # None: unknown

    @property
    def largest(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def peak(self) -> int:
        """The most that is alive at any time."""
        return sum(self.roles.values()) + max(self.phases.values())

    def lines(self) -> list[tuple[str, str]]:
        """Name and size of each part, for a table."""
        rows = [(name, size) for name, size in self.roles.items() if size]
        rows += [(f"+ in {name}", size) for name, size in self.phases.items()]
        rows.append(("= at the peak", self.peak))
        if self.available is not None:
            rows.append(("there are", self.available))
        return [(name, gib(size)) for name, size in rows]


def forecast(
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
    trained, reference, models = _build(config, policy, rewards, start)
    place = torch.device(work.device)
    roles: dict[str, int] = {}
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live, place:
        _fill(trained, place)
        roles["policy and values"] = live.now
        if reference is not None:
            _fill(reference, place)
        roles["reference"] = live.now - sum(roles.values())
        for model in models:
            _fill(model, place)
        roles["reward models"] = live.now - sum(roles.values())
        with _autocast(work):
            phases = {"rollout": _rollout(config, trained, work)}
            live.extra(live.now)
            judges = [find_trunk(base_model(trained.lm))] * (len(models) < len(rewards))
            judges += [model.base_model for model in models]
            phases["judge"] = _judge(config, live, trained, reference, judges, work)
            update, optimizer, gradients = _update(config, live, trained, work)
    roles["optimizer"] = optimizer
    # Gradients are there in the update alone: between the steps they are forgotten.
    holes = ADAPTER_HOLES if config.lora is not None and work.device == "cpu" else 0
    phases["update"] = round(update * (1 + holes)) + gradients + _seen_states(config, policy, work)
    roles["libraries"] = LIBRARIES.get(work.device, LIBRARIES["cuda"])
    return Forecast(roles, phases, available_bytes(work.device))


def _build(
    config: Config,
    policy: PretrainedConfig,
    rewards: Sequence[RewardShape],
    start: peft.PeftConfig | None,
) -> tuple[PolicyWithValueHead, FrozenPolicy | None, list[PreTrainedModel]]:
    """Policy, reference and whole reward models by the run's own code, shapes alone."""
    dtype = config.policy.dtype
    with torch.device("meta"):
        lm: Any = _empty(AutoModelForCausalLM, policy, dtype)
        models = [
            _empty(AutoModelForSequenceClassification, each.config, each.dtype)
            for each in rewards
            if each.adapter is None
        ]
        if start is not None:
            lm = peft.PeftModel(lm, start)
        first = models[0] if models else None
        checkpointing = config.policy.gradient_checkpointing
        trained = build_policy(lm, config.lora, config.value, first, checkpointing)
        on_base = [each.adapter for each in rewards if each.adapter is not None]
        for number, adapter in enumerate(on_base):
            add_frozen_adapter(trained.lm, f"rlhf_reward_{number}", adapter)
        reference = None
        if config.lora is None:
            reference = FrozenPolicy(_empty(AutoModelForCausalLM, policy, dtype))
    return trained, reference, models


def available_bytes(device: str) -> int | None:
    """Free memory of this process's device; None where the system does not say."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def remedies(config: Config, found: Forecast) -> list[str]:
    """Settings that would take less, the strongest for this run first."""
    ways = []
    if config.lora is None:
        saved = found.roles["reference"] + found.roles["optimizer"]
        ways.append(f"a `lora` section (about {gib(saved)} less, and most gradients)")
    if found.largest == "update" and not config.policy.gradient_checkpointing:
        ways.append("policy.gradient_checkpointing: true")
    if found.largest == "update":
        ways.append("a lower ppo.micro_batch_tokens")
    elif found.largest == "judge":
        ways.append("lower ppo.judge_batch_tokens and batch_tokens of the reward models")
    else:
        ways.append("a lower rollout.generation_batch_size or rollout.max_new_tokens")
    sources = [leaf for _, leaf in leaves(config.reward.sources) if isinstance(leaf, ModelSource)]
    if any(leaf.dtype == "float32" for leaf in sources):
        ways.append("dtype: bfloat16 for the reward models")
    return ways


def _empty(kind: Any, architecture: PretrainedConfig, dtype: str) -> PreTrainedModel:
    """A model without data, as Transformers would load it."""
    model: PreTrainedModel = kind.from_config(architecture, dtype=DTYPES[dtype])
    return model


def _fill(role: nn.Module, device: torch.device) -> None:
    """Tensors without data for a role that was built on no device; it takes packed rows."""
    role.to_empty(device=device)
    for module in role.modules():
        if isinstance(module, PreTrainedModel):
            module.tie_weights()
            # The trial that decides this otherwise needs data.
            if module.config._attn_implementation == "sdpa":
                module.set_attn_implementation(NAME)


@contextmanager
def _autocast(work: Work) -> Iterator[None]:
    kind = torch.float16 if work.precision == "fp16" else torch.bfloat16
    with torch.autocast(work.device, dtype=kind, enabled=work.half):
        yield


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
    before = live.now

    def backward() -> None:
        found = policy(layout, config.rollout.temperature, config.ppo.entropy_coefficient > 0)
        loss = found.logprobs.sum() + found.values.sum()
        if found.entropy.requires_grad:
            loss = loss + found.entropy.sum()
        loss.backward()

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
    """Most bytes of a forward pass of any role; `judges` are the reward models' trunks."""
    layout = _layout(config, work, judging_tokens(config.ppo, work.device))
    resident = live.now
    policy(layout, config.rollout.temperature)
    if reference is not None:
        reference(layout, config.rollout.temperature)
    sources = [leaf for _, leaf in leaves(config.reward.sources) if isinstance(leaf, ModelSource)]
    if sources:
        part = _layout(config, work, max(source.batch_tokens for source in sources))
        for trunk in judges:
            sequence_states(trunk, part.ids, part.positions, part.lengths)
    return live.extra(resident)


@torch.no_grad()
def _rollout(config: Config, policy: PolicyWithValueHead, work: Work) -> int:
    """Bytes of the cache, of reordered weights, and of one token's distribution."""
    base: Any = base_model(policy.lm)
    rows = min(config.rollout.generation_batch_size, work.responses)
    cache = roomy_cache(base.config)
    find_trunk(base)(
        input_ids=torch.zeros(1, 1, dtype=torch.int64), past_key_values=cache, use_cache=True
    )
    layers: Any = cache.layers
    kept = [x for layer in layers for x in (layer.keys, layer.values) if x is not None]
    a_token = sum(x.element_size() * x.shape[1] * x.shape[3] for x in kept)
    length = work.prompt_tokens + config.rollout.max_new_tokens + ROOM
    size: int = rows * length * a_token
    size += rows * int(base.config.get_text_config().vocab_size) * SAMPLING_BYTES
    if work.device == "cpu":
        linears = [m for m in base.modules() if type(m) is nn.Linear]
        size += sum(
            m.weight.numel() * (2 if work.half else m.weight.element_size()) for m in linears
        )
    return size


def gib(size: int) -> str:
    """A number of bytes as people read it."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"
