"""Models and adapters that do not fit: refused before anything is written, with the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from cli import run_here, write_config
from helpers import byte_tokenizer, given_reward, write_plain_data
from transformers import AutoModelForCausalLM

Change = Callable[[dict[str, Any], Path, Path], None]


@pytest.fixture(scope="module")
def adapter(gpt2_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained LoRA adapter of rank 2."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(gpt2_models["policy"])
    settings = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    peft.get_peft_model(model, settings).save_pretrained(folder)
    byte_tokenizer(chat=False).save_pretrained(folder)
    return folder


def changed(adapter: Path, folder: Path, **settings: Any) -> str:
    """A copy of the adapter with other settings."""
    shutil.copytree(adapter, folder / "changed")
    file = folder / "changed" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return "changed"


def start(**change: Any) -> Change:
    """Start from a changed adapter."""
    return lambda s, a, f: s.update(policy={"path": changed(a, f, **change)}, lora={})


BROKEN: dict[str, tuple[Change, list[str]]] = {
    "lora of another rank than the adapter": (
        lambda s, a, f: s.update(policy={"path": str(a)}, lora={"rank": 8}),
        ["lora.rank = 8", "which has 2", "Leave lora.rank out"],
    ),
    "lora of another scale": (
        lambda s, a, f: s.update(policy={"path": str(a)}, lora={"alpha": 9}),
        ["lora.alpha = 9", "which has 4"],
    ),
    "lora on other layers": (
        lambda s, a, f: s.update(policy={"path": str(a)}, lora={"target_modules": ["c_attn"]}),
        ["lora.target_modules = ['c_attn']", "c_fc"],
    ),
    "adapter that trains whole modules": (
        start(modules_to_save=["wte"]),
        ["policy.path", "trains modules_to_save", "Set lora to null"],
    ),
    "adapter that trains biases": (start(bias="all"), ["trains biases (bias = all)"]),
    "adapter of another kind": (start(peft_type="IA3"), ["only plain LoRA can be trained on"]),
    "adapter that names no base": (
        start(base_model_name_or_path=None),
        ["policy.path", "adapter_config.json", "base_model_name_or_path"],
    ),
    "adapter whose base is gone": (
        start(base_model_name_or_path="./gone"),
        ["policy.path", "gone"],
    ),
    "policy adapter as a reward model": (
        lambda s, a, f: s.update(reward=given_reward(str(a))),
        ["reward.sources[reward_model].path", "no score head", "reward_model section"],
    ),
    "values of an earlier run that are not there": (
        lambda s, a, f: s.update(value={"init": "saved"}),
        ["value.init = saved", "value_head.safetensors", "Set value.init to new"],
    ),
    "value adapter without lora": (
        lambda s, a, f: s.update(value={"model": "adapter"}),
        ["value.model = adapter", "add a lora section"],
    ),
    "saved values for a method that has none": (
        lambda s, a, f: s.update(value={"init": "saved"}, advantage={"kind": "reward_to_go"}),
        ["value.init = saved has no effect with advantage.kind = reward_to_go"],
    ),
    "reward adapter without lora": (
        lambda s, a, f: s.update(
            reward={"sources": [{"kind": "model"}]}, reward_model={"save": "adapter"}
        ),
        ["reward_model.save = adapter", "add a lora section"],
    ),
    "offload on a CPU": (
        lambda s, a, f: s.update(hardware={"offload": True}),
        ["hardware.offload = true has no effect", "on the CPU", "Set it to false"],
    ),
    "offload of nothing": (
        lambda s, a, f: s.update(
            hardware={"offload": True},
            lora={},
            reward={"sources": [{"kind": "function", "path": "a.py:b"}]},
        ),
        ["hardware.offload = true has no effect", "its own reference"],
    ),
    "4 bits without lora": (
        lambda s, a, f: s["policy"].update(quantization="4bit"),
        ["policy.quantization = 4bit", "add a lora section"],
    ),
    "4 bits to be merged": (
        lambda s, a, f: (s["policy"].update(quantization="4bit"), s.update(lora={})),
        ["policy.quantization = 4bit with lora.save = merged", "set lora.save to adapter"],
    ),
    "4 bits to be copied": (
        lambda s, a, f: (
            s["policy"].update(quantization="4bit"),
            s.update(lora={"save": "adapter"}, value={"model": "policy"}),
        ),
        ["policy.quantization = 4bit with value.model = policy"],
    ),
    "4 bits without the package": (
        lambda s, a, f: (
            s["policy"].update(quantization="4bit"),
            s.update(lora={"save": "adapter"}),
        ),
        ["policy.quantization = 4bit needs the package bitsandbytes", "pip install bitsandbytes"],
    ),
    "8-bit optimizer without the package": (
        lambda s, a, f: s["ppo"].update(optimizer="adamw_8bit"),
        ["ppo.optimizer = adamw_8bit needs the package bitsandbytes", "pip install bitsandbytes"],
    ),
}


@pytest.mark.parametrize(("change", "parts"), BROKEN.values(), ids=BROKEN.keys())
def test_models_that_do_not_fit_are_refused_and_nothing_is_written(
    change: Change,
    parts: list[str],
    adapter: Path,
    gpt2_models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("rlhf_ppo.models.load.find_spec", lambda name: None)
    settings: dict[str, Any] = {
        "output_dir": "run",
        "data": write_plain_data(tmp_path),
        "policy": {"path": gpt2_models["policy"]},
        "reward": given_reward(gpt2_models["reward"]),
        "rollout": {"batch_size": 6, "max_new_tokens": 8},
        "ppo": {"steps": 1},
        "logging": {"trackers": []},
    }
    change(settings, adapter, tmp_path)
    config = write_config(tmp_path / "config.yaml", settings)
    assert run_here("train", ["--config", str(config)], tmp_path, monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1 and "Traceback" not in error
    for part in parts:
        assert part in error, error
    assert not (tmp_path / "run").exists()
