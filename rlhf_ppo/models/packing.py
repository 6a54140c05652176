"""Attention over sequences that lie end to end in one row: no padding is ever computed.

A model sees one row of all tokens with their positions. All its layers treat tokens one by one,
except attention, which is taken over here: through Transformers' attention interface, each sequence
attends to itself alone. A model that does not fit (attention of its own, state between tokens)
is found out at loading and gets padded rows instead.
"""

from functools import reduce
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "rlhf_ppo_packed"
WINDOW = "packed_window"  # on a module: tokens of its shortest attention window
ROUND = 64  # tokens, see `to_round`
_inside: list[bool] = []  # not empty while a packed row goes through a model
_windows: set[int] = set()  # lengths of attention windows that a model asked for in a packed row


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_lengths: tuple[int, ...] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Causal attention within each sequence of a packed row; plain SDPA otherwise.

    Args:
        module: the attention layer.
        query: (1, heads, T, D).
        key, value: (1, key heads, T, D).
        attention_mask: None for packed rows.
        packed_lengths: tokens of each sequence, in order; they sum to T.
        options: what the model's layer passes on; of these `scaling` is followed.

    Returns:
        (1, T, heads, D) and no weights, as the interface asks.

    Raises:
        ValueError: an option that this attention does not know, e.g. `softcap`.
    """
    own, device = query.dtype, query.device.type
    kind = attention_dtype(device, query.dtype, key.dtype, value.dtype)
    query, key, value = query.to(kind), key.to(kind), value.to(kind)
    with torch.autocast(device, enabled=False):  # it would choose the type again
        if packed_lengths is None:
            found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        else:
            _note_window(options.get("sliding_window"))
            found = _attend_packed(module, query, key, value, packed_lengths, options)
    return found.to(own), None


def attention_dtype(device: str, *found: torch.dtype) -> torch.dtype:
    """The type attention computes in, given those of queries, keys and values.

    A CPU's half-precision attention is slower than its float32, and less exact.
    """
    widest = reduce(torch.promote_types, found)
    if device == "cpu":
        return torch.promote_types(widest, torch.float32)
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else widest


def _attend_packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    options: dict[str, Any],
) -> Tensor:
    """(1, T, heads, D) from (1, heads, T, D), each sequence for itself."""
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(f"packed attention does not know {name}")
    grouped = getattr(module, "num_key_value_groups", 1) > 1
    # Neighbours of one length go together: rows come sorted, so that is most of them.
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    cuts = [length * count for length, count in runs]
    outputs = []
    for (length, count), q, k, v in zip(
        runs, *(x.squeeze(0).split(cuts, dim=1) for x in (query, key, value)), strict=True
    ):
        q, k, v = (x.unflatten(1, (count, length)).transpose(0, 1) for x in (q, k, v))
        found = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=options.get("scaling"), enable_gqa=grouped
        )
        outputs.append(found.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None]


def _mask(*arguments: Any, **options: Any) -> Tensor | None:
    """No mask for packed rows, whose (T, T) one would be almost all False; SDPA's otherwise."""
    if _inside:
        _note_window(options.get("local_size"))
        return None
    mask: Tensor | None = sdpa_mask(*arguments, **options)
    return mask


def _note_window(length: Any) -> None:
    if isinstance(length, int):
        _windows.add(length)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _mask)


def run_packed(
    trunk: nn.Module,
    ids: Tensor,
    positions: Tensor,
    lengths: tuple[int, ...],
    cache: Cache | None = None,
) -> Tensor:
    """Last hidden states (T, H) of sequences that lie end to end.

    Args:
        trunk: a model for which `takes_packed` says True.
        ids: (T,) tokens.
        positions: (T,) place of each token in its sequence.
        lengths: of the sequences; they sum to T.
        cache: an empty one, to be filled with the (1, heads, T, D) keys and values.
    """
    total = len(ids)
    extra = to_round(total, ids.device.type) if cache is None else 0
    if extra:  # one more sequence, which nobody reads
        ids, positions = pad(ids, (0, extra)), pad(positions, (0, extra))
        lengths = (*lengths, extra)
    _inside.append(True)  # masks are made once, at the top of the model
    try:
        states: Tensor = trunk(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=cache is not None,
            past_key_values=cache,
            packed_lengths=lengths,
        ).last_hidden_state
    finally:
        _inside.pop()
    return states[0, :total]


def to_round(tokens: int, device: str) -> int:
    """Tokens to add to a row so that few different lengths occur.

    In half precision a CPU's matrix library compiles a kernel for each new shape: a third of the
    time of a product, and half a megabyte that stays. In float32, and on a GPU, it does not.
    """
    return -tokens % ROUND if device == "cpu" and torch.is_autocast_enabled("cpu") else 0


def takes_packed(trunk: nn.Module, longest: int) -> bool:
    """Whether `enable_packing` said True for this model, and no attention window is in the way.

    Some families cut attention off in the mask alone, which packed rows do not have.

    Args:
        trunk: a model.
        longest: tokens of the longest sequence.
    """
    config: Any = getattr(trunk, "config", None)
    if getattr(config, "_attn_implementation", None) != NAME:
        return False
    text = config.get_text_config()
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    # Not every family calls it so (`local_attention`): what the layers asked for when tried.
    windows.append(getattr(trunk, WINDOW, None))
    return all(window is None or longest <= window for window in windows)


@torch.no_grad()
def enable_packing(model: Any, trunk: nn.Module) -> bool:
    """Let a model take packed rows, if it then still says what it says of each sequence alone.

    Args:
        model: the whole Transformers model, whose attention is replaced.
        trunk: the model without its head.
    """
    before = model.config._attn_implementation
    if before != "sdpa":  # eager by need (softcap, sinks), or the user's own choice
        return False
    vocabulary = int(model.config.get_text_config().vocab_size)
    lengths = (3, 7, 7, 2)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (sum(lengths),), generator=generator).to(model.device)
    positions = torch.cat([torch.arange(n) for n in lengths]).to(model.device)
    _windows.clear()
    try:
        alone = [
            trunk(input_ids=part[None], use_cache=False).last_hidden_state[0]
            for part in ids.split(lengths)
        ]
        expected = torch.cat(alone).float()
        model.set_attn_implementation(NAME)
        found = run_packed(trunk, ids, positions, lengths).float()
        scale = expected.abs().max().clamp(min=1e-6)
        tolerance = 2e-2 if _is_half(model) else 1e-4
        alike = torch.allclose(found / scale, expected / scale, atol=tolerance)
    except Exception:  # of any model's own code: such a one gets padded rows
        alike = False
    if not alike:
        model.set_attn_implementation(before)
    elif _windows:
        for module in (model, trunk):
            setattr(module, WINDOW, min(_windows))
    return alike


def _is_half(model: Any) -> bool:
    return model.dtype in (torch.bfloat16, torch.float16)
