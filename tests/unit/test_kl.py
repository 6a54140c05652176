"""KL estimators, their gradients, and the controllers that hold the KL at a target."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import normal

from rlhf_ppo.algorithm.kl import (
    AdaptiveController,
    Controller,
    Estimator,
    FixedController,
    TargetController,
    adapt_penalty,
    best_of_n_kl,
    estimate_kl,
    kl_loss,
    kl_of_update,
    probability_ratio,
)

ESTIMATORS: tuple[Estimator, ...] = ("k1", "k2", "k3")


def log(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_ratio_is_a_ratio_of_probabilities_and_never_overflows() -> None:
    assert float(probability_ratio(log(0.3), log(0.2))) == pytest.approx(1.5)
    far = torch.tensor([-1e9, 0.0])
    assert probability_ratio(far.flip(0), far).log().tolist() == pytest.approx([20, -20])
    near = torch.tensor([-19.9, 0.0])
    assert probability_ratio(near.flip(0), near).log().tolist() == pytest.approx([19.9, -19.9])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", math.log(4)), ("k2", math.log(4) ** 2 / 2), ("k3", 0.25 - 1 + math.log(4))],
)
def test_estimates_by_hand(estimator: Estimator, expected: float) -> None:
    """The policy gives the token four times what the reference gives it."""
    assert float(estimate_kl(log(0.4), log(0.1), estimator)) == pytest.approx(expected)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimates_are_exactly_0_for_equal_models(estimator: Estimator) -> None:
    same = normal(20, seed=0) - 3
    assert estimate_kl(same, same, estimator).tolist() == [0.0] * 20
    assert kl_loss(same, same, same, estimator).tolist() == [0.0] * 20
    assert kl_of_update(same, same).tolist() == [0.0] * 20


def test_k3_and_the_kl_of_an_update_are_never_negative_and_k1_may_be() -> None:
    one, other = normal(2, 200, seed=1) - 2
    assert float(estimate_kl(one, other, "k3").min()) >= 0
    assert float(kl_of_update(one, other).min()) >= 0
    assert float(estimate_kl(one, other, "k1").min()) < 0


def test_k3_keeps_its_digits_where_the_models_nearly_agree() -> None:
    moved = torch.tensor([1e-3], dtype=torch.float32)
    assert float(estimate_kl(torch.zeros(1), moved, "k3")) == pytest.approx(5e-7, rel=1e-2)
    assert float(kl_of_update(moved, torch.zeros(1))) == pytest.approx(5e-7, rel=0.2)


def test_an_impossible_token_keeps_every_estimate_finite() -> None:
    impossible, likely = torch.tensor(-900.0), torch.tensor(-0.1)
    assert float(estimate_kl(impossible, likely, "k3")) == pytest.approx(math.exp(20) - 21)
    assert float(kl_of_update(likely, impossible)) == pytest.approx(19 * math.exp(20) + 1)
    assert float(kl_of_update(impossible, likely)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("ratio", "expected"), [(2.0, 2 * math.log(2) - 1), (0.5, 0.5 * math.log(0.5) + 0.5)]
)
def test_kl_of_an_update_by_hand(ratio: float, expected: float) -> None:
    assert float(kl_of_update(log(0.2 * ratio), log(0.2))) == pytest.approx(expected)


NEW, OLD, REF = 0.3, 0.2, 0.6  # probabilities of one token: ratio 3/2, reference / new = 2
RHO, LOG = 1.5, math.log(0.5)  # log(new / reference)


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [
        ("k1", RHO * LOG, RHO * (LOG + 1)),
        ("k2", RHO * LOG**2 / 2, RHO * LOG),
        ("k3", RHO * (2 - 1 + LOG), RHO * LOG),  # rho (k3 + 1 - reference / new)
    ],
)
def test_kl_as_a_loss_by_hand_with_its_gradient(
    estimator: Estimator, value: float, gradient: float
) -> None:
    new = log(NEW).requires_grad_()
    loss = kl_loss(new, log(OLD), log(REF), estimator)
    assert float(loss.detach()) == pytest.approx(value)
    loss.sum().backward()
    assert new.grad is not None
    assert float(new.grad) == pytest.approx(gradient)


def test_kl_of_best_of_n_by_hand() -> None:
    assert best_of_n_kl(1) == 0.0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.0, 1.0), (0.019, 1.0), (0.021, 2.0), (0.03, 2.0), (0.044, 2.0), (0.046, 4.0), (9.0, 4.0)],
)
def test_penalty_is_halved_kept_or_doubled(kl: float, expected: float) -> None:
    assert adapt_penalty(2.0, kl, target=0.03) == expected


def test_penalty_is_kept_at_both_ends_of_the_dead_zone() -> None:
    assert adapt_penalty(2.0, 2.0, target=3.0) == 2.0
    assert adapt_penalty(2.0, 4.5, target=3.0) == 2.0


def test_fixed_controller_keeps_beta() -> None:
    assert FixedController(0.3).update(100.0, 64) == FixedController(0.3)


@pytest.mark.parametrize(
    ("kl", "error"),
    [(6.0, 0.0), (6.6, 0.1), (60.0, 0.2), (5.4, -0.1), (0.0, -0.2), (-3.0, -0.2)],
)
def test_adaptive_controller_by_hand(kl: float, error: float) -> None:
    controller = AdaptiveController(beta=0.1, target=6.0, horizon=1000).update(kl, 64)
    assert controller.beta == pytest.approx(0.1 * (1 + error * 64 / 1000))
    assert controller.error == pytest.approx(error)
    assert (controller.target, controller.horizon) == (6.0, 1000)


def test_target_controller_by_hand_for_two_steps() -> None:
    start = TargetController(beta=0.1, target=6.0, horizon=1000, gain=0.3)
    first = start.update(6.0 * math.exp(-0.5), 100)  # the error goes from -1 to -0.5
    assert first.beta == pytest.approx(0.1 * math.exp(-0.5 * 0.1 + 0.3 * 0.5))
    assert first.error == pytest.approx(-0.5)
    second = first.update(6.0 * math.exp(0.25), 50)  # and on to 0.25
    assert second.beta == pytest.approx(first.beta * math.exp(0.25 * 0.05 + 0.3 * 0.75))
    assert second.error == pytest.approx(0.25)
    assert (second.target, second.horizon, second.gain) == (6.0, 1000, 0.3)


@pytest.mark.parametrize(
    ("kl", "error"), [(0.0, -1.0), (-3.0, -1.0), (1e-9, -1.0), (1e9, 1.0), (math.inf, 1.0)]
)
def test_target_controller_clips_its_error_and_survives_any_kl(kl: float, error: float) -> None:
    controller = TargetController(0.1, 6.0, 1000, gain=0.0, error=error).update(kl, 100)
    assert controller.error == pytest.approx(error)
    assert controller.beta == pytest.approx(0.1 * math.exp(error * 0.1))


@given(st.lists(st.floats(-10, 1e6), max_size=30))
@settings(max_examples=50, deadline=None)
def test_beta_stays_positive_and_finite_whatever_the_kl(kls: list[float]) -> None:
    controllers: list[Controller] = [
        AdaptiveController(0.1, 6.0, 1000),
        TargetController(0.1, 6.0, 1000, gain=0.5),
    ]
    for controller in controllers:
        for kl in kls:
            controller = controller.update(kl, 64)
            assert 0 < controller.beta < math.inf


def kl_under(controller: Controller, pull: float, steps: int = 800) -> list[float]:
    """KL of a policy that goes a tenth of its way to pull / beta in each step, from 0."""
    kl, found = 0.0, []
    for _ in range(steps):
        controller = controller.update(kl, 64)
        kl += 0.1 * (pull / controller.beta - kl)
        found.append(kl)
    return found


def furthest_from(target: float, kls: Sequence[float]) -> float:
    return max(abs(kl / target - 1) for kl in kls)


@pytest.mark.parametrize("horizon", [640, 1280])
@pytest.mark.parametrize("pull", [0.3, 1.2, 6.0])
def test_a_lagging_policy_is_brought_to_the_target_with_less_overshoot_than_zieglers(
    pull: float, horizon: int
) -> None:
    adaptive = kl_under(AdaptiveController(0.1, 6.0, horizon), pull)
    target = kl_under(TargetController(0.1, 6.0, horizon, gain=0.5), pull)
    assert furthest_from(6.0, target[300:]) < 0.02
    assert furthest_from(6.0, adaptive[300:]) < 0.02
    assert max(adaptive) > 6.04
    assert max(target) - 6 < 0.6 * (max(adaptive) - 6)
    still = kl_under(TargetController(0.1, 6.0, horizon, gain=0.0), pull)
    assert max(target) < max(still)  # it is the change of the error that damps the swing
