"""From scores to the gradient: padding, junk, the order of rows and micro-batches change nothing.

Each relation is held for every advantage, objective, KL estimator and aggregation. The walk is that
of a PPO step: rewards, advantages, whitening, weights of the whole batch, loss in parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import get_args

import pytest
import torch
from tensors import normal, ragged_mask, response_tokens
from torch import Tensor

from rlhf_ppo.algorithm.advantages import AdvantageSettings, Kind, estimate_advantages
from rlhf_ppo.algorithm.batch import (
    Minibatch,
    Rows,
    TokenOutputs,
    Tokens,
    TrainBatch,
    concatenate,
    pad_columns,
)
from rlhf_ppo.algorithm.kl import Estimator, kl_of_update
from rlhf_ppo.algorithm.losses import (
    Aggregation,
    LossSettings,
    Objective,
    ppo_loss,
    response_weights,
)
from rlhf_ppo.algorithm.masked import explained_variance, masked_mean, masked_sum, whiten
from rlhf_ppo.algorithm.rewards import penalize_length, shape_rewards

GROUP, LENGTHS = 3, [4, 7, 1, 2, 5, 5, 3, 6, 2, 1, 7, 4]
JUNK = (float("nan"), float("inf"), float("-inf"), 1e30)


@dataclass(frozen=True)
class Case:
    """One way to turn a rollout into a gradient."""

    advantage: AdvantageSettings = field(default_factory=AdvantageSettings)
    loss: LossSettings = field(default_factory=lambda: LossSettings(value_clip_range=0.5))
    aggregation: Aggregation = "token"
    shift_mean: bool = True
    estimator: Estimator = "k1"  # of the KL in the reward


def by_kind(kind: Kind, **more: object) -> Case:
    return Case(AdvantageSettings(kind, gamma=0.9, n=2, group_size=GROUP, **more))  # type: ignore[arg-type]


CLIPS = LossSettings("clipped", clip_range=0.1, clip_range_high=0.3, dual_clip=1.5)
CASES = (
    {kind: by_kind(kind) for kind in get_args(Kind)}
    | {name: Case(loss=LossSettings(name)) for name in get_args(Objective)}
    | {name: Case(aggregation=name) for name in get_args(Aggregation)}
    | {
        f"{name} in the loss": Case(
            loss=LossSettings(kl_coefficient=0.5, kl_estimator=name), estimator=name
        )
        for name in get_args(Estimator)
    }
    | {
        "grpo, unscaled": by_kind("grpo", scale_groups=False),
        "reinforce_pp, no groups": Case(AdvantageSettings("reinforce_pp")),
        "lambda by length": by_kind("gae", length_alpha=0.4),
        "two lambdas": by_kind("gae", lam=0.5, value_lam=1.0),
        "mean kept": Case(shift_mean=False),
        "all clips": Case(loss=CLIPS),
        "entropy": Case(loss=LossSettings(entropy_coefficient=0.1, value_clip_range=None)),
    }
)
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@dataclass(frozen=True)
class Step(Rows):
    """All that a PPO step is told; float32, 0 in the padding."""

    tokens: Tokens
    scores: Tensor  # (B,)
    logprobs: Tensor  # (B, R), as the rest
    ref_logprobs: Tensor
    values: Tensor
    outputs: TokenOutputs


def random_step() -> Step:
    mask = ragged_mask(LENGTHS, max(LENGTHS))
    numbers = normal(6, *mask.shape, seed=0, dtype=torch.float32) * mask
    logprobs = numbers[0] - 2.0 * mask
    moved = TokenOutputs(logprobs + 0.3 * numbers[1], 0.5 * numbers[2], numbers[3].abs())
    return Step(
        tokens=response_tokens(mask),
        scores=normal(len(mask), seed=1, dtype=torch.float32),
        logprobs=logprobs,
        ref_logprobs=logprobs + 0.4 * numbers[4],
        values=0.5 * numbers[5],
        outputs=moved,
    )


@dataclass(frozen=True)
class Result:
    """The gradients in the policy's outputs, and the numbers that are logged."""

    gradients: TokenOutputs
    metrics: dict[str, float]


