"""Derived sizes by hand, every problem in one message, and the learning rate."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import make_config

from rlhf_ppo.config import KlConfig, PpoConfig
from rlhf_ppo.errors import UserError
from rlhf_ppo.plan import judging_tokens, make_plan, training_tokens
from rlhf_ppo.training.ppo import learning_rate_factor
from rlhf_ppo.training.train_batch import make_controller


def sizes(batch_size: int = 10, **ppo: Any) -> Any:
    return make_config(rollout={"batch_size": batch_size, "max_new_tokens": 5}, ppo=ppo)


def test_numbers_by_hand() -> None:
    plan = make_plan(sizes(steps=7, epochs=3, minibatches=4), 2, 20, 6)
    assert plan.responses_per_process == 5
    assert plan.minibatch_size == 2  # 10 rows in 4 parts: 3, 3, 2, 2
    assert plan.optimizer_steps_per_step == 12
    assert plan.optimizer_steps == 84
    assert plan.episodes == 70
    assert plan.data_epochs == 3.5
    assert plan.max_response_tokens == 350
    assert (plan.processes, plan.steps, plan.train_prompts, plan.heldout_prompts) == (2, 7, 20, 6)
    shown = dict(plan.lines())
    assert shown["optimizer steps a step"] == "12 of 2 responses"
    assert shown["responses"] == "70 (3.5 passes over the prompts)"


def test_an_uneven_share_is_rounded_up() -> None:
    assert make_plan(sizes(), 3, 20, 6).responses_per_process == 4


def test_every_problem_stands_in_one_message() -> None:
    with pytest.raises(UserError) as caught:
        make_plan(sizes(minibatches=11), 2, 9, 1)
    message = str(caught.value)
    assert "ppo.minibatches = 11" in message
    assert "rollout.batch_size = 10 is more than the 9 prompts" in message
    assert "data.heldout_prompts holds 1 prompts for 2 processes" in message
    assert message.count("\n  - ") == 3


def test_a_minibatch_feeds_every_process() -> None:
    with pytest.raises(UserError, match="a minibatch has 1 responses"):
        make_plan(sizes(minibatches=10), 2, 20, 6)
    assert make_plan(sizes(minibatches=5), 2, 20, 6).minibatch_size == 2


def test_constant_rate_after_a_linear_warm_up() -> None:
    ppo = PpoConfig(steps=10, warmup_steps=4)
    factors = [learning_rate_factor(ppo, step) for step in range(1, 11)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_linear_rate_starts_at_the_peak_falls_evenly_and_ends_above_zero() -> None:
    ppo = PpoConfig(steps=5, schedule="linear")
    factors = [learning_rate_factor(ppo, step) for step in range(1, 6)]
    assert factors == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    warm = PpoConfig(steps=6, schedule="linear", warmup_steps=2)
    factors = [learning_rate_factor(warm, step) for step in range(1, 7)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_warm_up_longer_than_the_run_never_passes_the_peak() -> None:
    ppo = PpoConfig(steps=3, schedule="linear", warmup_steps=9)
    assert [learning_rate_factor(ppo, step) for step in (1, 2, 3)] == pytest.approx(
        [1 / 9, 2 / 9, 3 / 9]
    )


def test_the_controller_goes_on_from_the_present_beta() -> None:
    def after(controller: Any, kl: float, error: float = -1.0) -> float:
        settings = KlConfig(controller=controller, beta=1.0, target=2.0)
        return make_controller(settings, beta=0.3, error=error).update(kl, 10).beta

    assert after("adaptive", 2.0) == 0.3
    assert after("adaptive", 9.0) > 0.3
    assert after("fixed", 9.0) == 0.3
    assert after("target", 2.0, error=0.0) == 0.3
    assert after("target", 2.0, error=1.0) < 0.3 < after("target", 9.0, error=0.0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_token_budgets_are_what_is_set_and_otherwise_the_devices(device: str) -> None:
    free = PpoConfig()
    assert training_tokens(PpoConfig(micro_batch_tokens=77), device) == 77
    assert judging_tokens(PpoConfig(judge_batch_tokens=78), device) == 78
    assert training_tokens(PpoConfig(judge_batch_tokens=78), device) == training_tokens(
        free, device
    )
    assert judging_tokens(PpoConfig(micro_batch_tokens=77), device) == judging_tokens(free, device)
    # Gradients keep the activations, so training takes less at once.
    assert training_tokens(free, device) < judging_tokens(free, device)


def test_autocast_on_a_cpu_takes_more_tokens_at_once_because_it_converts_all_weights() -> None:
    free = PpoConfig()
    assert training_tokens(free, "cpu", True) > training_tokens(free, "cpu")
    assert training_tokens(free, "cuda", True) == training_tokens(free, "cuda")
    assert training_tokens(PpoConfig(micro_batch_tokens=77), "cpu", True) == 77


def test_a_gpu_is_given_more_tokens_at_once_than_a_cpu() -> None:
    for tokens in (training_tokens, judging_tokens):
        assert tokens(PpoConfig(), "cuda") > tokens(PpoConfig(), "cpu")
