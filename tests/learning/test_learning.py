"""A tiny task is learnt by the real machinery, and is not learnt when the sign is turned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from runs import START, make_run

from rlhf_ppo.algorithm.batch import TrainBatch
from rlhf_ppo.training import ppo as ppo_module
from rlhf_ppo.training.ppo import ppo_step
from rlhf_ppo.training.update import ppo_update

STEPS = 12
SETTINGS: dict[str, Any] = {
    "rollout": {"batch_size": 16, "max_new_tokens": 6},
    "ppo": {"epochs": 3, "minibatches": 2, "learning_rate": 0.01, "steps": STEPS},
    "kl": {"beta": 0.0},
    "value": {"coefficient": 0.5},
}


def share_of_vowels(text: str) -> float:
    """How much of a text is vowels: about 0.15 under random weights."""
    return sum(letter in "aeiouAEIOU" for letter in text) / 6


def train(seed: int, spread: float = 0.05, **sections: Any) -> tuple[float, float]:
    """Mean score of the first and of the last two steps."""
    run = make_run(share_of_vowels, seed=seed, spread=spread, **(SETTINGS | sections))
    progress, scores = replace(START, beta=run.config.kl.beta), []
    for step in range(1, STEPS + 1):
        progress, metrics, _ = ppo_step(run, step, progress)
        scores.append(metrics["score/mean"])
    return scores[0], sum(scores[-2:]) / 2


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_rewarded_kind_of_token_is_learnt(seed: int) -> None:
    before, after = train(seed)
    assert before < 0.25
    assert after > before + 0.3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_is_learnt_with_the_advantages_turned_around(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(policy: Any, wrapped: Any, optimizer: Any, batch: TrainBatch, *rest: Any, **more):
        batch = replace(batch, advantages=-batch.advantages)
        return ppo_update(policy, wrapped, optimizer, batch, *rest, **more)

    monkeypatch.setattr(ppo_module, "ppo_update", turned)
    before, after = train(seed)
    assert after < before + 0.02


def test_adapters_learn_too() -> None:
    # The output layer stays as it is, so the adapters need embeddings that tell tokens apart.
    settings = SETTINGS["ppo"] | {"learning_rate": 0.03}
    gains = []
    for seed in (1, 2, 3, 4):  # how much is learnt in so few steps hangs on the adapters' draw
        before, after = train(seed, spread=0.3, lora={"rank": 8, "alpha": 16}, ppo=settings)
        gains.append(after - before)
    assert min(gains) > 0 and sum(gains) / 4 > 0.15


def test_a_strong_kl_penalty_holds_the_policy_at_the_reference() -> None:
    before, after = train(1, kl={"beta": 3.0})
    assert abs(after - before) < 0.1


def test_the_value_function_learns_to_predict() -> None:
    torch.manual_seed(0)
    run = make_run(
        lambda text: 5.0,  # the same for all: V should become 5 and leave nothing to explain
        **(SETTINGS | {"value": {"clip_range": None, "learning_rate": 0.1}}),
    )
    progress, losses = START, []
    for step in range(1, STEPS + 1):
        progress, metrics, _ = ppo_step(run, step, progress)
        losses.append(metrics["value/loss"])
    assert losses[-1] < 0.1 * losses[0]
