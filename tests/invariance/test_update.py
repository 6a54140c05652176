"""The update: one gradient however the batch is cut, and no motion before the first step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import FAMILIES
from runs import START, make_run, rollout_batch, update_once
from torch import Tensor

from rlhf_ppo.algorithm.losses import LossSettings, ppo_loss
from rlhf_ppo.models.forward import lay_out
from rlhf_ppo.training.ppo import PpoRun, ppo_step
from rlhf_ppo.training.update import UpdateStats, kl_after_update

LORA = {"rank": 2, "alpha": 4}


class Recorder:
    """Stands where the optimizer stands and keeps the gradients it is given."""

    def __init__(self, run: PpoRun) -> None:
        self.parameters = [p for p in run.roles.policy.parameters() if p.requires_grad]
        self.gradients: list[Tensor] = []

    def step(self) -> None:
        """Keep the gradient, change nothing."""
        flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.gradients.append(torch.cat([part.flatten() for part in flat]).clone())

    def zero_grad(self) -> None:
        """Forget the gradient."""
        for parameter in self.parameters:
            parameter.grad = None


def ragged_run(family: str = "llama", **sections: Any) -> PpoRun:
    """A model with opinions whose responses end at many different places."""
    return make_run(family=family, spread=0.3, stops=range(5, 70), **sections)


def update(run: PpoRun, batch: Any, train_policy: bool = True) -> tuple[list[Tensor], UpdateStats]:
    recorder = Recorder(run)
    stats = update_once(run, batch, recorder, train_policy)
    return recorder.gradients, stats


def ppo(**settings: Any) -> dict[str, Any]:
    base = {"epochs": 1, "minibatches": 1, "max_grad_norm": None}
    return {
        "rollout": {"max_new_tokens": 9, "temperature": 1.2},
        "ppo": base | settings,
        "value": {"coefficient": 0.3},
    }


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [1, 40, 100])
def test_micro_batches_do_not_change_the_gradient(family: str, budget: int) -> None:
    whole = ragged_run(family, **ppo(micro_batch_tokens=100_000))
    parts = ragged_run(family, **ppo(micro_batch_tokens=budget))
    batch = rollout_batch(whole)
    lengths = batch.tokens.response_mask.sum(dim=1)
    assert len(set(lengths.tolist())) > 2  # a mean of micro-batch means would show
    (one,), stats = update(whole, batch)
    (other,), split_stats = update(parts, batch)
    assert distance(one, other) < 1e-4
    assert stats.policy_loss == pytest.approx(split_stats.policy_loss, abs=1e-5)
    assert stats.value_loss == pytest.approx(split_stats.value_loss, rel=1e-4)
    assert stats.grad_norm == pytest.approx(float(one.norm()), rel=1e-4)


def test_the_gradient_is_that_of_the_loss_summed_over_tokens_and_divided_once() -> None:
    run = ragged_run(**ppo(micro_batch_tokens=50))
    batch = rollout_batch(run)
    (found,), _ = update(run, batch)
    policy = ragged_run(**ppo()).roles.policy
    outputs = policy(lay_out(batch.tokens), 1.2)
    settings = LossSettings(clip_range=0.2, value_clip_range=0.2, value_coefficient=0.3)
    terms = ppo_loss(outputs, batch, settings)
    mask = batch.tokens.response_mask
    (terms.loss[mask].sum() / int(mask.sum())).backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    assert distance(expected, found) < 1e-4


@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed"])
def test_every_aggregation_is_one_sum_however_it_is_split(aggregation: str) -> None:
    """Against a loss that is averaged by hand, response by response."""
    settings = ppo(loss_aggregation=aggregation, micro_batch_tokens=50)
    run = ragged_run(**settings)
    batch = rollout_batch(run)
    (found,), _ = update(run, batch)
    policy = ragged_run(**ppo()).roles.policy
    loss = ppo_loss(policy(lay_out(batch.tokens), 1.2), batch, LossSettings(value_coefficient=0.3))
    rows = [
        per_token[keep]
        for per_token, keep in zip(loss.loss, batch.tokens.response_mask, strict=True)
    ]
    expected = {
        "token": torch.cat(rows).mean(),
        "sequence": torch.stack([row.mean() for row in rows]).mean(),
        "fixed": torch.stack([row.sum() / 9 for row in rows]).mean(),
    }[aggregation]
    expected.backward()
    wanted = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    assert distance(wanted, found) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_entropy_bonus_raises_the_entropy_of_the_plain_model(family: str) -> None:
    """Its gradient alone (advantages 0), against logits of the model's own forward pass."""
    settings = ppo(entropy_coefficient=0.5) | {"advantage": {"kind": "reward_to_go"}}
    run = ragged_run(family, **settings)
    batch = rollout_batch(run)
    batch = replace(batch, advantages=torch.zeros_like(batch.advantages))
    (found,), _ = update(run, batch)
    lm = ragged_run(family, **settings).roles.policy.lm
    total = torch.zeros(())
    tokens = batch.tokens
    for row in range(len(batch.logprobs)):
        prompt = tokens.prompt_ids[row, : tokens.prompt_lengths[row]]
        response = tokens.response_ids[row][tokens.response_mask[row]]
        logits = lm(input_ids=torch.cat([prompt, response])[None]).logits[0]
        table = (logits[len(prompt) - 1 : -1] / 1.2).log_softmax(dim=-1)
        total = total - (table.exp() * table).sum()
    (-0.5 * total / int(tokens.response_mask.sum())).backward()
    wanted = torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])
    assert distance(wanted, found[: len(wanted)]) < 1e-4
    assert not bool(found[len(wanted) :].any())  # reward_to_go learns no values


