"""A language model tried on a few tokens, before anything depends on what it says.

Families differ in positions, masks, states and in what they do to their logits, and a wrong
log-probability is a number like any other. So each model is compared with its own plain forward
pass, one sequence at a time, without padding, packing or cache.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_ppo.errors import UserError
from rlhf_ppo.models.forward import find_trunk, output_logits, sequence_states

LENGTHS = (9, 14, 14, 4)
CUT = 5  # tokens that are left away to see whether those before them change
# Largest difference of logits, as a share of the largest logit. Rounding in float32 gives 1e-6; a
# wrong position, mask, state or factor gives .1 and more.
TOLERANCE = 1e-3
# In half precision the mean difference: single tokens may go to other experts. Rounding gives .005.
HALF_TOLERANCE = 3e-2


@torch.no_grad()
def try_language_model(model: PreTrainedModel, setting: str, *, in_training: bool = False) -> None:
    """Compare what this package computes with the model's own logits.

    Args:
        model: in its place on its device.
        setting: for messages, with the path.
        in_training: the forward passes will be made in training mode (gradient checkpointing).

    Raises:
        UserError: no causal language model, or one that is not computed right; names the family.
    """
    family = f"{setting}: {type(model).__name__} (model type {model.config.model_type})"
    rows = trial_rows(model, LENGTHS)
    with as_evaluated(model):
        try:
            expected = plain_logits(model, rows)
            cut = plain_logits(model, [row[:-CUT] for row in rows if len(row) > CUT])
        except Exception as error:  # of any model's own code
            raise UserError(
                f"{family} cannot be run as a causal language model: {first_line(error)}"
            ) from error
        whole = [found[:-CUT] for found, row in zip(expected, rows, strict=True) if len(row) > CUT]
        if not alike(model, cut, whole):
            raise UserError(
                f"{family} is not causal: what it says of a token depends on the tokens after it, "
                "so it has no log-probabilities to train with. Choose a causal language model."
            )
        if not alike(model, ours(model, rows), expected):
            raise UserError(
                f"{family} makes its logits in a way that is not supported: they differ from those "
                "of its own forward pass. Choose a model of a family listed in docs/models.md."
            )
    if in_training and not _alike_in_training(model, rows, expected):
        raise UserError(
            f"{family} computes something else in training mode than in evaluation, also without "
            "dropout, and gradient checkpointing works in training mode only. Set "
            "policy.gradient_checkpointing to false."
        )


def try_value_trunk(trunk: Any, setting: str) -> None:
    """See that a separate value model does not look ahead.

    Raises:
        UserError: the value of a state depends on tokens that come after it.
    """
    rows = trial_rows(trunk, LENGTHS[:1])
    with torch.no_grad(), as_evaluated(trunk):
        whole = [trunk(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in rows]
        cut = [
            trunk(input_ids=row[None, :-CUT], use_cache=False).last_hidden_state[0] for row in rows
        ]
    if not alike(trunk, cut, [found[:-CUT] for found in whole]):
        raise UserError(
            f"{setting}: {type(trunk).__name__} is not causal: the value of a state would know the "
            "tokens that come after it. Use value.model shared or policy."
        )


def plain_logits(model: PreTrainedModel, rows: Sequence[Tensor]) -> list[Tensor]:
    """The model's own logits (T, V) of each row, alone."""
    with torch.no_grad():
        return [model(input_ids=row[None], use_cache=False).logits[0] for row in rows]


def ours(model: PreTrainedModel, rows: Sequence[Tensor]) -> list[Tensor]:
    """Logits (T, V) of each row as training computes them, all rows in one pass."""
    lengths = tuple(len(row) for row in rows)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(rows[0].device)
    states = sequence_states(find_trunk(model), torch.cat(list(rows)), positions, lengths)
    return list(output_logits(model, states).split(lengths))


def trial_rows(model: Any, lengths: Sequence[int]) -> list[Tensor]:
    """Tokens at random, the same for all models of a vocabulary; the global generator is left."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    embeddings = model.get_input_embeddings()
    if isinstance(embeddings, nn.Embedding):  # it may be smaller than the configuration says
        vocabulary = min(vocabulary, embeddings.num_embeddings)
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(vocabulary, (length,), generator=generator).to(model.device)
        for length in lengths
    ]


def alike(
    model: Any,
    found: Sequence[Tensor],
    expected: Sequence[Tensor],
    tolerance: float = TOLERANCE,
) -> bool:
    """Whether two lists of (T, V) logits are equal up to the rounding of the model's numbers.

    Args:
        model: whose logits they are.
        found, expected: the same tokens in both.
        tolerance: in float32, as a share of the largest logit.
    """
    one, other = (torch.cat(list(part)).float() for part in (found, expected))
    if not bool(torch.isfinite(other).all()):  # a model that is broken anyway is not judged here
        return True
    # A softmax does not see what all logits have in common.
    one, other = (x - x.mean(dim=-1, keepdim=True) for x in (one, other))
    scale = other.abs().max().clamp(min=1e-6)
    difference = (one - other).abs() / scale
    if model.dtype in (torch.bfloat16, torch.float16) or getattr(model, "is_quantized", False):
        return float(difference.mean()) <= HALF_TOLERANCE
    return float(difference.max()) <= tolerance


@contextmanager
def as_evaluated(model: nn.Module) -> Iterator[None]:
    """Inside, evaluation mode and no autocast; afterwards the mode as before."""
    training = model.training
    model.eval()
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        model.train(training)


def first_line(error: Exception) -> str:
    """What libraries raise can be pages long; its kind, where it says nothing."""
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:300]


def _alike_in_training(
    model: PreTrainedModel, rows: Sequence[Tensor], expected: Sequence[Tensor]
) -> bool:
    """Whether training mode gives what evaluation gives, twice; random state stays as it was."""
    training = model.training
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            model.train()
            with torch.autocast(device.type, enabled=False):
                return all(alike(model, plain_logits(model, rows), expected) for _ in range(2))
    finally:
        model.train(training)
