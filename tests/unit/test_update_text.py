"""The next-token loss within an update: what is drawn, added, reported and skipped, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import plain_logprobs, tiny_model
from tensors import ragged_mask
from unigram import Stage, Unigram, batch_of, play

from rlhf_ppo.algorithm.batch import Tokens

ROWS = ([1, 2], [3], [4, 4, 1], [2], [3, 1, 4, 2], [1])
BAD = 49  # a token that the language model cannot read


@pytest.fixture(scope="module")
def language_model() -> Any:
    model = tiny_model("neox")
    with torch.no_grad():
        model.get_input_embeddings().weight[BAD] = math.nan
    return model


def reader(language_model: Any) -> Unigram:
    """A unigram policy with a language model of its own for given text."""
    policy: Any = Unigram()
    object.__setattr__(policy, "lm", language_model)  # no parameter of the update's
    return policy  # type: ignore[no-any-return]


def text_of(*rows: tuple[int, ...]) -> Tokens:
    """Texts whose first token is context."""
    mask = ragged_mask([len(row) - 1 for row in rows], max(map(len, rows)) - 1)
    learnt = torch.zeros(mask.shape, dtype=torch.int64)
    for number, row in enumerate(rows):
        learnt[number, : len(row) - 1] = torch.tensor(row[1:])
    context = torch.tensor([[row[0]] for row in rows])
    return Tokens(context, torch.ones(len(rows), dtype=torch.int64), learnt, mask)


def loss_of(model: Any, *rows: tuple[int, ...]) -> float:
    """Mean over tokens by the plain forward pass."""
    found = [-plain_logprobs(model, row[:1], row[1:]) for row in rows]
    return float(torch.cat(found).mean())


ONE, TWO = ((5, 6), (7, 8, 9, 10)), ((11, 12, 13), (14, 15, 16))


@pytest.mark.parametrize("budget", [1, 1000])
def test_the_loss_of_the_text_is_a_mean_over_tokens_then_over_optimizer_steps(
    language_model: Any, budget: int
) -> None:
    drawn: list[int] = []

    def draw(number: int) -> Tokens:
        drawn.append(number)
        return text_of(*(ONE if number % 2 == 0 else TWO))

    stats, _ = play(
        batch_of(*ROWS), policy=reader(language_model), ptx={"coefficient": 0.5}, draw_text=draw,
        ppo={"minibatches": 2, "epochs": 2, "micro_batch_tokens": budget},
    )  # fmt: skip
    assert drawn == [0, 1, 2, 3]
    expected = (loss_of(language_model, *ONE) + loss_of(language_model, *TWO)) / 2
    assert stats.ptx_loss == pytest.approx(expected, rel=1e-5)


def test_its_loss_is_that_of_all_processes(language_model: Any) -> None:
    """The two of them have the same rows here: each reads one of two and the sum is whole."""
    stage = Stage([1.0], world=2)
    stats, _ = play(
        batch_of([1], [1]), stage, policy=reader(language_model), ptx={},
        draw_text=lambda number: text_of((5, 6, 7), (5, 6, 7)),
    )  # fmt: skip
    assert stats.ptx_loss == pytest.approx(loss_of(language_model, (5, 6, 7)), rel=1e-5)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_text_that_is_not_finite_costs_its_own_step_alone(language_model: Any, bad: int) -> None:
    """The norm looks sound, and the bad row is the first of several micro-batches."""

    def draw(number: int) -> Tokens:
        return text_of((BAD, 6) if number == bad else (5, 6), (7, 8, 9, 10))

    kept: list[Any] = []
    stats, _ = play(
        batch_of(*ROWS), Stage([1.0] * 3), policy=reader(language_model), ptx={}, draw_text=draw,
        ppo={"minibatches": 3, "micro_batch_tokens": 1},
        keep_failure=lambda minibatch, text: kept.append(text),
    )  # fmt: skip
    assert (stats.skipped, stats.optimizer_steps) == (1, 2)
    assert stats.ptx_loss == pytest.approx(loss_of(language_model, (5, 6), (7, 8, 9, 10)), rel=1e-5)
    assert [int(text.prompt_ids[0, 0]) for text in kept] == [BAD]


def test_no_text_is_drawn_while_the_values_warm_up(language_model: Any) -> None:
    drawn: list[int] = []
    stats, _ = play(
        batch_of(*ROWS), policy=reader(language_model), ptx={}, train_policy=False,
        draw_text=lambda number: drawn.append(number) or text_of(*ONE),  # type: ignore[func-returns-value]
    )  # fmt: skip
    assert not drawn and stats.ptx_loss == 0.0
