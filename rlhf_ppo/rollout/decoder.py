"""A model one token at a time: with its cache, or without one where the cache cannot be used.

Three ways, so that what is sampled is what the forward pass scores, whatever a batch holds:

- `padded`: prompts of different lengths together, padded on the left behind a mask. For models
  whose tokens meet in attention alone.
- `equal`: prompts of one length together. State-space layers and convolutions carry a state through
  padding, and a mask does not reach everything they keep.
- `whole`: the whole sequence again at each token. Right for every causal model, and slow.

`way_of` chooses by the layers of the model's cache, and then tries the choice on a few tokens.
"""

import inspect
import sys
from collections.abc import Sequence
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from rlhf_ppo.console import say
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.forward import (
    find_trunk,
    micro_batches,
    output_logits,
    sequence_states,
)
from rlhf_ppo.models.packing import run_packed, takes_packed
from rlhf_ppo.models.trial import alike, as_evaluated, plain_logits, trial_rows
from rlhf_ppo.rollout.cache import RoomyLayer, roomy_cache

Way = Literal["padded", "equal", "whole"]
PROMPTS = {"padded": (4, 9, 9), "equal": (7, 7, 7), "whole": (4, 9, 9)}  # tokens, of a trial
# Zamba 2's code for a single token is not that for many: in float64 too they differ by 1e-4 of the
# logits, on some tokens, which a trial may not meet.
OTHER_STEP = {"zamba2"}
# Largest difference that a cache may make to logits in float32, as a share of the largest: rounding
# gives 1e-6.
CACHED = 3e-5
WHOLE_TOKENS = 4096  # of one forward pass, the whole way
STEPS = 8  # of a trial; after the first, a row leaves and another takes its place

_known: WeakKeyDictionary[nn.Module, Way] = WeakKeyDictionary()


class Decoder(Protocol):
    """Sequences that grow by a token at a time."""

    def prefill(self) -> Tensor:
        """Logits (B, V) of the first response token."""

    def step(self, token: Tensor) -> Tensor:
        """Logits (B, V) of the token after `token` (B,)."""

    def keep(self, rows: Tensor) -> None:
        """Keep these rows alone, in this order."""


def make_decoder(model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], way: Way) -> Decoder:
    """A decoder of B prompts; for `equal` they have one length."""
    if way == "whole":
        return WholeDecoder(model, prompts)
    return CachedDecoder(model, prompts, way)


@torch.no_grad()
def way_of(model: PreTrainedModel) -> Way:
    """How a model is decoded; tried once.

    Args:
        model: causal language model, with adapters or without.

    Raises:
        UserError: no way gives what its own forward pass says.
    """
    base = _plain(model)
    if base not in _known:
        _known[base] = _try_ways(base)
    return _known[base]


def _try_ways(base: PreTrainedModel) -> Way:
    likely = way_by_layers(base)
    with as_evaluated(base):
        for way in dict.fromkeys((likely, "equal", "whole")):
            if _says_the_same(base, way):
                if way == "whole":
                    say(
                        f"{type(base).__name__}: its cache is not used; each token is sampled from "
                        "a pass over the whole sequence, which is slow"
                    )
                return way
    raise UserError(
        f"{type(base).__name__} (model type {base.config.model_type}) cannot be sampled from: what "
        "it says of a token changes with the other sequences beside it. Choose a model of a family "
        "listed in docs/models.md."
    )


def way_by_layers(base: PreTrainedModel) -> Way:
    """The way that fits the layers of a model's cache, untried."""
    known = inspect.signature(base.forward).parameters
    if not known.keys() & {"past_key_values", "cache_params"} or _has_own_cache(base):
        return "whole"
    if base.config.model_type in OTHER_STEP:
        return "whole"
    layers = DynamicCache(config=base.config).layers
    return "equal" if any(_has_state(layer) for layer in layers) else "padded"


def _has_own_cache(base: PreTrainedModel) -> bool:
    """Whether a family's modeling file defines a cache of its own (MiniMax, xLSTM)."""
    names = vars(sys.modules[type(base).__module__])
    return any(
        name.endswith("Cache") and kind.__module__ == type(base).__module__
        for name, kind in names.items()
        if isinstance(kind, type)
    )


def _has_state(layer: Any) -> bool:
    """Whether a layer keeps a state that every token changes, padding too."""
    return isinstance(layer, LinearAttentionCacheLayerMixin)


def _says_the_same(base: PreTrainedModel, way: Way) -> bool:
    """Whether a decoder fed with given tokens says what plain forward passes say."""
    lengths = PROMPTS[way]
    rows = trial_rows(base, [length + STEPS for length in lengths])
    expected = plain_logits(base, rows)
    found, wanted = [], []
    try:
        prompts = [tuple(r[:n].tolist()) for r, n in zip(rows, lengths, strict=True)]
        decoder = make_decoder(base, prompts, way)
        alive, logits = torch.arange(len(rows), device=base.device), decoder.prefill()
        for t in range(STEPS):
            places = [(row, lengths[row] + t) for row in alive.tolist()]
            found.append(logits)
            wanted.append(torch.stack([expected[row][place - 1] for row, place in places]))
            if t == 1:
                order = torch.tensor([2, 1], device=base.device)
                alive = alive[order]
                decoder.keep(order)
                places = [(row, lengths[row] + t) for row in alive.tolist()]
            logits = decoder.step(torch.stack([rows[row][place] for row, place in places]))
    except Exception:  # of any model's own code: another way is tried
        return False
    return alike(base, found, wanted, CACHED)


