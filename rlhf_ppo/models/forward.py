"""Token ids to log-probabilities, entropies and hidden states: the one forward pass.

Prompts and responses lie end to end in one row (`packing.py`): no padding is computed. The output
layer sees response positions only, in chunks: the (B, T, V) logits are never made.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf_ppo.algorithm.batch import Tokens
from rlhf_ppo.models.packing import run_packed, takes_packed, to_round
from rlhf_ppo.models.softmax import logprobs_and_entropies

# Bytes of the float32 logits that exist at the same time. Larger ones leave a CPU's caches.
CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
# But never fewer: each chunk adds to the gradient of the whole output layer.
CHUNK_TOKENS = 256
# The bound that a tanh holds logits to, as Gemma 2 and 3, RecurrentGemma and xLSTM call it.
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass(frozen=True)
class Layout:
    """Tokens arranged for one forward pass: T in all, N of them in responses."""

    ids: Tensor  # (T,) int64, each prompt with its response, end to end
    positions: Tensor  # (T,) int64, place of each token in its sequence
    lengths: tuple[int, ...]  # tokens of each sequence; they sum to T
    places: Tensor  # (N,) int64, into T: where each response token is predicted
    targets: Tensor  # (N,) int64, the response tokens
    cells: Tensor  # (N,) int64, into the B x R cells of the mask: those of the response tokens
    mask: Tensor  # (B, R) bool

    def to(self, device: torch.device) -> "Layout":
        """The same layout on another device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def lay_out(tokens: Tokens) -> Layout:
    """Put prompts and responses end to end, and find where each response token is predicted.

    This is the only place of the project where the shift by one stands: the token at position p
    is predicted by the hidden state at p - 1, which is also the state that its value speaks of.
    """
    mask = tokens.response_mask
    column = torch.arange(tokens.prompt_ids.shape[1], device=mask.device)
    in_prompt = column < tokens.prompt_lengths[:, None]
    keep = torch.cat([in_prompt, mask], dim=1)
    number = keep.flatten().cumsum(0).view(keep.shape) - 1  # of each kept token in the row
    return Layout(
        ids=torch.cat([tokens.prompt_ids, tokens.response_ids], dim=1)[keep],
        positions=(keep.cumsum(dim=1) - 1)[keep],
        lengths=tuple(tokens.lengths.tolist()),
        places=number[:, in_prompt.shape[1] :][mask] - 1,
        targets=tokens.response_ids[mask],
        cells=mask.flatten().nonzero().squeeze(-1),
        mask=mask,
    )


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """Put (N,) values at the True places of mask (B, R); 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)


def hidden_states(trunk: nn.Module, layout: Layout) -> Tensor:
    """Last hidden state where each response token is predicted, (N, H)."""
    states = sequence_states(trunk, layout.ids, layout.positions, layout.lengths)
    return states[layout.places]


def sequence_states(
    trunk: nn.Module, ids: Tensor, positions: Tensor, lengths: tuple[int, ...]
) -> Tensor:
    """Last hidden states (T, H) of sequences that lie end to end.

    Args:
        trunk: a model without its head.
        ids: (T,) tokens.
        positions: (T,) place of each token in its sequence.
        lengths: of the sequences; they sum to T.
    """
    if takes_packed(trunk, max(lengths)):
        return run_packed(trunk, ids, positions, lengths)
    # A causal model never looks to its right: padded there, it needs no mask.
    rows = pad_sequence(list(ids.split(lengths)), batch_first=True)
    states: Tensor = trunk(input_ids=rows, use_cache=False).last_hidden_state
    width = rows.shape[1]
    inside = [torch.arange(length) + row * width for row, length in enumerate(lengths)]
    return states.flatten(0, 1)[torch.cat(inside).to(states.device)]


def token_logprobs(
    model: PreTrainedModel,
    states: Tensor,
    targets: Tensor,
    temperature: float,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, both (N,) float32, nats.

    Args:
        model: supplies the output layer.
        states: (N, H), from `hidden_states`.
        targets: (N,) token ids.
        temperature: divides the logits.
        entropy_gradient: let gradients flow through the entropy too.
    """
    parts, tokens = [], len(states)
    device = states.device.type
    extra = to_round(tokens, device)
    states, targets = pad(states, (0, 0, 0, extra)), pad(targets, (0, extra))
    size = _chunk_tokens(model, device)
    arguments = (temperature, entropy_gradient)
    # With several chunks the logits are made again in the backward pass, not kept.
    recompute = torch.is_grad_enabled() and len(states) > size
    for chunk, ids in zip(states.split(size), targets.split(size), strict=True):
        if recompute:
            parts.append(
                checkpoint(_chunk_logprobs, model, chunk, ids, *arguments, use_reentrant=False)
            )
        else:
            parts.append(_chunk_logprobs(model, chunk, ids, *arguments))
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs)[:tokens], torch.cat(entropies)[:tokens]


def _chunk_tokens(model: PreTrainedModel, device: str) -> int:
    vocabulary = int(model.config.get_text_config().vocab_size)
    return max(CHUNK_TOKENS, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * vocabulary))


def _chunk_logprobs(
    model: PreTrainedModel,
    states: Tensor,
    targets: Tensor,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor]:
    logits = output_logits(model, states)
    return logprobs_and_entropies(logits, targets, temperature, entropy_gradient)


def output_logits(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits (N, V) of hidden states (N, H), with what some families do after the output layer.

    `models/trial.py` refuses a family that does something else.
    """
    head: Any = model.get_output_embeddings()
    logits: Tensor = head(states.to(head.weight.dtype))
    config: Any = model.config.get_text_config()
    # Cohere's, from the model: MPT's configuration has one too, which its model does not use.
    for factor in (
        getattr(model, "logit_scale", None),
        getattr(config, "lm_head_multiplier", None),
    ):
        if factor is not None:  # the second is Falcon-H1's
            logits = logits * factor
    if getattr(config, "logits_scaling", None) is not None:  # Granite; MiniCPM 3, before the layer
        logits = logits / config.logits_scaling
    caps = [getattr(config, name, None) for name in CAPS]
    cap = next((found for found in caps if found is not None), None)
    return logits if cap is None else (logits / cap).tanh() * cap


def find_trunk(model: PreTrainedModel) -> nn.Module:
    """The model without its output layer, whose last hidden states that layer reads."""
    # `get_decoder` finds the output layer itself in ModernBERT's decoder, `base_model` the whole
    # model in Llama 4: neither is a trunk.
    found = [model.get_decoder() if hasattr(model, "get_decoder") else None, model.base_model]
    for trunk in (*found, *model.children()):
        if isinstance(trunk, PreTrainedModel) and trunk is not model:
            return trunk
    return model.base_model


def micro_batches(lengths: Tensor, budget: int) -> Iterator[Tensor]:
    """Group rows of similar length so that each group stays within a token budget.

    Args:
        lengths: (B,) tokens of each row.
        budget: tokens; a row longer than that stands alone.

    Yields:
        (n,) int64 row numbers, by rising length; together they are all rows, once each.
    """
    order = lengths.argsort(stable=True).tolist()
    group: list[int] = []
    filled = 0
    for row in order:
        length = int(lengths[row])
        if group and filled + length > budget:
            yield torch.tensor(group)
            group, filled = [], 0
        group.append(row)
        filled += length
    if group:
        yield torch.tensor(group)
