"""PPO from given models with learned positions, no chat template and plain string prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli import run_here, run_script, write_config
from helpers import given_reward, read_jsonl, write_plain_data
from safetensors.torch import load_file

VOLATILE = ("time/", "throughput/", "memory/")


def make_config(folder: Path, models: dict[str, str], **sections: Any) -> Path:
    """A config beside its data, starting at PPO."""
    settings: dict[str, Any] = {
        "output_dir": "run",
        "data": write_plain_data(folder),
        "policy": {"path": models["policy"]},
        "reward": given_reward(models["reward"]),
        "rollout": {"batch_size": 6, "max_new_tokens": 8},
        "ppo": {"steps": 2, "epochs": 2, "minibatches": 3, "learning_rate": 0.001},
        "evaluation": {"every": 0, "bootstrap_samples": 100},
        "checkpoint": {"every": 2},
        "logging": {"trackers": []},
    }
    for name, section in sections.items():
        settings[name] = settings.get(name, {}) | section
    return write_config(folder / "config.yaml", settings)


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """Metrics without the clock and the memory."""
    return [
        {name: value for name, value in entry.items() if not name.startswith(VOLATILE)}
        for entry in read_jsonl(folder / "metrics.jsonl")
    ]


def weights(folder: Path, name: str = "policy") -> bytes:
    return (folder / name / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory: pytest.TempPathFactory, gpt2_models: dict[str, str]) -> Path:
    """A run of four steps in one go; its config stands beside it."""
    folder = tmp_path_factory.mktemp("four")
    config = make_config(folder, gpt2_models)
    run_script("train", config, "--ppo.steps", "4", "--output_dir", "whole")
    return folder


def test_a_gpt2_run_from_given_models_goes_through(four_steps: Path) -> None:
    run = four_steps / "whole"
    metrics = read_jsonl(run / "metrics.jsonl")
    assert [entry["step"] for entry in metrics] == [1, 2, 3, 4]
    assert metrics[0]["kl/ref"] == 0.0
    assert metrics[-1]["kl/ref"] != 0.0
    assert all(entry["policy/sampler_gap"] < 1e-4 for entry in metrics)
    assert not (run / "sft").exists() and not (run / "reward_model").exists()
    summary = json.loads((run / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["win_rate"]) == {"score"}


def test_four_steps_are_two_and_two_resumed_to_the_bit(four_steps: Path) -> None:
    config = four_steps / "config.yaml"
    run_script("train", config, "--output_dir", "halves")
    assert len(metrics_of(four_steps / "halves")) == 2
    before = json.loads((four_steps / "halves" / "machine.json").read_text("utf-8"))
    assert weights(four_steps / "halves") != weights(four_steps / "whole")
    run_script("train", config, "--output_dir", "halves", "--ppo.steps", "4", "--resume", "true")
    assert metrics_of(four_steps / "halves") == metrics_of(four_steps / "whole")
    assert weights(four_steps / "halves") == weights(four_steps / "whole")
    summaries = [(four_steps / run / "evaluation/summary.json") for run in ("halves", "whole")]
    assert summaries[0].read_text("utf-8") == summaries[1].read_text("utf-8")
    whole, halves = (
        json.loads((four_steps / run / "machine.json").read_text("utf-8"))
        for run in ("whole", "halves")
    )
    assert set(halves["seconds"]) == set(whole["seconds"]) == {"ppo", "evaluation"}
    assert len(whole["starts"]) == 1 and len(halves["starts"]) == 2
    assert halves["starts"][0] < halves["starts"][1]
    for stage, seconds in before["seconds"].items():  # of both attempts together
        assert halves["seconds"][stage] > seconds > 0


@pytest.mark.parametrize("died", ["while_training", "while_saving_the_policy"])
def test_a_run_that_died_ends_as_one_that_did_not(
    four_steps: Path, died: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = four_steps / died, four_steps / "whole"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "evaluation")
    shutil.rmtree(run / "policy")
    if died == "while_training":  # after step 3, in the middle of a line and of a checkpoint
        (run / "checkpoints" / "step-000004").rename(run / "checkpoints" / ".partial-step-000004")
        (run / "checkpoints" / ".partial-step-000004" / "state.json").unlink()
        lines = (run / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:50], encoding="utf-8")
    else:
        (run / "policy.partial").mkdir()
        (run / "policy.partial" / "model.safetensors").write_bytes(b"half")
    words = ["--config", str(four_steps / "config.yaml"), "--ppo.steps", "4"]
    words += ["--output_dir", died, "--resume", "true"]
    assert run_here("train", words, four_steps, monkeypatch) == 0
    assert metrics_of(run) == metrics_of(whole)
    assert weights(run) == weights(whole)
    assert not (run / "policy.partial").exists()
    assert (run / "evaluation" / "summary.json").is_file()


def test_a_run_that_died_between_its_checkpoint_and_its_policy_saves_the_new_policy(
    four_steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older policy stands there from before: it must not be taken for the new one."""
    config = four_steps / "config.yaml"
    run, whole = four_steps / "stale", four_steps / "whole"
    stale = ["--config", str(config), "--output_dir", "stale"]
    assert run_here("ppo", stale, four_steps, monkeypatch) == 0
    old = weights(run)
    for name in ("checkpoints/step-000004", "metrics.jsonl"):
        target = run / name
        if target.is_file():
            target.unlink()
        (shutil.copytree if (whole / name).is_dir() else shutil.copy)(whole / name, target)
    stale += ["--ppo.steps", "4", "--resume", "true"]
    assert run_here("ppo", stale, four_steps, monkeypatch) == 0
    assert weights(run) == weights(whole) != old


