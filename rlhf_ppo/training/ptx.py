"""PPO-ptx: text that the policy keeps in mind (Ouyang et al. 2022, equation 2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_ppo.algorithm.batch import Tokens
from rlhf_ppo.data.fitting import LongRows, fit_demonstrations
from rlhf_ppo.data.lengths import LengthLimit
from rlhf_ppo.data.preferences import Demonstration
from rlhf_ppo.data.sampler import step_rows
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.limits import limits_of


@dataclass(frozen=True)
class TextRow:
    """One text as token ids; `ids[start:]` are learnt, what stands before is their context."""

    ids: tuple[int, ...]
    start: int  # at least 1: nothing predicts the first token


def encode_rows(
    items: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    model: PretrainedConfig,
    max_tokens: int,
    setting: str,
    long_rows: LongRows = "drop",
) -> tuple[list[TextRow], int]:
    """Token ids of the rows that are short enough.

    Args:
        items: texts.
        tokenizer: of the policy.
        model: configuration of the policy, whose positions are a limit too.
        max_tokens: longer ones are dropped, or cut.
        setting: where the data is named, for messages.
        long_rows: what is done with longer ones.

    Returns:
        The rows, and how many were dropped.

    Raises:
        UserError: messages that the template refuses, or nothing is left.
    """
    limits = limits_of(model, "policy.path").strict()
    limit = LengthLimit("ptx.max_tokens", max_tokens, limits)
    fitted = fit_demonstrations(items, tokenizer, limit, setting, long_rows)
    found = [TextRow(tuple(row.ids), max(1, row.start)) for row in fitted.rows]
    rows = [row for row in found if row.start < len(row.ids)]
    if not rows:
        shortest = min(fitted.lengths)
        raise UserError(
            f"{setting}: none of the {len(items)} rows has from 2 tokens to {limit} (the shortest "
            f"has {shortest}). {limit.remedy(shortest)}"
        )
    return rows, len(items) - len(rows)


def draw_rows(rows: Sequence[TextRow], count: int, number: int, seed: int) -> Tokens:
    """The rows of one optimizer step: a pure function, alike on every process and on resume.

    The rows are walked in a fresh permutation each pass.

    Args:
        rows: all of them.
        count: rows to draw.
        number: of the optimizer step in the whole run, from 1.
        seed: of the permutations.

    Returns:
        `count` rows, those tokens that are learnt as responses.
    """
    drawn = [rows[row] for row in step_rows(len(rows), count, number, seed)]
    contexts = [torch.tensor(row.ids[: row.start]) for row in drawn]
    learnt = [torch.tensor(row.ids[row.start :]) for row in drawn]
    lengths = torch.tensor([len(ids) for ids in learnt])
    response_ids = pad_sequence(learnt, batch_first=True)
    return Tokens(
        prompt_ids=pad_sequence(contexts, batch_first=True),
        prompt_lengths=torch.tensor([len(ids) for ids in contexts]),
        response_ids=response_ids,
        response_mask=torch.arange(response_ids.shape[1]) < lengths[:, None],
    )
