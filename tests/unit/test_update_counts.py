"""What an update counts: skips, early stop, sums over micro-batches and processes, all by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import make_config
from tensors import mask_of
from unigram import LOGITS, VALUES, Stage, Unigram, batch_of, play

from rlhf_ppo.algorithm.batch import Minibatch, TrainBatch
from rlhf_ppo.training.update import kl_after_update, minibatch_rows

NAN, INF = math.nan, math.inf
SIX = ([1, 2], [3], [4, 4, 1], [2], [3, 1, 4, 2], [1])
PROBABILITIES = [math.exp(x) / sum(math.exp(y) for y in LOGITS) for x in LOGITS]
ENTROPY = -sum(p * math.log(p) for p in PROBABILITIES)


def first_bad(bad: int, **columns: float) -> TrainBatch:
    """Six responses, the minibatch number `bad` (from 0, at seed 0) of which returns infinity."""
    batch = batch_of(*SIX, **columns)
    row = torch.cat(list(minibatch_rows(6, 6, torch.Generator().manual_seed(0))))[bad]
    batch.returns[row, 0] = INF
    return batch


def kl_of(moved: float) -> float:
    """KL(new || old) of a token whose log-ratio is `moved`: r log r - r + 1."""
    ratio = math.exp(moved)
    return ratio * moved - ratio + 1


# ---- skips


def test_skips_are_counted_in_all_and_in_a_row_and_the_first_of_each_row_is_kept() -> None:
    kept: list[Minibatch] = []
    stage = Stage([1.0, NAN, 3.0, INF, NAN, 5.0])
    stats, recorder = play(
        batch_of(*SIX),
        stage,
        ppo={"minibatches": 6},
        keep_failure=lambda minibatch, text: kept.append(minibatch),
    )
    assert (stats.skipped, stats.skipped_in_row, stats.optimizer_steps) == (3, 0, 3)
    assert len(recorder.gradients) == 3 and stage.told == 3
    assert stats.grad_norm == pytest.approx((1 + 3 + 5) / 3)
    order = torch.cat(list(minibatch_rows(6, 6, torch.Generator().manual_seed(0)))).tolist()
    lengths = [int(minibatch.batch.tokens.response_mask.sum()) for minibatch in kept]
    assert lengths == [len(SIX[order[1]]), len(SIX[order[3]])]


def test_skips_at_the_end_are_handed_on_and_those_before_the_update_count_in_the_row() -> None:
    kept: list[Any] = []

    def keep(*failure: Any) -> None:
        kept.append(failure)

    two = {"minibatches": 2}
    stats, _ = play(batch_of(*SIX), Stage([1.0, NAN]), ppo=two, skipped_in_row=2, keep_failure=keep)
    assert (stats.skipped, stats.skipped_in_row) == (1, 1)  # one was made between
    assert len(kept) == 1
    stats, _ = play(batch_of(*SIX), Stage([NAN, NAN]), ppo=two, skipped_in_row=2, keep_failure=keep)
    assert (stats.skipped, stats.skipped_in_row) == (2, 4)
    assert len(kept) == 1  # the row began in an earlier update, which kept its first


@pytest.mark.parametrize(("before", "made"), [(0, 3), (1, 2), (2, 1)])
def test_the_update_ends_with_the_skip_that_fills_the_row(before: int, made: int) -> None:
    policy = Unigram()
    stats, _ = play(
        batch_of(*SIX),
        Stage([NAN] * 12),
        policy=policy,
        guard={"max_skipped": 3},
        ppo={"minibatches": 6, "epochs": 2},
        skipped_in_row=before,
    )
    assert (stats.skipped, stats.skipped_in_row) == (made, 3)
    assert len(policy.temperatures) == made  # nothing is computed after it


def test_skips_with_steps_between_never_end_the_update() -> None:
    norms = [NAN, 1.0] * 6
    stats, recorder = play(
        batch_of(*SIX), Stage(norms), guard={"max_skipped": 2}, ppo={"minibatches": 6, "epochs": 2}
    )
    assert (stats.skipped, stats.skipped_in_row, stats.optimizer_steps) == (6, 0, 6)
    assert len(recorder.gradients) == 6


def test_a_skipped_step_leaves_no_gradient_and_no_number_behind() -> None:
    """The step after it is that of its own minibatch, and so are the means."""
    batch = batch_of(*SIX, moved=0.1)
    batch.advantages[:] = torch.arange(6.0)[:, None]
    rows = list(minibatch_rows(6, 2, torch.Generator().manual_seed(0)))
    stats, recorder = play(batch, Stage([NAN, 1.0]), ppo={"minibatches": 2})
    alone, expected = play(batch.select(rows[1]))
    for name, gradient in recorder.gradients[0].items():
        torch.testing.assert_close(gradient, expected.gradients[0][name])
    assert stats.policy_loss == pytest.approx(alone.policy_loss)
    assert stats.entropy == pytest.approx(ENTROPY, rel=1e-5)


@pytest.mark.parametrize("bad", [0, 1, 5])
def test_a_loss_that_is_not_finite_costs_its_own_minibatch_alone(bad: int) -> None:
    """The norm looks sound; the loss of one minibatch is infinite."""
    norms = [1.0] * 6
    stats, recorder = play(first_bad(bad), Stage(norms), ppo={"minibatches": 6})
    assert (stats.skipped, stats.optimizer_steps) == (1, 5)
    assert math.isfinite(stats.value_loss) and len(recorder.gradients) == 5
    assert stats.skipped_in_row == (1 if bad == 5 else 0)


def test_a_loss_that_is_not_finite_in_any_micro_batch_skips_the_step() -> None:
    """Here in the first of three, the shortest response's."""
    batch = batch_of([1], [2, 3, 4], [1, 2, 3, 4, 1])
    batch.returns[0, 0] = INF
    policy = Unigram()
    stats, _ = play(batch, Stage([1.0]), policy=policy, ppo={"micro_batch_tokens": 1})
    assert len(policy.temperatures) == 3
    assert (stats.skipped, stats.optimizer_steps) == (1, 0)


