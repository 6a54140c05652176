"""Adapters from the first stage to the last, and a second run that goes on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import run_here, run_script, tiny_sections, write_config
from helpers import given_reward, read_jsonl, write_chat_data
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

QUIET: dict[str, Any] = {"logging": {"trackers": []}}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Supervised model, reward adapter, PPO with a value adapter, evaluation: one base for all."""
    folder = tmp_path_factory.mktemp("adapters")
    settings = tiny_sections() | QUIET | {"output_dir": "one", "data": write_chat_data(folder)}
    settings["reward_model"] = settings["reward_model"] | {"save": "adapter"}
    settings["lora"] = {"rank": 2, "save": "adapter"}
    settings["value"] = {"model": "adapter"}
    config = write_config(folder / "one.yaml", settings)
    with pytest.MonkeyPatch.context() as patch:
        assert run_here("train", ["--config", str(config)], folder, patch) == 0
    return folder


def test_a_whole_run_leaves_adapters_on_the_supervised_model(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(first)
    for name in ("reward_model", "policy"):
        settings = json.loads((first / "one" / name / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == str((first / "one" / "sft").resolve())
        assert not (first / "one" / name / "model.safetensors").exists()
    steps = read_jsonl(first / "one" / "metrics.jsonl")
    assert steps[0]["kl/ref"] == 0.0 and steps[-1]["kl/ref"] != 0.0
    policy = AutoModelForCausalLM.from_pretrained("one/policy")
    bare = AutoModelForCausalLM.from_pretrained("one/sft")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert not torch.allclose(policy(ids).logits, bare(ids).logits, atol=1e-5)
    saved = load_file("one/policy/value_head.safetensors")
    assert {name for name in saved if "rlhf_value" not in name} == {
        "value_head.weight",
        "value_head.bias",
    }


def test_a_second_run_goes_on_with_policy_and_values_and_resumes_to_the_bit(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reference is the first run's policy: KL 0 at its first step, with KL > 0 to the base."""
    settings = tiny_sections() | QUIET | {"data": write_chat_data(first)}
    for stage in ("sft", "reward_model"):
        settings.pop(stage)
    settings |= {
        "output_dir": "two",
        "policy": {"path": "one/policy"},
        "reward": given_reward("one/reward_model"),
        "lora": {"save": "adapter"},
        "value": {"model": "adapter", "init": "saved"},
    }
    config = str(write_config(first / "two.yaml", settings))
    words = ["--config", config]
    assert run_here("train", [*words, "--ppo.steps", "4"], first, monkeypatch) == 0
    for more in (["--ppo.steps", "2"], ["--ppo.steps", "4", "--resume", "true"]):
        assert run_here("train", [*words, "--output_dir", "cut", *more], first, monkeypatch) == 0
    steps = read_jsonl(first / "two" / "metrics.jsonl")
    assert steps[0]["kl/ref"] == 0.0 and steps[1]["kl/ref"] != 0.0
    assert steps[0]["value/explained_variance"] != 0.0  # not a head of zeros
    files = [
        load_file(first / name / "policy" / "adapter_model.safetensors") for name in ("two", "cut")
    ]
    before = load_file(first / "one" / "policy" / "adapter_model.safetensors")
    assert all(torch.equal(files[0][key], files[1][key]) for key in before)
    assert any(not torch.equal(files[0][key], before[key]) for key in before)


def test_two_processes_train_both_adapters_as_one_does(first: Path) -> None:
    settings = tiny_sections() | QUIET | {"data": write_chat_data(first)}
    for stage in ("sft", "reward_model"):
        settings.pop(stage)
    settings |= {
        "policy": {"path": "one/policy"},
        "reward": given_reward("one/reward_model"),
        "lora": {"save": "adapter"},
        "value": {"model": "adapter", "init": "saved"},
        "output_dir": "unused",
    }
    config = write_config(first / "both.yaml", settings)
    found = []
    for processes in (1, 2):
        words = ("--output_dir", f"by_{processes}")
        run_script("ppo", config, *words, processes=processes)
        found.append(read_jsonl(first / f"by_{processes}" / "metrics.jsonl"))
    for one, two in zip(*found, strict=True):
        for name in ("score/mean", "kl/ref", "policy/loss", "value/loss", "grad_norm"):
            assert one[name] == pytest.approx(two[name], rel=1e-3, abs=1e-5), name


def test_full_fine_tuning_starts_from_an_adapter_merged_into_its_base(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_sections() | QUIET | {"data": write_chat_data(first)}
    for stage in ("sft", "reward_model"):
        settings.pop(stage)
    settings |= {
        "output_dir": "full",
        "policy": {"path": "one/policy"},
        "reward": given_reward("one/reward_model"),
    }
    config = str(write_config(first / "full.yaml", settings))
    assert run_here("train", ["--config", config], first, monkeypatch) == 0
    steps = read_jsonl(first / "full" / "metrics.jsonl")
    assert steps[0]["kl/ref"] == 0.0 and steps[1]["kl/ref"] != 0.0
    assert (first / "full" / "policy" / "model.safetensors").is_file()


def test_messages_for_a_model_without_a_template_are_written_plainly_and_that_is_said_once(
    gpt2_models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = QUIET | {
        "output_dir": "run",
        "data": {k: v for k, v in write_chat_data(tmp_path).items() if k.endswith("prompts")},
        "policy": {"path": gpt2_models["policy"]},
        "reward": given_reward(gpt2_models["reward"]),
        "rollout": {"batch_size": 4, "max_new_tokens": 6},
        "ppo": {"steps": 1, "epochs": 1},
        "evaluation": {"every": 0, "bootstrap_samples": 100},
    }
    config = str(write_config(tmp_path / "config.yaml", settings))
    assert run_here("train", ["--config", config], tmp_path, monkeypatch) == 0
    output = capsys.readouterr().out
    assert output.count("policy.path: the tokenizer has no chat template") == 1
    saved = json.loads((tmp_path / "run" / "policy" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == 0  # GPT-2's only stop token, here the first of the vocabulary
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(tmp_path / "run" / "policy")
    asked = again.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert asked == "User:\nhi\n\n"
