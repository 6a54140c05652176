"""Families in whole runs: what cannot be right is refused or stopped, with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import run_here, write_config
from families import causal_lm, reward_model, save
from helpers import byte_tokenizer, write_plain_data
from runs import START, make_run

from rlhf_ppo.errors import GuardError
from rlhf_ppo.training import ppo
from rlhf_ppo.training.ppo import PpoRun, ppo_step

SMALL = {
    "rollout": {"batch_size": 6, "max_new_tokens": 8},
    "ppo": {"steps": 2, "epochs": 1, "minibatches": 2, "learning_rate": 0.01},
}


def with_dropout(patch: pytest.MonkeyPatch) -> PpoRun:
    run = make_run(family="llama", policy={"gradient_checkpointing": True}, **SMALL)
    lm: Any = run.roles.policy.lm
    for layer in lm.model.layers:
        layer.mlp.register_forward_hook(
            lambda module, _, found: torch.dropout(found, 0.3, module.training)
        )
    return run


def with_another_temperature(patch: pytest.MonkeyPatch) -> PpoRun:
    run = make_run(spread=0.3, **SMALL)
    return replace(run, sampling=replace(run.sampling, temperature=1.5))


def with_weights_that_move_in_between(patch: pytest.MonkeyPatch) -> PpoRun:
    run = make_run(spread=0.3, **SMALL)
    real = ppo.make_train_batch

    def moved(*arguments: Any) -> Any:
        with torch.no_grad():
            run.roles.policy.lm.model.norm.weight.mul_(1.2)
        return real(*arguments)

    patch.setattr(ppo, "make_train_batch", moved)
    return run


def with_another_reference(patch: pytest.MonkeyPatch) -> PpoRun:
    run = make_run(spread=0.3, **SMALL)
    assert run.roles.reference is not None
    with torch.no_grad():
        run.roles.reference.lm.model.norm.weight.mul_(1.2)
    return run


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], PpoRun], str]] = {
    "noise in training mode": (with_dropout, "sampler draws from another distribution"),
    "sampler": (with_another_temperature, "sampler draws from another distribution"),
    "old policy": (with_weights_that_move_in_between, "ratio to the policy at collection is not 1"),
    "reference": (with_another_reference, "not its own reference"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_policy_that_is_not_itself_at_the_first_step_stops_the_run(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ratio was off by .12 at the first step, and the run went on to its end."""
    make, said = FAULTS[fault]
    with pytest.raises(GuardError, match=said) as caught:
        ppo_step(make(monkeypatch), 1, START)
    assert "model type llama" in str(caught.value) and "saves no policy" in str(caught.value)


@pytest.mark.parametrize("fault", ["sampler", "reference"])
def test_later_steps_are_not_held_to_the_first_ones_rules(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The KL to the reference is meant to grow; a resumed run begins with a later step."""
    ppo_step(FAULTS[fault][0](monkeypatch), 2, START)


@pytest.mark.parametrize(
    "sections",
    [
        {"policy": {"gradient_checkpointing": True}},
        {"lora": {"rank": 2}},
        {"hardware": {"mixed_precision": "bf16"}},
        {"hardware": {"mixed_precision": "bf16"}, "lora": {"rank": 2}},
        {"policy": {"dtype": "bfloat16"}, "lora": {"rank": 2}},
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [0.05, 0.5])
def test_healthy_runs_pass_their_first_step(sections: dict[str, Any], spread: float) -> None:
    ppo_settings = SMALL["ppo"] | {"value_warmup_steps": 1}
    run = make_run(spread=spread, **(SMALL | {"ppo": ppo_settings} | sections))
    _, metrics, _ = ppo_step(run, 1, START)
    assert abs(metrics["kl/ref"]) < 1e-6


def folder_of(tmp_path: Path, policy: Any, reward: Any | None) -> dict[str, Any]:
    tokenizer = byte_tokenizer()
    sections: dict[str, Any] = {
        "output_dir": "out",
        "data": write_plain_data(tmp_path),
        "policy": {"path": save(policy, tokenizer, tmp_path / "policy")},
        "reward": {"sources": [{"kind": "function", "path": "r.py:length"}]},
        "evaluation": {"every": 0, "best_of": 0, "bootstrap_samples": 100},
        "checkpoint": {"every": 0},
        "logging": {"trackers": []},
    }
    (tmp_path / "r.py").write_text(
        "def length(prompts, responses):\n    return [float(len(r)) for r in responses]\n"
    )
    if reward is not None:
        path = save(reward, tokenizer, tmp_path / "reward")
        sections["reward"] = {"sources": [{"kind": "model", "path": path}]}
    return sections | SMALL


@pytest.mark.parametrize(
    ("policy", "reward", "said"),
    [
        ("bert", None, r"policy\.path = .*model type bert\) is not causal"),
        ("llama", "t5", r"reward\.sources.*model type t5 has an encoder and a decoder"),
    ],
)
def test_a_family_that_cannot_work_is_refused_by_name_before_anything_is_written(
    policy: str,
    reward: str | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = byte_tokenizer()
    made = None if reward is None else reward_model(reward, tokenizer)
    config = write_config(
        tmp_path / "c.yaml", folder_of(tmp_path, causal_lm(policy, tokenizer), made)
    )
    assert run_here("train", ["--config", str(config)], tmp_path, monkeypatch) == 2
    shown = "".join(capsys.readouterr())
    assert "Traceback" not in shown
    assert re.search(said, " ".join(shown.split())), shown
    assert not (tmp_path / "out").exists()


def test_a_family_without_a_forecast_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback of the forecast ended the run, and the plan."""
    tokenizer = byte_tokenizer()
    sections = folder_of(tmp_path, causal_lm("jetmoe", tokenizer), None)
    sections["ppo"] = SMALL["ppo"] | {"steps": 1}
    config = write_config(tmp_path / "c.yaml", sections)
    for script in ("plan", "train"):
        assert run_here(script, ["--config", str(config)], tmp_path, monkeypatch) == 0
        shown = "".join(capsys.readouterr())
        assert "memory of ppo: cannot be forecast for jetmoe" in shown