def test_what_another_process_finds_infinite_is_skipped_here_too() -> None:
    stats, recorder = play(batch_of(*SIX), Stage([1.0], others=INF))
    assert stats.skipped == 1 and not recorder.gradients
    stats, _ = play(batch_of(*SIX), Stage([NAN]))
    assert stats.skipped == 1  # the norm is of all processes: no sum is needed


def test_when_all_steps_are_skipped_the_means_are_0_and_not_nan() -> None:
    stats, _ = play(batch_of(*SIX, moved=0.3), Stage([NAN]))
    for name in ("policy_loss", "value_loss", "kl", "entropy", "grad_norm", "ptx_loss"):
        assert getattr(stats, name) == 0.0


# ---- early stop


ALIKE = ([1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3])


def moved_by(rate: float) -> tuple[float, TrainBatch]:
    """KL(new || old), nats a token, of a token-wise average after one step of plain descent."""
    batch, policy = batch_of(*ALIKE), Unigram()
    batch.advantages[:] = torch.tensor([1.0, -2.0, 0.5])
    play(batch, rate=rate, policy=policy)
    new = policy.logits.detach().log_softmax(dim=0)[1:4].tolist()
    old = [math.log(PROBABILITIES[token]) for token in (1, 2, 3)]
    return sum(kl_of(b - a) for a, b in zip(old, new, strict=True)) / 3, batch


@pytest.mark.parametrize("shape", [{"epochs": 3}, {"minibatches": 4}, {"micro_batch_tokens": 5}])
def test_the_update_stops_before_the_step_that_would_follow_too_much_kl(
    shape: dict[str, int],
) -> None:
    """One step is made, its KL is seen on the next minibatch, and that one moves nothing."""
    kl, batch = moved_by(1.0)
    assert kl > 1e-3
    shape = {"epochs": 3} | shape
    policy = Unigram()
    stats, recorder = play(
        batch, Stage([1.0] * 99), rate=1.0, policy=policy, ppo=shape | {"target_kl": 0.9 * kl}
    )
    assert stats.optimizer_steps == 1 and len(recorder.gradients) == 1
    assert policy.logits.grad is None and policy.values.grad is None
    assert stats.kl == pytest.approx(kl / 2, rel=1e-4)  # over both minibatches, the first had none
    assert stats.skipped == 0 and stats.grad_norm == 1.0
    later = {"epochs": 1, "minibatches": 2, "target_kl": 1.1 * kl}
    assert play(batch, rate=1.0, ppo=later)[0].optimizer_steps == 2


@pytest.mark.parametrize("minibatches", [1, 4])
@pytest.mark.parametrize(("target", "steps"), [(0.95, 0), (1.05, 1)])
def test_the_kl_of_the_stop_is_a_mean_over_the_tokens_of_the_present_minibatch(
    minibatches: int, target: float, steps: int
) -> None:
    """Of ragged rows: not of the padded width, not of a response, not of all so far."""
    batch = batch_of([1], [2, 3], [4, 1, 2], [1, 2, 3, 4, 1, 2, 3], moved=0.4, away=3.0)
    shape = {"minibatches": minibatches, "micro_batch_tokens": 4, "target_kl": target * kl_of(0.4)}
    stats, _ = play(batch, ppo=shape)
    assert stats.optimizer_steps == steps * minibatches


