"""The same seed and settings give the same run: every kind of model, twice, to the bit."""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import run_here, tiny_sections, write_config
from helpers import given_reward, read_jsonl, write_chat_data, write_plain_data

ONE_THREAD = {"hardware": {"cpu_threads": 1}}
LORA = {"rank": 2, "save": "adapter"}
STAGES = ("sft", "reward_model", "ppo")
KINDS: dict[str, dict[str, Any]] = {
    "full fine-tuning with a value model": {"value": {"model": "policy"}},
    "adapters in all stages, one for the values": {
        "lora": LORA,
        "value": {"model": "adapter"},
        "reward_model": {"save": "adapter"},
    },
    "merged adapters, values from the reward model": {
        "lora": LORA | {"save": "merged"},
        "value": {"model": "reward"},
    },
}
GIVEN: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"rank": 2}},
    "lora on half a base": {"lora": {"rank": 2}, "policy": {"dtype": "bfloat16"}},
    "lora with a value adapter": {"lora": LORA, "value": {"model": "adapter"}},
    "values from the reward model": {"value": {"model": "reward"}},
}


def disturb(number: int) -> None:
    """What an earlier stage, a notebook or a library may have done to the global generators."""
    torch.manual_seed(number)
    random.seed(number)
    torch.rand(number)


def left(folder: Path) -> dict[str, str]:
    """What a run has left of weights, by file."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*.safetensors"))
    }


def run(
    stages: tuple[str, ...],
    config: Path,
    out: str,
    monkeypatch: pytest.MonkeyPatch,
    *more: str,
) -> dict[str, str]:
    words = ["--config", str(config), "--output_dir", out, *more]
    for stage in stages:
        assert run_here(stage, words, config.parent, monkeypatch) == 0
    return left(config.parent / out)


def parameters(kinds: dict[str, Any], quick: str) -> list[Any]:
    """All kinds, of which one is among the quick tests."""
    return [
        pytest.param(kind, id=name, marks=[] if name == quick else [pytest.mark.slow])
        for name, kind in kinds.items()
    ]


@pytest.mark.parametrize(
    "sections", parameters(KINDS, "adapters in all stages, one for the values")
)
def test_the_same_seed_gives_the_same_run_whatever_was_drawn_before(
    sections: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fresh adapters came from whatever state PyTorch's generator was in."""
    settings = tiny_sections() | {"data": write_chat_data(tmp_path), "output_dir": "unused"}
    settings |= {"logging": {"trackers": []}, "evaluation": {"every": 0}} | ONE_THREAD
    settings["checkpoint"], settings["ppo"]["steps"] = {"every": 0}, 1
    for name, section in sections.items():
        settings[name] = settings.get(name, {}) | section
    config = write_config(tmp_path / "config.yaml", settings)
    found = []
    for number in (1, 2):
        disturb(number)
        found.append(run(STAGES, config, f"run_{number}", monkeypatch))
    assert len(found[0]) >= 3
    assert found[0] == found[1]


@pytest.mark.parametrize("sections", parameters(GIVEN, "lora with a value adapter"))
def test_a_run_on_given_models_is_the_same_twice_and_resumed(
    sections: dict[str, Any],
    gpt2_models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {
        "data": write_plain_data(tmp_path),
        "policy": {"path": gpt2_models["policy"]},
        "reward": given_reward(gpt2_models["reward"]),
        "rollout": {"batch_size": 4, "max_new_tokens": 6},
        "ppo": {"steps": 2, "epochs": 1, "learning_rate": 0.01},
        "logging": {"trackers": []},
        "evaluation": {"every": 0},
        "checkpoint": {"every": 1},
        "output_dir": "unused",
        **ONE_THREAD,
    }
    for name, section in sections.items():
        settings[name] = settings.get(name, {}) | section  # type: ignore[operator]
    config = write_config(tmp_path / "config.yaml", settings)
    found = []
    for number in (1, 2):
        disturb(number)
        found.append(run(("ppo",), config, f"run_{number}", monkeypatch))
    disturb(3)
    run(("ppo",), config, "cut", monkeypatch, "--ppo.steps", "1")
    shutil.rmtree(tmp_path / "cut" / "policy")
    disturb(4)
    found.append(run(("ppo",), config, "cut", monkeypatch, "--resume", "true"))
    assert found[0] == found[1] == found[2]
    steps = read_jsonl(tmp_path / "run_1" / "metrics.jsonl")
    assert steps[0]["kl/ref"] == 0.0 and steps[1]["kl/ref"] != 0.0