class WholeDecoder:
    """Sequences that are read from their start at each token, as the forward pass reads them."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[tuple[int, ...]]) -> None:
        self.base = _plain(model)
        self.rows = [torch.tensor(ids, device=model.device) for ids in prompts]

    def prefill(self) -> Tensor:
        """Logits (B, V) of the first response token."""
        lengths = torch.tensor([len(row) for row in self.rows])
        groups = list(micro_batches(lengths, WHOLE_TOKENS))
        logits = torch.cat([self._read([self.rows[row] for row in group]) for group in groups])
        return logits[torch.cat(groups).argsort().to(logits.device)]

    def _read(self, rows: Sequence[Tensor]) -> Tensor:
        lengths = tuple(len(row) for row in rows)
        positions = torch.cat([torch.arange(length) for length in lengths]).to(rows[0].device)
        trunk = find_trunk(self.base)
        states = sequence_states(trunk, torch.cat(list(rows)), positions, lengths)
        last = torch.tensor(lengths, device=states.device).cumsum(0) - 1
        return output_logits(self.base, states[last])

    def step(self, token: Tensor) -> Tensor:
        """Logits (B, V) of the token after `token` (B,)."""
        self.rows = [torch.cat([row, t[None]]) for row, t in zip(self.rows, token, strict=True)]
        return self.prefill()

    def keep(self, rows: Tensor) -> None:
        """Keep these rows alone, in this order."""
        self.rows = [self.rows[row] for row in rows.tolist()]


class CachedDecoder:
    """A model with its cache; prompts are padded on the left unless they have one length."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], way: Way
    ) -> None:
        self.model = model
        self.masked = way == "padded"
        self.prompts = prompts
        lengths = torch.tensor([len(ids) for ids in prompts], device=model.device)
        # The mask is made from lengths: a pad token may well be a word or the stop token.
        column = torch.arange(int(lengths.max()), device=model.device)
        self.mask = (column >= lengths.max() - lengths[:, None]).long()
        self.position = lengths[:, None]  # of the next token
        self.cache = roomy_cache(model.config)
        known = inspect.signature(_plain(model).forward).parameters
        self.takes_positions = "position_ids" in known
        self.cache_name = "past_key_values" if "past_key_values" in known else "cache_params"
        self.options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def prefill(self) -> Tensor:
        """Logits (B, V) of the first response token."""
        base: Any = _plain(self.model)
        fits = takes_packed(base, self.mask.shape[1])
        if fits and all(type(layer) is RoomyLayer for layer in self.cache.layers):
            return self._prefill_packed(base)
        ids = torch.zeros_like(self.mask)
        ids[self.mask.bool()] = torch.tensor([i for p in self.prompts for i in p]).to(ids.device)
        return self._run(ids, (self.mask.cumsum(dim=1) - 1).clamp(min=0))

    def _prefill_packed(self, base: PreTrainedModel) -> Tensor:
        """Each different prompt once, without padding; then a row of the cache a response."""
        number = {prompt: place for place, prompt in enumerate(dict.fromkeys(self.prompts))}
        different = list(number)
        lengths = [len(ids) for ids in different]
        device = self.mask.device
        ids = torch.tensor([token for prompt in different for token in prompt], device=device)
        positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
        cache = DynamicCache(config=base.config)
        states = run_packed(find_trunk(base), ids, positions, tuple(lengths), cache)
        which = torch.tensor([number[prompt] for prompt in self.prompts], device=device)
        width = self.mask.shape[1]
        for place in range(len(cache.layers)):
            layer: Any = cache.layers[place]
            keys, values = (
                torch.stack(
                    [pad(x, (0, 0, width - x.shape[1], 0)) for x in part[0].split(lengths, 1)]
                )
                for part in (layer.keys, layer.values)
            )
            self.cache.update(keys[which], values[which], place)
        last = torch.tensor(lengths, device=device).cumsum(0) - 1
        return output_logits(base, states[last])[which]

    def keep(self, rows: Tensor) -> None:
        """Keep these rows alone, in this order."""
        for layer in self.cache.layers:
            if type(layer) is RoomyLayer:
                layer.batch_select_indices(rows)
            else:  # the only one of a layer's methods that moves states with keys and values
                layer.reorder_cache(rows)  # type: ignore[arg-type]  # any int64
        self.mask, self.position = self.mask[rows], self.position[rows]

    def step(self, token: Tensor) -> Tensor:
        """Logits (B, V) of the token after `token` (B,)."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], dim=1)
        logits = self._run(token[:, None], self.position)
        self.position = self.position + 1
        return logits

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        extra = dict(self.options)
        if self.takes_positions:
            extra["position_ids"] = positions
        if self.masked:
            extra["attention_mask"] = self.mask
        extra[self.cache_name] = self.cache
        outputs = self.model(input_ids=ids, use_cache=True, **extra)
        last: Tensor = outputs.logits[:, -1]
        return last


def _plain(model: Any) -> Any:
    """The model whose `forward` has real parameter names (PEFT hides them behind *args)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
