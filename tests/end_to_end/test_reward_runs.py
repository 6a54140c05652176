"""Runs without a reward model: Python and HTTP rewards, several sources, missing scores."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli import ROOT, run_command, run_here, run_script, write_config
from helpers import THINGS, given_reward, read_jsonl, write_jsonl

CODE = """
def length(prompts, responses, wanted):
    return [-abs(len(r) - w) / 10 for r, w in zip(responses, wanted)]

def vowels(prompts, responses, wanted, **_):
    found = [float(sum(c in "aeiou" for c in r)) for r in responses]
    return [None if w in (3, 12) else score for w, score in zip(wanted, found)]

def sometimes(prompts, responses, wanted):
    # Which response it cannot take must not depend on who is asked together.
    return [float("nan") if w == 3 and r else float(len(r)) for r, w in zip(responses, wanted)]

def odd(prompts, responses, wanted):
    return [None if w == 3 and len(set(r)) % 2 else len(r) for r, w in zip(responses, wanted)]
"""
LENGTH = {"kind": "function", "name": "length", "path": "reward.py:length"}
SOMETIMES = {"kind": "function", "name": "sometimes", "path": "reward.py:sometimes"}
VOLATILE = ("time/", "throughput/", "memory/", "policy/sampler_gap")


def make_config(folder: Path, models: dict[str, str], *sources: Any, **sections: Any) -> Path:
    """A config beside its data and rewards, starting at PPO."""
    (folder / "reward.py").write_text(CODE, encoding="utf-8")
    rows = [{"prompt": f"The {t} is ", "wanted": place} for place, t in enumerate(THINGS)]
    others = [{"prompt": f"My {t} is ", "wanted": 10 + place} for place, t in enumerate(THINGS)]
    settings: dict[str, Any] = {
        "output_dir": "run",
        "data": {
            "prompts": write_jsonl(folder / "prompts.jsonl", rows),
            "heldout_prompts": write_jsonl(folder / "heldout.jsonl", others),
        },
        "policy": {"path": models["policy"]},
        "reward": {"sources": list(sources)},
        "rollout": {"batch_size": 8, "max_new_tokens": 6},
        "ppo": {"steps": 2, "epochs": 2, "minibatches": 2, "learning_rate": 0.001},
        "evaluation": {"every": 1, "bootstrap_samples": 100},
        "checkpoint": {"every": 1},
        "logging": {"trackers": []},
    }
    for name, section in sections.items():
        settings[name] = settings.get(name, {}) | section
    return write_config(folder / "config.yaml", settings)


def metrics_of(folder: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in entry.items() if not name.startswith(VOLATILE)}
        for entry in read_jsonl(folder / "metrics.jsonl")
    ]


@contextmanager
def reward_server(target: str) -> Iterator[str]:
    """The example server in a process of its own; its address."""
    command = [sys.executable, str(ROOT / "scripts/reward_server.py"), target, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        line = server.stdout.readline().decode()
        try:
            yield line.split()[-1]
        finally:
            server.terminate()


def test_a_python_reward_and_the_same_over_http_are_one_run_to_the_bit(
    tmp_path: Path, gpt2_models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(tmp_path, gpt2_models, LENGTH)
    assert run_here("train", ["--config", str(config)], tmp_path, monkeypatch) == 0
    with reward_server(f"{tmp_path}/reward.py:length") as url:
        source = json.dumps([{"kind": "http", "name": "length", "url": url, "batch_size": 3}])
        words = ["--config", str(config), "--reward.sources", source, "--output_dir", "http"]
        assert run_here("train", words, tmp_path, monkeypatch) == 0
    found = metrics_of(tmp_path / "run")
    assert metrics_of(tmp_path / "http") == found
    assert found[0]["reward/length/mean"] == found[0]["score/mean"] != 0
    assert found[0]["reward/length/failed"] == found[0]["reward/dropped"] == 0
    assert not (tmp_path / "run" / "reward_model").exists()
    for name in ("policy/model.safetensors", "evaluation/summary.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "http" / name).read_bytes()


MIXED: list[dict[str, Any]] = [
    LENGTH | {"weight": 0.5},
    {
        "kind": "ensemble",
        "name": "both",
        "combine": "lower",
        "k": 0.5,
        "normalization": "standardize",
        "members": [
            LENGTH | {"name": "one", "normalization": "standardize"},
            {"kind": "function", "name": "two", "path": "reward.py:vowels"},
        ],
    },
]


def test_several_sources_with_moments_and_gaps_survive_a_resume_to_the_bit(
    tmp_path: Path, gpt2_models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    judge = given_reward(gpt2_models["reward"])["sources"]
    sections = {
        "reward": {"max_failed": 0.9, "normalization": "center"},
        "evaluation": {"every": 0, "bootstrap_samples": 100},
    }
    config = str(make_config(tmp_path, gpt2_models, *MIXED, *judge, **sections))
    whole = ["--config", config, "--ppo.steps", "4", "--output_dir", "whole"]
    assert run_here("train", whole, tmp_path, monkeypatch) == 0
    halves = ["--config", config, "--output_dir", "halves"]
    assert run_here("train", halves, tmp_path, monkeypatch) == 0
    halves += ["--ppo.steps", "4", "--resume"]
    assert run_here("train", halves, tmp_path, monkeypatch) == 0
    found = metrics_of(tmp_path / "whole")
    assert metrics_of(tmp_path / "halves") == found
    for name in ("policy/model.safetensors", "evaluation/summary.json"):
        one, two = (tmp_path / run / name for run in ("whole", "halves"))
        assert one.read_bytes() == two.read_bytes(), name
    names = ("length", "both", "both/one", "both/two", "reward_model")
    assert {f"reward/{name}/mean" for name in names} <= found[0].keys()
    assert all(entry["reward/both/two/failed"] == entry["reward/dropped"] == 1 for entry in found)
    summary = json.loads((tmp_path / "whole/evaluation/summary.json").read_text("utf-8"))
    assert summary["policy"]["reward_parts"].keys() == set(names)
    assert summary["policy"]["failed"] == summary["reference"]["failed"] == 1
    shown = [
        row["policy"]["score"] for row in read_jsonl(tmp_path / "whole/evaluation/samples.jsonl")
    ]
    assert [score is None for score in shown] == [place == 2 for place in range(len(THINGS))]


def test_a_missing_reward_stops_the_run_and_a_higher_threshold_goes_on_from_there(
    tmp_path: Path,
    gpt2_models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """OpenRLHF logged the exception and trained on None; open-r1 made it 0."""
    monkeypatch.chdir(tmp_path)
    config = str(make_config(tmp_path, gpt2_models, SOMETIMES))
    words = ["--config", config]
    assert run_here("ppo", words, tmp_path, monkeypatch) == 2
    error = capsys.readouterr().err
    for part in ("1 of 8", "step 1", "sometimes", "prompts.jsonl:4", "is nan", "max_failed = 0"):
        assert part in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    words += ["--resume", "--reward.max_failed", "0.125"]
    assert run_here("ppo", words, tmp_path, monkeypatch) == 0
    for entry in metrics_of(tmp_path / "run"):
        assert entry["reward/sometimes/failed"] == entry["reward/dropped"] == 1
        assert entry["episodes"] == 7 * entry["step"]


@pytest.mark.parametrize("kind", ["gae", "rloo"])
def test_two_processes_drop_the_same_responses_and_whole_groups_where_they_are_compared(
    kind: str, tmp_path: Path, gpt2_models: dict[str, str]
) -> None:
    sections = {
        "advantage": {"kind": kind},
        "rollout": {"batch_size": 8, "samples_per_prompt": 2},
        "reward": {"max_failed": 0.25},
        "evaluation": {"every": 0},
    }
    source = SOMETIMES | {"path": "reward.py:odd"}
    config = make_config(tmp_path, gpt2_models, source, **sections)
    run_script("ppo", config, "--output_dir", "one")
    run_script("ppo", config, "--output_dir", "two", processes=2)
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    for mine, theirs in zip(one, two, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert theirs[name] == pytest.approx(mine[name], rel=1e-3, abs=1e-4), name
    dropped = [(entry["reward/sometimes/failed"], entry["reward/dropped"]) for entry in one]
    assert any(failed for failed, _ in dropped)
    for failed, gone in dropped:
        assert gone == (failed if kind == "gae" else 2 * bool(failed))


@pytest.mark.slow
@pytest.mark.parametrize("over_http", [False, True], ids=["function", "http"])
def test_the_documented_arithmetic_runs_learn(over_http: bool, tmp_path: Path) -> None:
    """configs/arithmetic.yaml and arithmetic_http.yaml: held-out sums, before and after."""
    name = "arithmetic_http" if over_http else "arithmetic"
    script = [sys.executable, "scripts/train.py", "--config", f"configs/{name}.yaml"]
    with reward_server("data/arithmetic/reward.py:right") as url:
        sources = json.dumps([{"kind": "http", "name": "right", "url": url}])
        words = ["--reward.sources", sources] if over_http else []
        run_command([*script, *words, "--output_dir", str(tmp_path / "run")], ROOT)
    summary = json.loads((tmp_path / "run/evaluation/summary.json").read_text("utf-8"))
    assert summary["policy"]["score"]["low"] > summary["reference"]["score"]["high"] + 0.05
