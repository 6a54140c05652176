"""All stages from one config, on data written on the spot, as a user runs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from cli import GOLD, run_command, run_here, run_script, tiny_sections, write_config
from helpers import read_jsonl, write_chat_data

METRICS = {
    "step", "episodes", "tokens", "score/mean", "score/std", "kl/ref", "kl/beta", "kl/update",
    "policy/loss", "policy/clip_fraction", "policy/ratio_max", "policy/entropy", "value/loss",
    "value/clip_fraction", "value/explained_variance", "response/length", "response/stopped",
    "grad_norm", "learning_rate", "time/rollout", "time/judge", "time/update",
    "throughput/tokens_per_second", "memory/peak_gib", "gold/mean",
}  # fmt: skip
LOAD_ALONE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
messages = [{"role": "user", "content": "what colour is the cat?"}]
ids = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
out = model.generate(**ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
assert out.shape[1] == ids["input_ids"].shape[1] + 5
assert not any(name.split(".")[0] == "rlhf_ppo" for name in sys.modules)
print("generated", repr(tokenizer.decode(out[0])))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of all stages; its config is beside it."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "gold.py").write_text(GOLD, encoding="utf-8")
    sections = tiny_sections()
    sections["evaluation"]["gold"] = "gold.py:score"
    sections |= {"output_dir": "runs/one", "data": write_chat_data(folder)}
    config = write_config(folder / "config.yaml", sections)
    output = run_script("train", config).stdout
    for stage in ("sft", "reward_model", "ppo", "evaluation"):
        assert f"== {stage} ==" in output
    return folder / "runs" / "one"


def test_a_run_leaves_behind_what_the_design_promises(run: Path) -> None:
    for name in ("sft", "reward_model", "policy"):
        assert (run / name / "config.json").is_file()
        assert (run / name / "model.safetensors").is_file()
        assert (run / name / "tokenizer_config.json").is_file()
    assert (run / "policy" / "README.md").is_file()
    assert (run / "policy" / "value_head.safetensors").is_file()
    assert (run / "reward_model" / "probes.json").is_file()
    assert sorted(p.name for p in (run / "checkpoints").glob("step*")) == [
        "step-000001",
        "step-000002",
    ]
    assert list((run / "tensorboard").rglob("events.*"))
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "sft", "reward_model", "policy", "checkpoints", "metrics.jsonl",
        "evaluation", "tensorboard", "data_report.json", "heldout.jsonl", "machine.json",
    }  # fmt: skip


def test_metrics_hold_one_object_a_step_with_the_documented_keys(run: Path) -> None:
    metrics = read_jsonl(run / "metrics.jsonl")
    assert [entry["step"] for entry in metrics] == [1, 2]
    assert [entry["episodes"] for entry in metrics] == [6, 12]
    for entry in metrics:
        assert set(entry) >= METRICS
        assert all(isinstance(value, int | float) for value in entry.values())
    assert metrics[0]["kl/ref"] == 0.0
    assert metrics[0]["policy/ratio_first_error"] < 1e-5
    assert metrics[1]["tokens"] > metrics[0]["tokens"] >= 6
    assert "heldout/score" in metrics[0] and "heldout/gold" in metrics[0]
    assert "heldout/score" not in metrics[1]  # the last step is evaluated in full afterwards


def test_a_run_ends_with_its_report_and_says_what_it_was_made_with(run: Path) -> None:
    page = (run / "evaluation" / "report.html").read_text(encoding="utf-8")
    for words in ("8 held-out prompts", "gold score", "KL to the reference", "Models before PPO"):
        assert words in page, words
    assert "not described in docs/metrics.md" not in page  # every metric has its entry there
    machine = json.loads((run / "machine.json").read_text(encoding="utf-8"))
    assert set(machine["seconds"]) == {"sft", "reward_model", "ppo", "evaluation"}
    assert all(seconds > 0 for seconds in machine["seconds"].values())
    assert machine["processes"] == 1 and len(machine["starts"]) == 1
    assert "torch" in machine["versions"]


def test_the_summary_has_the_documented_form(run: Path) -> None:
    summary = json.loads((run / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    assert summary["prompts"] == 8
    names = {
        "score", "gold", "length", "stopped", "distinct_1", "distinct_2", "repetition",
        "gold_parts",
    }  # fmt: skip
    assert set(summary["policy"]) == names | {"kl"}
    assert set(summary["reference"]) == names
    assert set(summary["win_rate"]) == {"score", "gold"}
    assert set(summary["length_controlled"]) == {"score", "gold"}
    sides = {"policy", "reference"}
    assert set(summary["greedy"]) == sides | {"win_rate", "length_controlled", "change"}
    estimates = [*summary["win_rate"].values(), *summary["length_controlled"].values()]
    assert all(0 <= rate.pop("ties") <= 1 for rate in summary["win_rate"].values())
    assert all(0 < rate.pop("p") <= 1 for rate in estimates)
    for side in ("policy", "reference"):
        assert set(summary[side]["gold_parts"]) == {"vowels"}
        estimates += summary[side]["gold_parts"].values()
        estimates += [value for name, value in summary[side].items() if name != "gold_parts"]
    for estimate in estimates:
        assert set(estimate) == {"mean", "low", "high"}
        assert estimate["low"] <= estimate["mean"] <= estimate["high"]


def test_the_samples_agree_with_the_summary(run: Path) -> None:
    summary = json.loads((run / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    samples = read_jsonl(run / "evaluation" / "samples.jsonl")
    assert len(samples) == 8
    for side in ("policy", "reference"):
        for name in ("score", "length"):
            mean = sum(sample[side][name] for sample in samples) / 8
            assert summary[side][name]["mean"] == pytest.approx(mean)
        gold = sum(sample[side]["gold"]["score"] for sample in samples) / 8
        assert summary[side]["gold"]["mean"] == pytest.approx(gold)
        for sample in samples:
            assert sample[side]["gold"]["score"] == len(sample[side]["response"]) / 10
    wins = sum(
        (s["policy"]["score"] > s["reference"]["score"])
        + 0.5 * (s["policy"]["score"] == s["reference"]["score"])
        for s in samples
    )
    assert summary["win_rate"]["score"]["mean"] == pytest.approx(wins / 8)


def test_the_policy_loads_and_generates_where_this_project_is_unknown(run: Path) -> None:
    command = [sys.executable, "-c", LOAD_ALONE, str(run / "policy")]
    assert "generated" in run_command(command, run).stdout


def test_the_saved_config_runs_again_to_the_same_result(run: Path) -> None:
    saved = run / "config.yaml"
    again = run.parents[1] / "again.yaml"
    again.write_text(saved.read_text(encoding="utf-8"), encoding="utf-8")
    run_script("train", again, "--output_dir", "runs/two")
    other = run.parent / "two"
    assert same_metrics(run, other)
    for name in ("sft", "reward_model", "policy"):
        weights = f"{name}/model.safetensors"
        assert (run / weights).read_bytes() == (other / weights).read_bytes(), name
    summary = "evaluation/summary.json"
    assert (run / summary).read_text("utf-8") == (other / summary).read_text("utf-8")
    assert yaml.safe_load(saved.read_text("utf-8"))["resume"] is False


def same_metrics(one: Path, other: Path) -> bool:
    """Equal but for the clock and the memory."""
    volatile = ("time/", "throughput/", "memory/")

    def kept(folder: Path) -> list[dict[str, float]]:
        return [
            {name: value for name, value in entry.items() if not name.startswith(volatile)}
            for entry in read_jsonl(folder / "metrics.jsonl")
        ]

    assert kept(one) == kept(other)
    return True


def test_on_resume_finished_stages_are_kept_and_other_settings_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run.parents[1] / "config.yaml"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    words = ["--config", str(config), "--resume", "true"]
    assert run_here("train", words, config.parent, monkeypatch) == 0
    output = capsys.readouterr().out
    for stage in ("sft", "reward_model", "ppo", "evaluation"):
        assert f"{stage}: kept" in output
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == before
    words += ["--kl.beta", "0.9"]
    assert run_here("train", words, config.parent, monkeypatch) == 2
    assert "kl.beta: 0.05 then, 0.9 now" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == before


def test_evaluation_alone_makes_the_same_summary_again(run: Path) -> None:
    config = run.parents[1] / "config.yaml"
    summary = run / "evaluation" / "summary.json"
    before = summary.read_text(encoding="utf-8")
    (run / "evaluation").rename(run / "evaluation_before")
    run_script("evaluate", config)
    assert summary.read_text(encoding="utf-8") == before