def test_an_update_stops_before_the_step_at_which_it_has_moved_too_far() -> None:
    settings = {"epochs": 6, "learning_rate": 0.0002}
    free = ragged_run(**ppo(**settings))
    batch = rollout_batch(free)
    limited = ragged_run(**ppo(**settings, target_kl=0.005))
    stats = update_once(limited, batch)
    assert 1 < stats.optimizer_steps < 6
    assert reached(limited, batch) > 0.005  # the step before it was the one too many ...
    shorter = ragged_run(**ppo(**settings | {"epochs": stats.optimizer_steps}))
    update_once(shorter, batch)
    for one, other in zip(
        *(run.roles.policy.parameters() for run in (limited, shorter)), strict=True
    ):
        assert torch.equal(one, other)  # ... and after it nothing moved
    shorter = ragged_run(**ppo(**settings | {"epochs": stats.optimizer_steps - 1}))
    update_once(shorter, batch)
    assert reached(shorter, batch) <= 0.005


def test_the_kl_after_an_update_is_that_of_the_whole_rollout() -> None:
    run = ragged_run(**ppo(epochs=3, learning_rate=0.01, judge_batch_tokens=60))
    batch = rollout_batch(run)
    assert kl_after_update(run.roles.policy_forward, batch, run.config, run.processes) < 1e-9
    update_once(run, batch)
    with torch.no_grad():
        new = run.roles.policy(lay_out(batch.tokens), 1.2).logprobs
    log_ratio = (new - batch.logprobs)[batch.tokens.response_mask]
    wanted = float((log_ratio.exp() - 1 - log_ratio).mean())
    found = kl_after_update(run.roles.policy_forward, batch, run.config, run.processes)
    assert found == pytest.approx(wanted, rel=1e-3)
    assert wanted > 1e-3


def reached(run: PpoRun, batch: Any) -> float:
    """KL(new || old) of the whole rollout, nats a token."""
    with torch.no_grad():
        new = run.roles.policy(lay_out(batch.tokens), 1.2).logprobs
    log_ratio = (new - batch.logprobs)[batch.tokens.response_mask]
    return float((log_ratio.exp() * log_ratio - log_ratio.exp() + 1).mean())


def test_permuted_rows_do_not_change_the_gradient() -> None:
    run = ragged_run(**ppo(micro_batch_tokens=60))
    batch = rollout_batch(run)
    (one,), _ = update(run, batch)
    (other,), _ = update(run, batch.select(torch.randperm(16)))
    assert distance(one, other) < 1e-4


def test_junk_in_the_padding_does_not_change_the_gradient() -> None:
    run = ragged_run(**ppo(micro_batch_tokens=60))
    batch = rollout_batch(run)
    out = ~batch.tokens.response_mask
    assert bool(out.any())
    junk = replace(
        batch,
        tokens=replace(batch.tokens, response_ids=batch.tokens.response_ids.masked_fill(out, 3)),
        logprobs=batch.logprobs.masked_fill(out, -9.0),
        values=batch.values.masked_fill(out, 99.0),
        advantages=batch.advantages.masked_fill(out, 99.0),
        returns=batch.returns.masked_fill(out, -99.0),
    )
    assert torch.equal(update(run, batch)[0][0], update(run, junk)[0][0])


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (3, 1), (2, 5), (1, 16)])
def test_optimizer_steps_are_epochs_times_minibatches(epochs: int, minibatches: int) -> None:
    run = make_run(**ppo(epochs=epochs, minibatches=minibatches, micro_batch_tokens=30))
    gradients, _ = update(run, rollout_batch(run))
    assert len(gradients) == epochs * minibatches