def collected_batch(step: Step, case: Case) -> tuple[TrainBatch, float]:
    """What the update is told, and how good the values were."""
    mask = step.tokens.response_mask
    scores = penalize_length(step.scores, mask, 0.1, 4)
    rewards = shape_rewards(scores, step.logprobs, step.ref_logprobs, mask, 0.2, case.estimator)
    advantages, returns = estimate_advantages(rewards, step.values, mask, case.advantage)
    explained = float(explained_variance(step.values, returns, mask))
    white = whiten(advantages, mask, case.shift_mean)
    at_collection = (step.logprobs, step.ref_logprobs, step.values)
    return TrainBatch(step.tokens, *at_collection, white, returns), explained


def run(step: Step, case: Case, parts: list[Tensor] | None = None) -> Result:
    """Loss, gradient and metrics, summed over parts of the rows."""
    batch, explained = collected_batch(step, case)
    mask = batch.tokens.response_mask
    outputs = step.outputs._map(lambda tensor: tensor.clone().requires_grad_())
    whole = Minibatch(batch, response_weights(mask, case.aggregation, fixed_length=7))
    sums = dict.fromkeys(
        ("loss", "policy", "value", "kl", "clipped", "value_clipped", "moved"), 0.0
    )
    largest = 0.0
    for rows in parts or [torch.arange(len(mask))]:
        part, now = whole.select(rows), outputs.select(rows)
        terms = ppo_loss(now, part.batch, case.loss)
        kept = part.batch.tokens.response_mask
        loss = masked_sum(terms.loss * part.weights[:, None], kept)
        loss.backward()
        moved = kl_of_update(now.logprobs, part.batch.logprobs).detach()
        seen = (terms.policy, terms.value, terms.kl, terms.policy_clipped, terms.value_clipped)
        tensors = (terms.loss.detach(), *(tensor.float() for tensor in seen), moved)
        for name, tensor in zip(sums, tensors, strict=True):
            sums[name] += float(masked_sum(tensor * part.weights[:, None], kept))
        largest = max(largest, float(terms.ratio[kept].max()))
    metrics = sums | {"largest": largest, "explained": explained}
    metrics["advantage"] = float(masked_mean(batch.advantages**2, mask))
    gradients = outputs._map(lambda x: torch.zeros_like(x) if x.grad is None else x.grad)
    return Result(gradients, metrics)


def assert_same(one: Result, other: Result) -> None:
    assert one.metrics == pytest.approx(other.metrics, rel=2e-5, abs=1e-6)
    for name in (entry.name for entry in fields(TokenOutputs)):
        found, expected = getattr(one.gradients, name), getattr(other.gradients, name)
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)


def on_tokens(step: Step, change: Callable[[Tensor], Tensor]) -> Step:
    """The step with all its (B, R) numbers and ids changed; its mask and scores stand."""
    mask = step.tokens.response_mask
    tokens = replace(step.tokens, response_ids=change(step.tokens.response_ids))
    changed = step._map(
        lambda x: change(x) if x.shape == mask.shape and x.is_floating_point() else x
    )
    return replace(changed, tokens=tokens)


@every_case
def test_a_step_says_something(case: Case) -> None:
    """Or the relations below would hold for nothing."""
    result = run(random_step(), case)
    assert bool((result.gradients.logprobs != 0).any())
    assert bool((result.gradients.values != 0).any())
    assert bool((result.gradients.entropy != 0).any()) == bool(case.loss.entropy_coefficient)
    assert result.metrics["advantage"] > 0.1


@every_case
def test_more_right_padding_changes_nothing(case: Case) -> None:
    step = random_step()
    width = max(LENGTHS)
    wide = step._map(lambda x: pad_columns(x, width + 3) if x.dim() == 2 else x)
    result = run(wide, case)
    assert not any(bool(x[:, width:].any()) for x in vars(result.gradients).values())
    narrow = Result(result.gradients._map(lambda x: x[:, :width]), result.metrics)
    assert_same(narrow, run(step, case))