def test_other_settings_are_refused_on_resume_and_named(
    four_steps: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = four_steps / "whole"
    words = ["--config", str(four_steps / "config.yaml"), "--output_dir", "whole"]
    words += ["--resume", "true"]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    changed = [*words, "--seed", "9", "--rollout.temperature", "0.5"]
    assert run_here("train", changed, four_steps, monkeypatch) == 2
    error = capsys.readouterr().err
    assert "seed: 1 then, 9 now" in error
    assert "rollout.temperature: 1.0 then, 0.5 now" in error
    assert run_here("train", words, four_steps, monkeypatch) == 2
    assert "already at step 4" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_more_steps_without_a_checkpoint_are_refused_not_started_over(
    four_steps: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With checkpoint.every 0 a resume to more steps began at step 1 and cut the metrics."""
    words = ["--config", str(four_steps / "config.yaml"), "--output_dir", "unchecked"]
    words += ["--checkpoint.every", "0"]
    assert run_here("ppo", [*words, "--ppo.steps", "1"], four_steps, monkeypatch) == 0
    metrics = (four_steps / "unchecked" / "metrics.jsonl").read_text(encoding="utf-8")
    capsys.readouterr()
    assert run_here("ppo", [*words, "--ppo.steps", "2", "--resume"], four_steps, monkeypatch) == 2
    assert "left no checkpoint to go on from" in capsys.readouterr().err
    assert (four_steps / "unchecked" / "metrics.jsonl").read_text(encoding="utf-8") == metrics


def test_two_processes_are_one(four_steps: Path) -> None:
    """With a tracker on: closing it once ended the process group before the policy was saved."""
    config, whole = four_steps / "config.yaml", four_steps / "whole"
    words = ("--output_dir", "two", "--logging.trackers", "[tensorboard]")
    run_script("train", config, *words, processes=2)
    assert list((four_steps / "two" / "tensorboard").rglob("events.*"))
    two = metrics_of(four_steps / "two")
    assert len(two) == 2
    for one, other in zip(metrics_of(whole), two, strict=False):
        for name in (
            "tokens", "score/mean", "score/std", "kl/ref", "policy/loss", "value/loss",
            "kl/update", "grad_norm", "policy/entropy", "response/length",
        ):  # fmt: skip
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name
    assert (four_steps / "two" / "evaluation" / "summary.json").is_file()


STATEFUL: dict[str, Any] = {  # everything that a step hands on to the next, and every sum over it
    "advantage": {"kind": "grpo"},
    "rollout": {"samples_per_prompt": 3},
    "reward": {
        "normalization": "standardize",
        "normalization_from": "running",
        "clip_range": 1.5,
        "length_penalty": 0.1,
        "length_free_tokens": 4,
        "missing_stop_penalty": 0.5,
        "whiten": True,
    },
    "kl": {"controller": "target", "place": "loss", "estimator": "k3", "target": 0.1},
    "ppo": {
        "objective": "kl_penalty",
        "penalty_target": 0.0001,
        "target_kl": 0.002,
        "entropy_coefficient": 0.01,
        "loss_aggregation": "sequence",
        "learning_rate": 0.005,
    },
}


def test_what_one_step_hands_to_the_next_survives_a_resume(
    tmp_path: Path, gpt2_models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(make_config(tmp_path, gpt2_models, **STATEFUL))
    whole = ["--config", config, "--ppo.steps", "4", "--output_dir", "whole"]
    assert run_here("ppo", whole, tmp_path, monkeypatch) == 0
    halves = ["--config", config, "--output_dir", "halves"]
    assert run_here("ppo", halves, tmp_path, monkeypatch) == 0
    halves += ["--ppo.steps", "4", "--resume"]
    assert run_here("ppo", halves, tmp_path, monkeypatch) == 0
    metrics = metrics_of(tmp_path / "whole")
    assert metrics_of(tmp_path / "halves") == metrics
    assert weights(tmp_path / "halves") == weights(tmp_path / "whole")
    for name in ("kl/beta", "policy/penalty"):
        assert len({entry[name] for entry in metrics}) > 2, name
    assert all(entry["policy/optimizer_steps"] < 6 for entry in metrics)  # stopped early
    assert not any(name.startswith("value/") for name in metrics[0])


def test_two_processes_share_groups_controllers_and_early_stops(
    tmp_path: Path, gpt2_models: dict[str, str]
) -> None:
    config = make_config(tmp_path, gpt2_models, **STATEFUL)
    run_script("ppo", config, "--output_dir", "one")
    run_script("ppo", config, "--output_dir", "two", processes=2)
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    assert len(two) == 2
    for mine, theirs in zip(one, two, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if name != "policy/sampler_gap":
                assert theirs[name] == pytest.approx(mine[name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize(
    "sections",
    [
        {"lora": {"rank": 2}},
        {"lora": {"rank": 2, "save": "adapter"}, "value": {"model": "policy"}},
        {"value": {"model": "policy", "learning_rate": 0.01}},
        {"value": {"model": "reward"}, "policy": {"gradient_checkpointing": True}},
        {"kl": {"controller": "adaptive"}, "reward": {"normalization": "standardize"}},
        {"advantage": {"kind": "rloo"}, "rollout": {"samples_per_prompt": 2}},
        {"advantage": {"kind": "n_step", "n": 3}, "ppo": {"objective": "surrogate"}},
    ],
    ids=[
        "lora",
        "adapter_and_value_trunk",
        "value_policy",
        "value_reward",
        "adaptive",
        "rloo",
        "surrogate",
    ],
)
def test_variants_run_evaluate_and_start_from_the_reference(
    sections: dict[str, Any],
    tmp_path: Path,
    gpt2_models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(tmp_path, gpt2_models, **sections)
    assert run_here("train", ["--config", str(config)], tmp_path, monkeypatch) == 0
    run = tmp_path / "run"
    first, second = read_jsonl(run / "metrics.jsonl")
    assert first["kl/ref"] == 0.0
    assert first["policy/ratio_first_error"] < 1e-5
    assert max(first["policy/sampler_gap"], second["policy/sampler_gap"]) < 1e-4
    assert second["kl/ref"] != 0.0
    adapter = sections.get("lora", {}).get("save") == "adapter"
    assert (run / "policy" / "adapter_config.json").is_file() == adapter
    if not adapter:
        before, after = (
            load_file(f"{gpt2_models['policy']}/model.safetensors"),
            load_file(run / "policy" / "model.safetensors"),
        )
        assert before.keys() == after.keys()
        assert any(not before[name].equal(after[name]) for name in before)
    summary = json.loads((run / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    assert summary["policy"]["kl"]["mean"] != 0.0
    if "adaptive" in str(sections):
        assert second["kl/beta"] != first["kl/beta"]
