"""`estimate_advantages`: each kind is its function, and reads its own settings only."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import get_args

import pytest
import torch
from token_mdp import JUNK, assert_equal, distance, random_table
from torch import Tensor

from rlhf_ppo.algorithm.advantages import (
    WITHOUT_VALUES,
    AdvantageSettings,
    Kind,
    decoupled_gae,
    estimate_advantages,
    gae,
    grpo,
    length_adaptive_lambda,
    monte_carlo,
    n_step,
    one_step,
    reinforce_plus_plus,
    reward_to_go,
    rloo,
)

LENGTHS = (6, 1, 3, 5, 2, 4)
GAMMA = 0.9
MASK = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
REWARDS = torch.where(MASK, random_table(MASK.shape, 0), JUNK)
VALUES = torch.where(MASK, random_table(MASK.shape, 1), JUNK)
TOTALS = torch.stack([REWARDS[row, :length].sum() for row, length in enumerate(LENGTHS)])

Pair = tuple[Tensor, Tensor]


def spread(advantages: Tensor) -> Tensor:
    return torch.where(MASK, advantages[:, None], 0.0)


def direct_calls() -> dict[str, tuple[AdvantageSettings, Pair]]:
    """Settings of every kind and option, with what their function says when called directly."""
    data = (REWARDS, VALUES, MASK, GAMMA)
    to_go = reward_to_go(REWARDS, MASK, GAMMA)
    adaptive = length_adaptive_lambda(MASK, 0.5)

    def settings(kind: Kind, **others: object) -> AdvantageSettings:
        return AdvantageSettings(kind=kind, gamma=GAMMA, **others)  # type: ignore[arg-type]

    return {
        "reward_to_go": (settings("reward_to_go"), (to_go, to_go)),
        "monte_carlo": (settings("monte_carlo"), monte_carlo(*data)),
        "one_step": (settings("one_step"), one_step(*data)),
        "n_step": (settings("n_step", n=3), n_step(*data, 3)),
        "gae": (settings("gae", lam=0.7), gae(*data, 0.7)),
        "gae, value_lam": (
            settings("gae", lam=0.7, value_lam=0.99),
            decoupled_gae(*data, 0.7, 0.99),
        ),
        "gae, value_lam 0": (
            settings("gae", lam=0.7, value_lam=0.0),
            (gae(*data, 0.7)[0], one_step(*data)[1]),
        ),
        "gae, length_alpha": (settings("gae", length_alpha=0.5), gae(*data, adaptive)),
        "gae, both": (
            settings("gae", length_alpha=0.5, value_lam=1.0),
            (gae(*data, adaptive)[0], monte_carlo(*data)[1]),
        ),
        "rloo": (settings("rloo", group_size=3), (spread(rloo(TOTALS, 3)), to_go)),
        "grpo": (settings("grpo", group_size=3), (spread(grpo(TOTALS, 3)), to_go)),
        "grpo, unscaled": (
            settings("grpo", group_size=2, scale_groups=False),
            (spread(grpo(TOTALS, 2, scale=False)), to_go),
        ),
        "reinforce_pp": (
            settings("reinforce_pp"),
            (reinforce_plus_plus(REWARDS, MASK, GAMMA), to_go),
        ),
        "reinforce_pp, grouped": (
            settings("reinforce_pp", group_size=2),
            (reinforce_plus_plus(REWARDS, MASK, GAMMA, 2), to_go),
        ),
    }


CALLS = direct_calls()
READS: dict[Kind, set[str]] = {
    "reward_to_go": {"gamma"},
    "monte_carlo": {"gamma"},
    "one_step": {"gamma"},
    "n_step": {"gamma", "n"},
    "gae": {"gamma", "lam", "value_lam", "length_alpha"},
    "rloo": {"gamma", "group_size"},
    "grpo": {"gamma", "group_size", "scale_groups"},
    "reinforce_pp": {"gamma", "group_size"},
}


def test_every_kind_is_tried() -> None:
    assert {settings.kind for settings, _ in CALLS.values()} == set(get_args(Kind)) == set(READS)


@pytest.mark.parametrize("name", CALLS)
def test_a_kind_is_its_function(name: str) -> None:
    settings, expected = CALLS[name]
    actual = estimate_advantages(REWARDS, VALUES, MASK, settings)
    for one, other in zip(actual, expected, strict=True):
        assert_equal(one, other, 1e-12)
        assert bool((one[~MASK] == 0).all())


def test_all_these_settings_give_different_answers() -> None:
    answers = {name: torch.stack(pair) for name, (_, pair) in CALLS.items()}
    for name, other in combinations(answers, 2):
        assert distance(answers[name], answers[other]) > 1e-3, (name, other)


@pytest.mark.parametrize("name", CALLS)
def test_a_kind_does_not_read_the_settings_of_others(name: str) -> None:
    settings, _ = CALLS[name]
    others = {
        "n": 5,
        "lam": 0.123,
        "value_lam": 0.456,
        "length_alpha": 0.789,
        "group_size": 6,
        "scale_groups": not settings.scale_groups,
    }
    foreign = {key: value for key, value in others.items() if key not in READS[settings.kind]}
    changed = replace(settings, **foreign)  # type: ignore[arg-type]
    for one, other in zip(
        estimate_advantages(REWARDS, VALUES, MASK, settings),
        estimate_advantages(REWARDS, VALUES, MASK, changed),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", WITHOUT_VALUES)
def test_a_kind_without_values_does_not_read_them(kind: str) -> None:
    settings, expected = CALLS[kind]
    unknown = torch.full_like(VALUES, JUNK)
    for one, other in zip(
        estimate_advantages(REWARDS, unknown, MASK, settings), expected, strict=True
    ):
        assert_equal(one, other, 1e-12)


@pytest.mark.parametrize("group_size", [1, 2, 3])
def test_reinforce_plus_plus_by_hand(group_size: int) -> None:
    """Discounted reward-to-go, less the mean total of the group, whitened over all tokens."""
    raw = []
    for row, length in enumerate(LENGTHS):
        r = REWARDS[row, :length].tolist()
        first = row - row % group_size
        baseline = sum(TOTALS[first : first + group_size].tolist()) / group_size
        for t in range(length):
            to_go = sum(GAMMA ** (k - t) * r[k] for k in range(t, length))
            raw.append(to_go - (baseline if group_size > 1 else 0.0))
    mean = sum(raw) / len(raw)
    variance = sum((x - mean) ** 2 for x in raw) / len(raw)
    expected = torch.tensor(
        [(x - mean) / (variance + 1e-8) ** 0.5 for x in raw], dtype=torch.float64
    )
    actual = reinforce_plus_plus(REWARDS, MASK, GAMMA, group_size)
    assert_equal(actual[MASK], expected, 1e-12)
    assert bool((actual[~MASK] == 0).all())