@pytest.mark.parametrize(("target", "steps"), [(0.95, 0), (1.05, 1)])
def test_the_kl_of_the_stop_is_that_of_all_processes(target: float, steps: int) -> None:
    """Two processes with two of four equal responses each."""
    stage = Stage([1.0], world=2)
    shape = {"target_kl": target * kl_of(0.4)}
    stats, _ = play(batch_of(*ALIKE, moved=0.4), stage, ppo=shape)
    assert stats.optimizer_steps == steps


def test_a_policy_that_comes_back_is_not_stopped_by_what_it_had_moved() -> None:
    """Minibatches at KL a bit under the target, one after the other: none is added to the next."""
    batch = batch_of(*SIX, moved=-0.4)
    shape = {"minibatches": 6, "epochs": 2, "target_kl": 1.5 * kl_of(-0.4)}
    assert play(batch, ppo=shape)[0].optimizer_steps == 12


# ---- means, maxima and order


def test_every_mean_is_over_tokens_by_hand() -> None:
    batch = batch_of([1, 2, 3], [4], moved=0.5, away=0.25, values=0.1, returns=1.0)
    batch.advantages[:] = torch.tensor([[1.0, -1.0, 2.0], [3.0, 0.0, 0.0]])
    stats, _ = play(batch, value={"clip_range": 0.35}, kl={"place": "loss", "beta": 0.1})
    ratio, advantages, tokens = math.exp(0.5), [1.0, -1.0, 2.0, 3.0], [1, 2, 3, 4]
    policy = [-min(ratio * a, 1.2 * a) for a in advantages]
    near = [min(max(VALUES[t], -0.25), 0.45) for t in tokens]
    plain = [0.5 * (VALUES[t] - 1) ** 2 for t in tokens]
    clipped = [0.5 * (n - 1) ** 2 for n in near]
    value = [max(pair) for pair in zip(plain, clipped, strict=True)]
    assert stats.policy_loss == pytest.approx(sum(policy) / 4, rel=1e-5)
    assert stats.value_loss == pytest.approx(sum(value) / 4, rel=1e-5)
    assert stats.policy_clip_fraction == 3 / 4  # not where A < 0: there the ratio rules
    clips = [c > p for c, p in zip(clipped, plain, strict=True)]
    assert stats.value_clip_fraction == sum(clips) / 4 == 2 / 4
    assert stats.kl == pytest.approx(kl_of(0.5), rel=1e-5)
    assert stats.ref_kl == pytest.approx(ratio * 0.25, rel=1e-5)  # k1, weighed by who sampled
    assert stats.entropy == pytest.approx(ENTROPY, rel=1e-5)
    assert stats.ratio_max == pytest.approx(ratio, rel=1e-5)
    assert stats.ratio_first_error == pytest.approx(ratio - 1, rel=1e-5)
    assert stats.ptx_loss == 0.0


@pytest.mark.parametrize("shape", [{"minibatches": 3}, {"micro_batch_tokens": 4}])
def test_no_split_of_the_rollout_changes_a_mean(shape: dict[str, int]) -> None:
    batch = batch_of(*SIX, moved=0.2, away=-0.3, returns=2.0)
    batch.advantages[:] = torch.arange(24.0).view(6, 4) - 9
    whole, split = play(batch)[0], play(batch, ppo=shape)[0]
    for name in ("policy_loss", "value_loss", "policy_clip_fraction", "kl", "ref_kl", "entropy"):
        assert getattr(split, name) == pytest.approx(getattr(whole, name), rel=1e-5), name
    assert split.ratio_max == pytest.approx(whole.ratio_max)


def test_means_and_maxima_are_those_of_all_processes() -> None:
    """The other process has the same sums here, and other extremes."""
    others = [(9.0, 0.0, torch.tensor([0.5])), (1.0, 8.0, torch.tensor([-0.5, 0.25]))]
    stage = Stage([1.0], world=2, maxima=others)
    alone, both = play(batch_of(*ALIKE, moved=0.2))[0], play(batch_of(*ALIKE, moved=0.2), stage)[0]
    assert both.kl == pytest.approx(alone.kl) and both.policy_loss == pytest.approx(
        alone.policy_loss
    )
    assert (both.ratio_max, both.ratio_first_error) == (9.0, 8.0)
    assert both.first_log_ratios[-3:].tolist() == [0.5, -0.5, 0.25]
    ours = both.first_log_ratios[:-3].tolist()  # of this process's two responses
    assert ours == pytest.approx([0.2] * 6, rel=1e-5)
    quiet = Stage([1.0], world=2, others=3.0)  # sums of the other process that are not ours
    ours = alone.kl * 6  # this process holds two of the four responses
    assert play(batch_of(*ALIKE, moved=0.2), quiet)[0].kl == pytest.approx(
        (2 * ours + 3) / (2 * 6 + 3), rel=1e-5
    )


