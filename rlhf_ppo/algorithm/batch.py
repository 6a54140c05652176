"""The tensors that travel from generation to the update.

Index convention, everywhere: entry `t` of a (B, R) tensor speaks about `response_ids[:, t]`: its
log-probability, the value of the state before it, the reward received for it. Prompts and
responses are right-padded; `response_mask` is True on sampled tokens, the stop token included;
padding holds 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Base: a record of tensors that share their first dimension, one entry a response."""

    def select(self, rows: Tensor) -> Self:
        """The given rows, in the given order; `rows` is (N,) int64."""
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> Self:
        """The same record on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        values = {}
        for field in fields(self):
            value: Tensor | Rows = getattr(self, field.name)
            values[field.name] = (
                value._map(function) if isinstance(value, Rows) else function(value)
            )
        return type(self)(**values)


@dataclass(frozen=True)
class Tokens(Rows):
    """Prompts and responses as token ids; all that a forward pass needs."""

    prompt_ids: Tensor  # (B, P) int64, right-padded
    prompt_lengths: Tensor  # (B,) int64
    response_ids: Tensor  # (B, R) int64, right-padded
    response_mask: Tensor  # (B, R) bool

    @property
    def lengths(self) -> Tensor:
        """Tokens of prompt and response together, (B,) int64."""
        return self.prompt_lengths + self.response_mask.sum(dim=1)


@dataclass(frozen=True)
class Responses(Rows):
    """What generation returns."""

    tokens: Tokens
    sampling_logprobs: Tensor  # (B, R) float32, nats, as the sampler saw them
    stopped: Tensor  # (B,) bool, True: ended by itself, False: cut at the limit
    prompt_rows: Tensor  # (B,) int64, the prompt's place in its data set


@dataclass(frozen=True)
class Rollout(Rows):
    """Responses and what models and reward sources said of them; no gradients."""

    responses: Responses
    logprobs: Tensor  # (B, R) float32, nats, under the policy that sampled
    ref_logprobs: Tensor  # (B, R) float32, nats, under the reference
    values: Tensor  # (B, R) float32, reward units
    entropy: Tensor  # (B, R) float32, nats
    source_scores: Tensor  # (B, S) float32, reward units, of each reward source; NaN: missing


@dataclass(frozen=True)
class TokenOutputs(Rows):
    """What the policy says of each response token; 0 in the padding."""

    logprobs: Tensor  # (B, R) float32, nats
    values: Tensor  # (B, R) float32, reward units, V of the state before the token
    entropy: Tensor  # (B, R) float32, nats; with a gradient only where one was asked for


@dataclass(frozen=True)
class TrainBatch(Rows):
    """What the update needs of a rollout."""

    tokens: Tokens
    logprobs: Tensor  # (B, R) float32, nats, at collection
    ref_logprobs: Tensor  # (B, R) float32, nats
    values: Tensor  # (B, R) float32, reward units
    advantages: Tensor  # (B, R) float32
    returns: Tensor  # (B, R) float32, reward units


@dataclass(frozen=True)
class Minibatch(Rows):
    """The rows of one optimizer step, or a part of them that knows its share of the whole."""

    batch: TrainBatch
    weights: Tensor  # (B,) of each token of a response in the loss, see `response_weights`


T = TypeVar("T", bound=Rows)


def pad_columns(tensor: Tensor, width: int) -> Tensor:
    """Right-pad a (B, C) tensor with zeros to (B, width); (B,) tensors pass unchanged."""
    if tensor.dim() < 2 or tensor.shape[1] == width:
        return tensor
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]))


def concatenate(parts: list[T]) -> T:
    """Stack records below one another, padding each tensor to the widest of its kind."""
    values = {}
    for field in fields(parts[0]):
        column = [getattr(part, field.name) for part in parts]
        if isinstance(column[0], Rows):
            values[field.name] = concatenate(column)
        else:
            width = max(tensor.shape[-1] for tensor in column)
            values[field.name] = torch.cat([pad_columns(tensor, width) for tensor in column])
    return type(parts[0])(**values)
