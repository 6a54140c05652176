"""PPO-ptx: text that the policy keeps in mind (Ouyang et al. 2022, equation 2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from rlhf_ppo.algorithm.batch import Tokens
from rlhf_ppo.data.preferences import Demonstration, encode_demonstration
from rlhf_ppo.data.sampler import step_rows
from rlhf_ppo.data.template import check_template
from rlhf_ppo.errors import UserError


@dataclass(frozen=True)
class TextRow:
    """One text as token ids; `ids[start:]` are learnt, what stands before is their context."""

    ids: tuple[int, ...]
    start: int  # at least 1: nothing predicts the first token


def encode_rows(
    items: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    model: Any,
    max_tokens: int,
    setting: str,
) -> tuple[list[TextRow], int]:
    """Token ids of the rows that are short enough.

    Args:
        items: texts.
        tokenizer: of the policy.
        model: configuration of the policy, whose positions are a limit too.
        max_tokens: longer ones are dropped.
        setting: where the data is named, for messages.

    Returns:
        The rows, and how many were dropped.

    Raises:
        UserError: messages that the template refuses, or nothing is left.
    """
    check_template(tokenizer, [item.prompt for item in items], setting)
    positions = getattr(model.get_text_config(), "max_position_embeddings", None)
    limit = min(max_tokens, positions or max_tokens)
    rows = []
    for item in items:
        ids, start = encode_demonstration(tokenizer, item)
        start = max(1, start)
        if start < len(ids) <= limit:
            rows.append(TextRow(tuple(ids), start))
    if not rows:
        raise UserError(
            f"{setting}: none of the {len(items)} rows has 2 to {limit} tokens (ptx.max_tokens = "
            f"{max_tokens}, positions of the model: {positions}). Raise ptx.max_tokens, or give "
            "other rows."
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