@pytest.mark.parametrize(("moved", "error"), [(0.5, math.exp(0.5) - 1), (-1.0, 1 - math.exp(-1))])
def test_the_first_error_of_the_ratio_is_the_largest_before_any_step_in_both_directions(
    moved: float, error: float
) -> None:
    """Over all micro-batches, of which the first (the shortest response) is off."""
    batch = batch_of([1], [2, 3], [4, 1, 2])
    batch.logprobs[0, 0] -= moved
    stats, _ = play(batch, ppo={"micro_batch_tokens": 1})
    assert stats.ratio_first_error == pytest.approx(error, rel=1e-5)
    assert stats.ratio_max == pytest.approx(max(1.0, math.exp(moved)), rel=1e-5)


def test_without_an_error_the_ratio_is_1_in_the_padding_too() -> None:
    stats, _ = play(batch_of([1], [2, 3, 4, 1]))
    assert stats.ratio_first_error < 1e-6 and stats.ratio_max == pytest.approx(1.0)


def test_the_first_error_ends_with_the_first_step_that_is_made() -> None:
    """A skipped step moved nothing: the ratio after it must be 1 as well."""
    batch = batch_of([1], [1], [1])
    last = list(minibatch_rows(3, 3, torch.Generator().manual_seed(0)))
    batch.logprobs[last[1]] -= 1.0
    shape = {"minibatches": 3}
    assert play(batch, Stage([1.0, 1.0, 1.0]), ppo=shape)[0].ratio_first_error < 1e-6
    skipped = play(batch, Stage([NAN, 1.0, 1.0]), ppo=shape)[0]
    assert skipped.ratio_first_error == pytest.approx(math.e - 1, rel=1e-5)


def test_gradients_of_the_processes_are_brought_together_once_a_step() -> None:
    """With the last micro-batch of each minibatch, and not before."""
    stage = Stage()
    play(batch_of(*ALIKE), stage, ppo={"micro_batch_tokens": 1, "epochs": 2, "minibatches": 2})
    assert stage.waits == [True, False] * 4


@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_the_policy_is_read_at_the_samplers_temperature(temperature: float) -> None:
    policy, batch = Unigram(), batch_of(*SIX)
    play(batch, policy=policy, temperature=temperature)
    assert policy.temperatures == [temperature]


def test_while_the_values_warm_up_only_they_get_a_gradient() -> None:
    batch = batch_of(*SIX, returns=2.0)
    _, warm = play(batch, train_policy=False)
    _, usual = play(batch)
    assert warm.gradients[0]["logits"] is None
    torch.testing.assert_close(warm.gradients[0]["values"], usual.gradients[0]["values"])
    assert usual.gradients[0]["logits"] is not None


@pytest.mark.parametrize(
    ("aggregation", "weights"),
    [("token", [1 / 4] * 4), ("sequence", [1 / 6] * 3 + [1 / 2]), ("fixed", [1 / 256] * 4)],
)
def test_tokens_are_weighed_as_the_aggregation_says(
    aggregation: str, weights: Sequence[float]
) -> None:
    """Gradient of the values, by hand: coefficient times weight times (V - return)."""
    _, recorder = play(batch_of([1, 2, 3], [4]), ppo={"loss_aggregation": aggregation})
    expected = [0.0] + [0.1 * w * v for w, v in zip(weights, VALUES[1:], strict=True)]
    found = recorder.gradients[0]["values"]
    assert found is not None and found.tolist() == pytest.approx(expected, rel=1e-5)


def test_every_epoch_walks_all_minibatches_in_an_order_of_the_generator_alone() -> None:
    """Whatever torch's own state: all processes must draw alike."""
    orders = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        _, recorder = play(batch_of(*SIX), seed=seed, ppo={"minibatches": 6, "epochs": 2})
        orders.append([step["values"] for step in recorder.gradients])
    assert [len(order) for order in orders] == [12] * 3
    stacked = [torch.stack([g for g in order if g is not None]) for order in orders]
    assert torch.equal(stacked[0], stacked[1]) and not torch.equal(stacked[0], stacked[2])


# ---- the KL after the update


@pytest.mark.parametrize("world", [1, 2])
def test_the_kl_after_an_update_is_the_mean_of_k3_over_all_tokens(world: int) -> None:
    """k3 of old and new: r - 1 - log r with r = new / old, mean over the tokens of the rollout."""
    rows = ([1, 2], [3, 4, 1], [1, 2], [3, 4, 1])
    batch = batch_of(*rows)
    batch = replace(
        batch, logprobs=batch.logprobs - mask_of(*rows) * torch.tensor([0.5, -0.3, 0.0])
    )
    each = [math.exp(d) - 1 - d for d in (0.5, -0.3, 0.0)]
    expected = (each[0] + each[1] + sum(each)) / 5
    stage: Any = Stage(world=world)
    policy: Any = Unigram()
    found = kl_after_update(policy, batch, make_config(), stage)
    assert found == pytest.approx(expected, rel=1e-4)
