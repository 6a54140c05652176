"""Token ids to log-probabilities, entropies and hidden states: the one forward pass.

Prompt and response are laid side by side and padded on the right. A causal model never looks to
its right, so no attention mask is needed and padding cannot leak in. The output layer sees
response positions only, in chunks: the (B, T, V) logits are never made.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf_ppo.algorithm.batch import Tokens
from rlhf_ppo.errors import UserError

# Tokens whose logits exist at the same time; 1024 x 150k float32 is 0.6 GB.
CHUNK = 1024


@dataclass(frozen=True)
class Layout:
    """Tokens arranged for one forward pass; N is the number of response tokens."""

    input_ids: Tensor  # (B, T) int64, prompt then response, right-padded
    positions: Tensor  # (N,) int64, into the flattened (B * T): where each token is predicted
    targets: Tensor  # (N,) int64, the response tokens
    mask: Tensor  # (B, R) bool


def lay_out(tokens: Tokens) -> Layout:
    """Join prompts and responses, and find where each response token is predicted.

    This is the only place of the project where the shift by one stands: the token at position p
    is predicted by the hidden state at p - 1, which is also the state that its value speaks of.
    """
    batch, width = len(tokens.prompt_ids), int(tokens.lengths.max())
    mask = tokens.response_mask
    device = mask.device
    input_ids = torch.zeros(batch, width, dtype=torch.int64, device=device)
    column = torch.arange(tokens.prompt_ids.shape[1], device=device)
    in_prompt = column < tokens.prompt_lengths[:, None]
    rows, columns = in_prompt.nonzero(as_tuple=True)
    input_ids[rows, columns] = tokens.prompt_ids[in_prompt]
    rows, columns = mask.nonzero(as_tuple=True)
    places = tokens.prompt_lengths[rows] + columns
    targets = tokens.response_ids[mask]
    input_ids[rows, places] = targets
    return Layout(input_ids, rows * width + places - 1, targets, mask)


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """Put (N,) values at the True places of mask (B, R); 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)


def hidden_states(trunk: nn.Module, layout: Layout) -> Tensor:
    """Last hidden state where each response token is predicted, (N, H)."""
    states: Tensor = trunk(input_ids=layout.input_ids, use_cache=False).last_hidden_state
    return states.flatten(0, 1)[layout.positions]


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
    parts = []
    arguments = (temperature, entropy_gradient)
    for chunk, ids in zip(states.split(CHUNK), targets.split(CHUNK), strict=True):
        # With several chunks the logits are made again in the backward pass, not kept.
        recompute = torch.is_grad_enabled() and len(states) > CHUNK
        if recompute:
            parts.append(
                checkpoint(_chunk_logprobs, model, chunk, ids, *arguments, use_reentrant=False)
            )
        else:
            parts.append(_chunk_logprobs(model, chunk, ids, *arguments))
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk_logprobs(
    model: PreTrainedModel,
    states: Tensor,
    targets: Tensor,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor]:
    logits = output_logits(model, states).float() / temperature
    log_softmax = logits.log_softmax(dim=-1)
    logprobs = log_softmax.gather(-1, targets[:, None]).squeeze(-1)
    with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
        entropy = -(log_softmax.exp() * log_softmax).sum(dim=-1)
    return logprobs, entropy


def output_logits(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits (N, V) of hidden states (N, H), with what some families do after the output layer."""
    head: Any = model.get_output_embeddings()
    logits: Tensor = head(states.to(head.weight.dtype))
    config: Any = model.config.get_text_config()
    if getattr(config, "logit_scale", None) is not None:  # Cohere
        logits = logits * config.logit_scale
    if getattr(config, "logits_scaling", None) is not None:  # Granite
        logits = logits / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    return logits if cap is None else (logits / cap).tanh() * cap


def find_trunk(model: PreTrainedModel) -> nn.Module:
    """The model without its output layer."""
    trunk = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    return trunk if isinstance(trunk, nn.Module) else model.base_model


@torch.no_grad()
def check_output_layer(model: PreTrainedModel, path: str) -> None:
    """Compare our logits with the model's own on a few tokens.

    A family that changes its logits in a way we do not know would otherwise train against
    log-probabilities that are not the model's.

    Raises:
        UserError: they differ.
    """
    ids = torch.arange(4, device=model.device)[None] % model.config.get_text_config().vocab_size
    expected = model(input_ids=ids, use_cache=False).logits[0].float()
    states = find_trunk(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
    found = output_logits(model, states).float()
    scale = expected.abs().max().clamp(min=1.0)
    if not torch.allclose(found / scale, expected / scale, atol=1e-2):
        raise UserError(
            f"policy.path: {path!r} ({type(model).__name__}) changes its logits after the output "
            "layer in a way that is not supported yet; please report the model's name."
        )


def micro_batches(lengths: Tensor, budget: int) -> Iterator[Tensor]:
    """Group rows of similar length so that each group, padded, stays within a token budget.

    Args:
        lengths: (B,) tokens of each row.
        budget: tokens, padding included; a row longer than that stands alone.

    Yields:
        (n,) int64 row numbers; together they are all rows, once each.
    """
    order = lengths.argsort(stable=True).tolist()
    group: list[int] = []
    for row in order:
        longest = int(lengths[row])  # rows come by rising length
        if group and longest * (len(group) + 1) > budget:
            yield torch.tensor(group)
            group = []
        group.append(row)
    if group:
        yield torch.tensor(group)