def test_minibatches_of_a_pass_add_up_to_the_whole() -> None:
    """Weighted by their token counts, which with one row each are the response lengths."""
    whole, parts = ragged_run(**ppo()), ragged_run(**ppo(minibatches=16))
    batch = rollout_batch(whole)
    (expected,), _ = update(whole, batch)
    gradients, _ = update(parts, batch)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    weights = batch.tokens.response_mask.sum(dim=1)[order] / batch.tokens.response_mask.sum()
    found = (torch.stack(gradients) * weights[:, None]).sum(dim=0)
    assert distance(expected, found) < 1e-4


def test_while_the_value_warms_up_the_language_model_gets_no_gradient() -> None:
    run = make_run(**ppo())
    (gradient,), _ = update(run, rollout_batch(run), train_policy=False)
    of_head = sum(p.numel() for p in run.roles.policy.value_head.parameters())
    assert not bool(gradient[:-of_head].any())
    assert bool(gradient[-of_head:].any())


@pytest.mark.parametrize("own_adapter", [False, True], ids=["shared", "adapter"])
def test_value_warm_up_leaves_the_policy_as_it_is_and_moves_the_value_head(
    own_adapter: bool,
) -> None:
    sections: dict[str, Any] = ppo(value_warmup_steps=2, learning_rate=0.01)
    if own_adapter:
        sections |= {"lora": LORA, "value": {"model": "adapter"}}
    run = make_run(**sections)
    policy = run.roles.policy
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    progress = START
    for step in (1, 2):  # a head of zeros hands no gradient on to an adapter in the first
        progress, _, _ = ppo_step(run, step, progress)
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    adapter = {name for name in moved if ".rlhf_value." in name}
    assert bool(adapter) == own_adapter
    assert moved - adapter == {"value_head.weight", "value_head.bias"}
    ppo_step(run, 3, progress)
    assert any(not torch.equal(p, before[name]) for name, p in policy.lm.named_parameters("lm"))


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_before_the_first_step_kl_is_0_and_the_ratio_1(
    family: str, lora: dict[str, Any] | None
) -> None:
    settings = ppo(micro_batch_tokens=37, judge_batch_tokens=60, learning_rate=1e-3)
    run = ragged_run(family, lora=lora, **settings)
    _, metrics, _ = ppo_step(run, 1, START)
    assert metrics["kl/ref"] == 0.0
    assert metrics["policy/ratio_first_error"] < 1e-5
    assert metrics["policy/sampler_gap"] < 1e-4
    assert metrics["policy/clip_fraction"] == 0.0


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_once_the_policy_has_moved_the_reference_has_not(lora: dict[str, Any] | None) -> None:
    settings = ppo(epochs=3, learning_rate=0.02)
    run = make_run(lambda text: text.count("e"), spread=0.3, lora=lora, **settings)
    batch = rollout_batch(run)
    reference_before = reference_logprobs(run, batch)
    progress, _, _ = ppo_step(run, 1, START)
    _, metrics, _ = ppo_step(run, 2, progress)
    assert metrics["kl/ref"] > 1e-3
    assert metrics["policy/ratio_first_error"] < 1e-4
    assert torch.equal(reference_logprobs(run, batch), reference_before)


def reference_logprobs(run: PpoRun, batch: Any) -> Tensor:
    roles, layout = run.roles, lay_out(batch.tokens)
    with torch.no_grad():
        if roles.reference is not None:
            found: Tensor = roles.reference(layout, 1.0)
            return found
        with roles.policy.as_reference():
            return roles.policy(layout, 1.0).logprobs  # type: ignore[no-any-return]


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_reported() -> None:
    free, clipped = ragged_run(**ppo()), ragged_run(**ppo(max_grad_norm=0.01))
    batch = rollout_batch(free)
    (before,), _ = update(free, batch)
    (after,), stats = update(clipped, batch)
    assert float(before.norm()) > 0.01
    assert float(after.norm()) == pytest.approx(0.01, rel=1e-3)
    assert stats.grad_norm == pytest.approx(float(before.norm()), rel=1e-4)
    assert distance(before / before.norm(), after / after.norm()) < 1e-4


def test_the_value_function_has_its_own_learning_rate() -> None:
    settings = ppo(learning_rate=1e-3, warmup_steps=2) | {"value": {"learning_rate": 0.5}}
    run = make_run(**settings)
    ppo_step(run, 1, START)
    names = {id(p): name for name, p in run.roles.policy.named_parameters()}
    for group in run.optimizer.param_groups:
        of_value = {not names[id(p)].startswith("lm.") for p in group["params"]}
        assert len(of_value) == 1
        assert group["lr"] == pytest.approx(0.25 if of_value.pop() else 5e-4)
