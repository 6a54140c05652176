"""PPO-ptx: one next-token loss however it is cut, drawn alike by every process and on resume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import FAMILIES, byte_tokenizer
from runs import START, make_run, rollout_batch
from test_ten_invariants import Apart
from test_update import Recorder, distance
from torch import Tensor
from torch.nn.functional import cross_entropy

from rlhf_ppo.algorithm.batch import Tokens
from rlhf_ppo.data.preferences import Demonstration
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.policy import base_model
from rlhf_ppo.training.ppo import PpoRun, ppo_step
from rlhf_ppo.training.ptx import TextRow, draw_rows, encode_rows
from rlhf_ppo.training.train_batch import loss_settings
from rlhf_ppo.training.update import _accumulate_text_gradients, _Tally, ppo_update

ROWS = [TextRow(tuple(range(20 + n, 24 + 2 * n)), 1 + n % 3) for n in range(7)]


def ptx_run(family: str = "llama", **sections: Any) -> PpoRun:
    base = {"rollout": {"max_new_tokens": 9, "temperature": 1.3}, "ptx": {"coefficient": 0.7}}
    base |= {"ppo": {"epochs": 1, "max_grad_norm": None}}
    run = make_run(family=family, spread=0.3, stops=range(5, 70), **base | sections)
    return replace(run, ptx_rows=ROWS)


def gradient(run: PpoRun) -> Tensor:
    flat = [
        torch.zeros_like(p) if p.grad is None else p.grad for p in run.roles.policy.parameters()
    ]
    return torch.cat([part.flatten() for part in flat])


def plain_gradient(run: PpoRun, rows: list[TextRow], weight: float) -> tuple[Tensor, float]:
    """By the model's own logits and torch's cross-entropy, row by row."""
    total, tokens = torch.zeros(()), 0
    lm = base_model(run.roles.policy.lm)
    for row in rows:
        logits = lm(input_ids=torch.tensor([row.ids])).logits[0]
        learnt = torch.tensor(row.ids[row.start :])
        total = total + cross_entropy(logits[row.start - 1 : -1], learnt, reduction="sum")
        tokens += len(learnt)
    (weight * total / tokens).backward()
    found = gradient(run)
    run.roles.policy.zero_grad()
    return found, float(total.detach()) / tokens


def rows_of(tokens: Tokens) -> list[TextRow]:
    """The drawn rows, back from their tensors."""
    found = []
    for n, length in enumerate(tokens.prompt_lengths.tolist()):
        context = tokens.prompt_ids[n, :length].tolist()
        learnt = tokens.response_ids[n][tokens.response_mask[n]].tolist()
        found.append(TextRow((*context, *learnt), length))
    return found


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_plain_cross_entropy_on_the_same_rows(
    family: str, lora: dict[str, int] | None
) -> None:
    """The sampling temperature is none of its business."""
    run = ptx_run(family, lora=lora)
    wanted, _ = plain_gradient(run, ROWS, 0.7)
    tokens = draw_rows(ROWS, len(ROWS), 1, seed=3)
    _accumulate_text_gradients(
        run.roles.policy, tokens, run.config, run.processes, _Tally(run.processes)
    )
    assert distance(wanted, gradient(run)) < 1e-4
    assert float(wanted.norm()) > 1e-3


@pytest.mark.parametrize("world", [1, 2, 3, 9])
@pytest.mark.parametrize("budget", [1, 12, 1000])
def test_no_processes_and_micro_batches_change_the_gradient(world: int, budget: int) -> None:
    """Nine processes share seven rows: two of them have none."""
    run = ptx_run(ppo={"micro_batch_tokens": budget})
    wanted, loss = plain_gradient(run, ROWS, 0.7)
    tokens, found = draw_rows(ROWS, len(ROWS), 1, seed=3), 0.0
    for rank in range(world):
        apart: Any = Apart(rank, world)
        apart.autocast = run.processes.autocast
        tally = _Tally(apart)
        _accumulate_text_gradients(run.roles.policy, tokens, run.config, apart, tally)
        found += tally.minibatch_text_loss
    assert distance(wanted, gradient(run)) < 1e-4
    assert found == pytest.approx(loss, rel=1e-4)


def test_an_update_adds_it_to_the_gradient_of_ppo() -> None:
    run, without = ptx_run(), ptx_run(ptx=None)
    batch = rollout_batch(run)
    drawn: list[Tokens] = []

    def draw(number: int) -> Tokens:
        assert number == len(drawn)
        drawn.append(draw_rows(ROWS, 3, number + 1, seed=5))
        return drawn[-1]

    gradients = []
    for each, text in ((without, None), (run, draw)):
        recorder: Any = Recorder(each)
        roles, loss = each.roles, loss_settings(each.config, 0.05, 1.0)
        shuffle = torch.Generator().manual_seed(0)
        stats = ppo_update(
            roles.policy, roles.policy_forward, recorder, batch, each.config, loss, shuffle,
            each.processes, draw_text=text,
        )  # fmt: skip
        gradients.append(recorder.gradients[0])
    wanted, value = plain_gradient(run, rows_of(drawn[0]), 0.7)
    assert distance(wanted, gradients[1] - gradients[0]) < 1e-3
    assert stats.ptx_loss == pytest.approx(value, rel=1e-4)


def test_rows_are_walked_without_repetition_and_differ_by_seed() -> None:
    drawn = [rows_of(draw_rows(ROWS, 2, number, seed=1)) for number in range(1, 8)]
    first_pass = [row for rows in drawn for row in rows][: len(ROWS)]
    assert sorted(row.ids for row in first_pass) == sorted(row.ids for row in ROWS)
    assert drawn[3] == rows_of(draw_rows(ROWS, 2, 4, seed=1))
    assert drawn != [rows_of(draw_rows(ROWS, 2, number, seed=2)) for number in range(1, 8)]


def test_every_optimizer_step_of_a_run_draws_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []

    def drawing(rows: Any, count: int, number: int, seed: int) -> Tokens:
        numbers.append(number)
        return draw_rows(rows, count, number, seed)

    monkeypatch.setattr("rlhf_ppo.training.ppo.draw_rows", drawing)
    run = ptx_run(ppo={"epochs": 2, "minibatches": 3, "value_warmup_steps": 1})
    progress = START
    for step in (1, 2, 3):
        progress, metrics, _ = ppo_step(run, step, progress)
        assert (metrics["ptx/loss"] > 1.0) == (step > 1)  # none while the values warm up
    assert numbers == list(range(7, 19))


def test_it_holds_the_policy_to_the_text() -> None:
    """Against the same run without: the text stays likelier."""
    losses = {}
    for weight in (None, 20.0):
        ptx = None if weight is None else {"coefficient": weight, "batch_size": 7}
        settings = {"epochs": 4, "learning_rate": 0.003}
        run = ptx_run(ptx=ptx, ppo=settings)
        progress = START
        for step in (1, 2, 3):
            progress, _, _ = ppo_step(run, step, progress)
        _, losses[weight] = plain_gradient(run, ROWS, 1.0)
    assert losses[20.0] < losses[None] - 0.5


def test_texts_become_rows_and_what_is_too_long_or_empty_is_dropped() -> None:
    tokenizer = byte_tokenizer(chat=False)
    texts = [("", "ab"), ("q: ", "yes"), ("", "x" * 70)]
    items = [Demonstration(f"t:{row}", *text) for row, text in enumerate(texts, 1)]
    model = make_run().roles.policy.lm.config  # 64 positions
    rows, dropped = encode_rows(items, tokenizer, model, 1000, "ptx.data")
    assert dropped == 1
    assert [(len(row.ids), row.start) for row in rows] == [(3, 1), (7, 3)]
    assert tokenizer.decode(list(rows[1].ids[3:])) == "yes" + str(tokenizer.eos_token)
    with pytest.raises(UserError, match=r"none of the 3 rows .*ptx.max_tokens = 2 "):
        encode_rows(items, tokenizer, model, 2, "ptx.data")
