"""Ragged tensors and the algorithm's records, by hand; needs torch and the algorithm alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_ppo.algorithm.batch import TokenOutputs, Tokens, TrainBatch


def ragged_mask(lengths: Sequence[int], width: int) -> Tensor:
    """True on the first `length` entries of each row."""
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def ragged(*rows: Sequence[float], padding: float = math.nan, width: int = 0) -> Tensor:
    """Rows of different lengths as one float64 (B, R) tensor; NaN in the padding shows a reader."""
    width = max(width, *(len(row) for row in rows))
    filled = [[*row, *[padding] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.float64)


def mask_of(*rows: Sequence[float]) -> Tensor:
    """The mask of `ragged` rows."""
    return ragged_mask([len(row) for row in rows], max(len(row) for row in rows))


def response_tokens(mask: Tensor) -> Tokens:
    """Tokens whose responses have this mask; the ids say nothing."""
    rows = len(mask)
    return Tokens(
        prompt_ids=torch.ones(rows, 2, dtype=torch.int64),
        prompt_lengths=torch.full((rows,), 2),
        response_ids=mask.long(),
        response_mask=mask,
    )


def train_batch(mask: Tensor, **given: Tensor) -> TrainBatch:
    """A batch at collection; what is not given is 0."""
    zero = torch.zeros(mask.shape, dtype=torch.float64)
    names = ("logprobs", "ref_logprobs", "values", "advantages", "returns")
    fields: dict[str, Any] = {name: given.get(name, zero) for name in names}
    return TrainBatch(tokens=response_tokens(mask), **fields)


def token_outputs(mask: Tensor, **given: Tensor) -> TokenOutputs:
    """What the policy says now; what is not given is 0."""
    zero = torch.zeros(mask.shape, dtype=torch.float64)
    return TokenOutputs(
        given.get("logprobs", zero), given.get("values", zero), given.get("entropy", zero)
    )


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers that depend on the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
