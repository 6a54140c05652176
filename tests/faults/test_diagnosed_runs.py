"""Real runs that go wrong on purpose, and what the diagnosis says of them while they go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import make_run

from rlhf_ppo.diagnostics import diagnose, read_metrics
from rlhf_ppo.errors import UserError
from rlhf_ppo.training.loop import train_ppo
from rlhf_ppo.training.ppo import PpoRun

ROLLOUT = {"batch_size": 16, "max_new_tokens": 6}
PPO = {"epochs": 2, "minibatches": 2, "learning_rate": 0.002, "steps": 4}


def share_of_vowels(text: str) -> float:
    return sum(letter in "aeiouAEIOU" for letter in text) / 6


def constant(text: str) -> float:
    return 1.0


def long_text(text: str) -> float:
    return len(text)


def start(folder: Path, pays: Any = share_of_vowels, /, **sections: Any) -> PpoRun:
    settings: dict[str, Any] = {
        "rollout": ROLLOUT | sections.pop("rollout", {}),
        "ppo": PPO | sections.pop("ppo", {}),
    }
    return make_run(pays, output_dir=folder, spread=0.3, **settings, **sections)


def names(run: PpoRun) -> set[str]:
    """Names of the findings of a run that is over, as its `metrics.jsonl` tells them."""
    return {finding.name for finding in diagnose(read_metrics(run.metrics_file), None)}


def test_a_learning_run_is_healthy_but_for_what_its_random_model_cannot(tmp_path: Path) -> None:
    run = start(tmp_path, ppo={"steps": 8})
    train_ppo(run)
    # Random weights name the stop token once in 300: that such responses are cut is true.
    assert names(run) <= {"never_stops"}


def test_a_huge_learning_rate_makes_the_kl_run_away(tmp_path: Path) -> None:
    run = start(tmp_path, ppo={"learning_rate": 1.0}, kl={"beta": 0.0})
    train_ppo(run)
    assert {"kl_runaway", "clip_fraction_high"} <= names(run)


def test_a_tiny_learning_rate_never_clips(tmp_path: Path) -> None:
    run = start(tmp_path, ppo={"learning_rate": 1e-7, "steps": 10})
    train_ppo(run)
    assert "clip_fraction_zero" in names(run)


def test_a_reward_for_length_makes_the_responses_drift(tmp_path: Path) -> None:
    stops = range(60, 300, 3)  # many tokens end a response, so that it is short at first
    settings = ROLLOUT | {"max_new_tokens": 12}
    run = make_run(
        long_text,
        output_dir=tmp_path,
        stops=[*stops],
        rollout=settings,
        ppo=PPO | {"learning_rate": 0.01, "steps": 12, "epochs": 4},
        kl={"beta": 0.0},
    )
    train_ppo(run)
    assert "length_drift" in names(run)


def test_responses_that_never_stop_are_told(tmp_path: Path) -> None:
    run = start(tmp_path, ppo={"steps": 3})
    train_ppo(run)
    assert "never_stops" in names(run)


def test_samples_that_are_all_alike_are_told(tmp_path: Path) -> None:
    run = start(
        tmp_path,
        rollout={"batch_size": 4, "samples_per_prompt": 4, "temperature": 0.001},
        ppo={"steps": 3, "learning_rate": 1e-5},
    )
    train_ppo(run)
    assert read_metrics(run.metrics_file)[0]["group/identical"] == 1
    assert "identical_samples" in names(run)
    assert "equal_scores" not in names(run), "the one cause is said once"


def test_scores_that_are_all_alike_are_told(tmp_path: Path) -> None:
    run = start(
        tmp_path,
        constant,
        rollout={"batch_size": 4, "samples_per_prompt": 4},
        ppo={"steps": 3},
        advantage={"kind": "rloo"},
    )
    train_ppo(run)
    first = read_metrics(run.metrics_file)[0]
    assert (first["group/identical"], first["group/equal_scores"]) == (0, 1)
    assert "equal_scores" in names(run)


def test_skipped_updates_and_dropped_rewards_are_told(tmp_path: Path) -> None:
    def moody(text: str) -> float:
        return float("nan") if len(text) % 4 == 0 else 1.0

    run = start(tmp_path, moody, reward={"max_failed": 0.9}, ppo={"steps": 2})
    for parameter in run.roles.policy.lm.parameters():
        parameter.register_hook(lambda gradient: gradient * float("nan"))
    train_ppo(run)
    assert {"skipped_updates", "dropped_rewards"} <= names(run)


def test_dropout_that_was_left_on_is_refused(tmp_path: Path) -> None:
    """With dropout on, the ratio would not be 1 before the first optimizer step."""
    run = start(tmp_path, ppo={"steps": 1})
    run.roles.policy.lm.model.norm.register_forward_hook(
        lambda module, _, states: torch.nn.functional.dropout(states, 0.05)
    )
    with pytest.raises(UserError, match="cannot be sampled from"):
        train_ppo(run)


def test_a_finding_is_said_once_counted_and_kept_over_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "rlhf_ppo.training.loop.show_finding", lambda finding: said.append(finding.name)
    )
    settings: dict[str, Any] = {"kl": {"beta": 0.0}, "checkpoint": {"every": 4}}
    train_ppo(start(tmp_path, ppo={"learning_rate": 1.0, "steps": 4}, **settings))
    assert "kl_runaway" in said and len(said) == len(set(said))
    train_ppo(start(tmp_path, ppo={"learning_rate": 1.0, "steps": 8}, **settings))
    assert len(said) == len(set(said)), "a resumed run says nothing twice"
    lines = read_metrics(tmp_path / "metrics.jsonl")
    counts = [line["health/findings"] for line in lines]
    assert counts == sorted(counts) and counts[-1] == len(said)
    assert counts == [len(diagnose(lines[:n], None)) for n in range(1, len(lines) + 1)]
    assert json.dumps(counts)  # plain numbers
