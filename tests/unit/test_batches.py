"""Which rows go where: steps, minibatches, micro-batches, records."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from helpers import random_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ppo.algorithm.batch import Responses, concatenate, pad_columns
from rlhf_ppo.data.sampler import step_rows
from rlhf_ppo.models.forward import micro_batches
from rlhf_ppo.training.update import minibatch_rows


@given(prompts=st.integers(1, 40), data=st.data(), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_each_pass_covers_every_prompt_exactly_once(
    prompts: int, data: st.DataObject, seed: int
) -> None:
    batch = data.draw(st.integers(1, prompts))
    passes = 3
    steps = -(-passes * prompts // batch)
    walked = [row for step in range(1, steps + 1) for row in step_rows(prompts, batch, step, seed)]
    for number in range(passes):
        one_pass = walked[number * prompts : (number + 1) * prompts]
        assert sorted(one_pass) == list(range(prompts))


def test_prompts_of_a_step_depend_on_seed_and_step_alone() -> None:
    assert step_rows(50, 8, 7, seed=1) == step_rows(50, 8, 7, seed=1)
    assert step_rows(50, 8, 7, seed=1) != step_rows(50, 8, 7, seed=2)
    assert step_rows(50, 50, 1, seed=1) != step_rows(50, 50, 2, seed=1)


@given(st.integers(1, 60), st.data())
@settings(max_examples=40, deadline=None)
def test_minibatches_partition_the_rollout(rows: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, rows))
    parts = list(minibatch_rows(rows, count, torch.Generator().manual_seed(0)))
    assert len(parts) == count
    assert sorted(row for part in parts for row in part.tolist()) == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_each_epoch_shuffles_anew() -> None:
    shuffle = torch.Generator().manual_seed(0)
    first, second = (torch.cat(list(minibatch_rows(30, 3, shuffle))) for _ in range(2))
    assert not torch.equal(first, second)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 100))
@settings(max_examples=80, deadline=None)
def test_micro_batches_partition_the_rows_within_the_budget(
    lengths: list[int], budget: int
) -> None:
    groups = [group.tolist() for group in micro_batches(torch.tensor(lengths), budget)]
    assert Counter(row for group in groups for row in group) == Counter(range(len(lengths)))
    for group in groups:
        assert sum(lengths[row] for row in group) <= budget or len(group) == 1


def test_micro_batches_are_as_few_as_equal_lengths_allow() -> None:
    groups = list(micro_batches(torch.full((10,), 7), 21))
    assert [len(group) for group in groups] == [3, 3, 3, 1]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 100))
@settings(max_examples=40, deadline=None)
def test_micro_batches_go_by_rising_length_and_none_would_hold_the_next_row(
    lengths: list[int], budget: int
) -> None:
    """Sorted rows let packed attention take equal lengths together."""
    groups = [
        [lengths[row] for row in group] for group in micro_batches(torch.tensor(lengths), budget)
    ]
    assert [length for group in groups for length in group] == sorted(lengths)
    for group, after in pairwise(groups):
        assert sum(group) + after[0] > budget


def test_records_select_and_concatenate_their_rows_nested_ones_too() -> None:
    def responses(rows: int, width: int, seed: int) -> Responses:
        tokens = random_tokens(rows, widths=(4, width), seed=seed)
        return Responses(
            tokens=tokens,
            sampling_logprobs=torch.randn(rows, width),
            stopped=torch.zeros(rows, dtype=torch.bool),
            prompt_rows=torch.arange(rows) + 10 * seed,
        )

    short, long = responses(2, 3, 1), responses(3, 5, 2)
    whole = concatenate([short, long])
    assert whole.tokens.response_mask.shape == (5, 5)
    assert torch.equal(whole.tokens.lengths, torch.cat([short.tokens.lengths, long.tokens.lengths]))
    assert not bool(whole.tokens.response_mask[:2, 3:].any())
    picked = whole.select(torch.tensor([3, 0]))
    assert picked.prompt_rows.tolist() == [21, 10]
    assert torch.equal(picked.tokens.response_ids[1, :3], short.tokens.response_ids[0])
    assert torch.equal(picked.sampling_logprobs[0], long.sampling_logprobs[1])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_columns_are_padded_with_zeros_on_the_right(dtype: torch.dtype) -> None:
    padded = pad_columns(torch.ones(2, 2, dtype=dtype), 4)
    assert padded.tolist() == [[1, 1, 0, 0]] * 2
    assert padded.dtype == dtype
    assert pad_columns(torch.ones(3), 4).shape == (3,)


def test_no_pass_of_one_seed_is_a_pass_of_the_next_seed() -> None:
    """Seed + pass would make run 2 begin as run 1 goes on."""
    passes = [step_rows(50, 50, step, seed) for seed in (1, 2, 3) for step in (1, 2, 3)]
    assert len({tuple(rows) for rows in passes}) == 9
