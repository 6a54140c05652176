"""The text of PPO-ptx: which rows are kept, and how a drawn row lies in its tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import byte_tokenizer, tiny_model

from rlhf_ppo.data.preferences import Demonstration
from rlhf_ppo.errors import UserError
from rlhf_ppo.training.ptx import TextRow, draw_rows, encode_rows


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer(chat=False)  # one token a byte, and one at the end


def rows_of(tokenizer: Any, *texts: tuple[str, str], most: int = 1000) -> tuple[Any, int]:
    items = [Demonstration(f"t:{row}", *text) for row, text in enumerate(texts, 1)]
    model = tiny_model("gpt2", len(tokenizer)).config  # 64 positions
    return encode_rows(items, tokenizer, model, most, "ptx.data")


def test_a_row_is_learnt_from_where_its_completion_begins_but_never_its_first_token(
    tokenizer: Any,
) -> None:
    rows, dropped = rows_of(tokenizer, ("q: ", "yes"), ("", "yes"))
    assert dropped == 0
    assert [tokenizer.decode(list(row.ids[row.start :])) for row in rows] == [
        "yes<|endoftext|>",
        "es<|endoftext|>",
    ]
    assert [row.start for row in rows] == [3, 1]
    assert [tokenizer.decode(list(row.ids)) for row in rows] == [
        "q: yes<|endoftext|>",
        "yes<|endoftext|>",
    ]


@pytest.mark.parametrize(("most", "longest"), [(10, 9), (64, 63), (1000, 63)])
def test_rows_as_long_as_the_limit_are_kept_and_longer_ones_counted(
    tokenizer: Any, most: int, longest: int
) -> None:
    """The limit is the setting or the positions of the model, whichever is smaller."""
    texts = [("", "x" * longest), ("", "x" * (longest + 1)), ("", "x" * 200), ("a", "b")]
    rows, dropped = rows_of(tokenizer, *texts, most=most)
    assert [len(row.ids) for row in rows] == [longest + 1, 3]
    assert dropped == 2


def test_a_row_of_one_token_teaches_nothing(tokenizer: Any) -> None:
    """Nothing predicts the first token: an empty text is only its end."""
    rows, dropped = rows_of(tokenizer, ("", ""), ("", "a"))
    assert [len(row.ids) for row in rows] == [2] and dropped == 1
    with pytest.raises(UserError, match="none of the 1 rows has from 2 tokens to the 64 positions"):
        rows_of(tokenizer, ("", ""))


def test_a_drawn_row_is_its_context_and_then_what_is_learnt() -> None:
    rows = [TextRow((10, 11, 12, 13), 1), TextRow((20, 21, 22), 2), TextRow((30, 31), 1)]
    tokens = draw_rows(rows, 3, 1, seed=0)
    found = {}
    for place in range(3):
        context = tokens.prompt_ids[place, : tokens.prompt_lengths[place]].tolist()
        learnt = tokens.response_ids[place][tokens.response_mask[place]].tolist()
        found[context[0]] = (context, learnt)
    assert found == {
        10: ([10], [11, 12, 13]),
        20: ([20, 21], [22]),
        30: ([30], [31]),
    }
    assert tokens.response_mask.shape == (3, 3) and int(tokens.response_mask.sum()) == 5


def test_rows_are_walked_in_passes_whose_order_hangs_on_the_seed() -> None:
    rows = [TextRow((n, 1), 1) for n in range(2, 12)]
    walks = [
        torch.cat([draw_rows(rows, 5, number, seed).prompt_ids[:, 0] for number in (1, 2)]).tolist()
        for seed in (0, 1)
    ]
    assert sorted(walks[0]) == sorted(walks[1]) == list(range(2, 12))
    assert walks[0] != walks[1] and walks[0] != sorted(walks[0])