@every_case
@pytest.mark.parametrize("shift", range(len(JUNK)))
def test_junk_in_the_padding_changes_nothing_to_the_bit(case: Case, shift: int) -> None:
    step = random_step()
    mask = step.tokens.response_mask
    places = (torch.arange(mask.numel()) + shift).view(mask.shape) % len(JUNK)
    junk = torch.tensor(JUNK)[places]
    dirty = on_tokens(step, lambda x: torch.where(mask, x, junk if x.is_floating_point() else 7))
    clean, found = run(step, case), run(dirty, case)
    assert found.metrics == clean.metrics
    for name in (entry.name for entry in fields(TokenOutputs)):
        gradient = getattr(found.gradients, name)
        assert torch.equal(gradient, getattr(clean.gradients, name)), name
        assert bool((gradient[~mask] == 0).all()), name


def rows_by_groups(seed: int) -> Tensor:
    """A permutation that keeps the responses to one prompt together."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(len(LENGTHS)).view(-1, GROUP)
    groups = groups[torch.randperm(len(groups), generator=generator)]
    return torch.cat([group[torch.randperm(GROUP, generator=generator)] for group in groups])


@every_case
@pytest.mark.parametrize("seed", [0, 1])
def test_permuted_rows_change_nothing(case: Case, seed: int) -> None:
    step, rows = random_step(), rows_by_groups(seed)
    assert rows.tolist() != sorted(rows.tolist())
    result = run(step.select(rows), case)
    back = Result(result.gradients.select(rows.argsort()), result.metrics)
    assert_same(back, run(step, case))


@pytest.mark.parametrize("name", ["rloo", "grpo", "reinforce_pp"])
def test_rows_that_change_groups_do_change_the_gradient(name: str) -> None:
    step, rows = random_step(), torch.arange(len(LENGTHS)).roll(1)
    mixed = run(step.select(rows), CASES[name]).gradients.select(rows.argsort())
    straight = run(step, CASES[name]).gradients
    assert not torch.allclose(mixed.logprobs, straight.logprobs, atol=1e-3)


@every_case
@pytest.mark.parametrize("sizes", [[1] * 12, [5, 7], [1, 8, 3]], ids=str)
def test_any_split_into_micro_batches_sums_to_the_whole(case: Case, sizes: list[int]) -> None:
    step = random_step()
    order = torch.randperm(len(LENGTHS), generator=torch.Generator().manual_seed(len(sizes)))
    assert_same(run(step, case, list(order.split(sizes))), run(step, case))


def test_a_record_cut_into_parts_of_their_own_width_is_put_together_again() -> None:
    step = random_step()
    parts = []
    for rows in torch.arange(len(LENGTHS)).split([5, 4, 3]):
        part = step.select(rows)
        width = int(part.tokens.response_mask.sum(dim=1).max())
        narrow = on_tokens(part, lambda x, width=width: x[:, :width])  # type: ignore[misc]
        mask = part.tokens.response_mask[:, :width]
        parts.append(replace(narrow, tokens=replace(narrow.tokens, response_mask=mask)))
    assert len({part.values.shape[1] for part in parts}) > 1
    whole = concatenate(parts)
    assert_records_equal(whole, step)
    assert whole.tokens.lengths.tolist() == [2 + length for length in LENGTHS]


def test_one_part_is_the_whole() -> None:
    step = random_step()
    assert_records_equal(concatenate([step]), step)


@every_case
def test_a_step_leaves_what_it_was_told_as_it_was(case: Case) -> None:
    step = random_step()
    run(step, case)
    assert_records_equal(step, random_step())


def assert_records_equal(one: Rows, other: Rows) -> None:
    assert type(one) is type(other)
    for entry in fields(one):
        left, right = getattr(one, entry.name), getattr(other, entry.name)
        if isinstance(left, Rows):
            assert_records_equal(left, right)
        else:
            assert torch.equal(left, right), entry.name


def test_a_record_moves_to_a_device_with_all_its_parts() -> None:
    moved = random_step().to(torch.device("meta"))
    assert moved.values.is_meta and moved.tokens.response_mask.is_meta
    assert moved.outputs.logprobs.is_meta
