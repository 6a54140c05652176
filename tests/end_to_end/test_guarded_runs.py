"""Guard, best policy and next-token loss as a user meets them: scripts, codes, files, processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli import run_here, run_script
from helpers import read_jsonl, write_jsonl
from test_ppo_alone import make_config, metrics_of, weights

RUNAWAY: dict[str, Any] = {
    "ppo": {"steps": 8, "learning_rate": 0.05},
    "checkpoint": {"every": 1},
    "guard": {"max_kl": 2.0},
}


def test_a_run_that_the_guard_stops_saves_evaluates_and_says_why_by_code_3(
    tmp_path: Path,
    gpt2_models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = str(make_config(tmp_path, gpt2_models, **RUNAWAY))
    words = ["--config", config]
    assert run_here("train", words, tmp_path, monkeypatch) == 3
    error = capsys.readouterr().err
    assert "stopped: after step" in error and "guard.max_kl = 2" in error
    run = tmp_path / "run"
    steps = len(metrics_of(run))
    assert 1 < steps < 8
    assert json.loads((run / "policy" / "stage.json").read_text("utf-8"))["steps"] == steps
    assert (run / "evaluation" / "summary.json").is_file()
    saved, metrics = weights(run), metrics_of(run)
    assert run_here("train", [*words, "--resume"], tmp_path, monkeypatch) == 3
    assert weights(run) == saved and metrics_of(run) == metrics  # the same verdict, not a step more
    at_the_end = [*words, "--resume", "--ppo.steps", str(steps)]
    assert run_here("train", at_the_end, tmp_path, monkeypatch) == 3  # stopped, not finished
    on = [*words, "--resume", "--guard.max_kl", "null", "--ppo.steps", str(steps + 1)]
    assert run_here("train", on, tmp_path, monkeypatch) == 0
    assert len(metrics_of(run)) == steps + 1 and weights(run) != saved


def test_two_processes_roll_back_together(tmp_path: Path, gpt2_models: dict[str, str]) -> None:
    guard = {"max_kl": 2.0, "action": "rollback", "learning_rate_factor": 0.002}
    sections = RUNAWAY | {"guard": guard, "checkpoint": {"every": 1, "keep": 3}}
    config = make_config(tmp_path, gpt2_models, **sections)
    shown = run_script("ppo", config, processes=2).stdout
    assert "Rollback 1 of 3" in shown
    metrics = metrics_of(tmp_path / "run")
    assert [entry["step"] for entry in metrics] == list(range(1, 9))
    assert all(entry["kl/ref"] <= 2.0 for entry in metrics)
    assert (tmp_path / "run" / "failures" / "rollback-1.jsonl").is_file()


PTX: dict[str, Any] = {
    "ptx": {"data": "text.jsonl", "coefficient": 0.5, "batch_size": 3},
    "evaluation": {"every": 1, "prompts_during_training": 4},
    "checkpoint": {"every": 1, "keep": 1, "save": "best"},
}


def write_text(folder: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": f"the {n} boats are blue."} for n in range(5)]
    rows += [{"prompt": "it is ", "completion": "green."}, {"text": "x" * 99}]
    write_jsonl(folder / "text.jsonl", rows)


def test_ptx_and_the_best_policy_survive_a_resume_to_the_bit(
    tmp_path: Path,
    gpt2_models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_text(tmp_path)
    config = str(make_config(tmp_path, gpt2_models, **PTX))
    whole = ["--config", config, "--ppo.steps", "4", "--output_dir", "whole"]
    assert run_here("train", whole, tmp_path, monkeypatch) == 0
    assert "ptx.data: dropped 1 rows" in capsys.readouterr().out
    halves = ["--config", config, "--output_dir", "halves"]
    assert run_here("train", halves, tmp_path, monkeypatch) == 0
    halves += ["--ppo.steps", "4", "--resume"]
    assert run_here("train", halves, tmp_path, monkeypatch) == 0
    metrics = metrics_of(tmp_path / "whole")
    assert metrics_of(tmp_path / "halves") == metrics
    assert weights(tmp_path / "halves") == weights(tmp_path / "whole")
    assert all(2.0 < entry["ptx/loss"] < 9.0 for entry in metrics)
    scores = {entry["step"]: entry["heldout/score"] for entry in metrics}
    best = max(scores, key=lambda step: scores[step])
    (kept,) = (tmp_path / "whole" / "checkpoints").glob("best-*")
    assert kept.name == f"best-{best:06d}"
    (tmp_path / "text.jsonl").write_text('{"text": "other words"}\n', encoding="utf-8")
    assert run_here("train", halves, tmp_path, monkeypatch) == 2
    assert "ptx.data" in capsys.readouterr().err


def test_two_processes_share_the_text(tmp_path: Path, gpt2_models: dict[str, str]) -> None:
    write_text(tmp_path)
    config = make_config(tmp_path, gpt2_models, **PTX)
    run_script("ppo", config, "--output_dir", "one")
    run_script("ppo", config, "--output_dir", "two", processes=2)
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    assert len(one) == len(two) == 2
    for mine, theirs in zip(one, two, strict=True):
        for name in ("ptx/loss", "grad_norm", "policy/loss", "kl/ref", "heldout/score"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-3, abs=1e-4), name


def test_ptx_takes_the_demonstrations_when_no_other_text_is_named(
    tmp_path: Path,
    gpt2_models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = str(make_config(tmp_path, gpt2_models, ptx={"coefficient": 0.1}))
    assert run_here("ppo", ["--config", config], tmp_path, monkeypatch) == 2
    assert "ptx.data: missing" in capsys.readouterr().err
    write_text(tmp_path)
    words = ["--config", config, "--data.demonstrations", "text.jsonl", "--ppo.steps", "1"]
    assert run_here("ppo", words, tmp_path, monkeypatch) == 0
    assert "ptx/loss" in read_jsonl(tmp_path / "run" / "metrics.jsonl")[0]
