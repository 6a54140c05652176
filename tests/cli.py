"""Running the scripts as a user does, in a process of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "100",
}


def run_command(
    command: Sequence[str], cwd: Path, expected_code: int = 0, limit: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end within `limit` seconds and check its exit code.

    Its output is in the failure message.
    """
    found = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert found.returncode == expected_code, f"{found.stdout[-3000:]}\n{found.stderr[-3000:]}"
    return found


def run_script(
    name: str, config: Path, *overrides: str, processes: int = 1, expected_code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run scripts/<name>.py with a config file, from its folder."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        launcher += ["--master_port=0", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    command = [*launcher, str(ROOT / "scripts" / f"{name}.py"), "--config", str(config)]
    return run_command([*command, *overrides], config.parent, expected_code)


def run_here(name: str, words: Sequence[str], cwd: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run scripts/<name>.py in this process, as its last line does; returns the exit code.

    Much faster than a process of its own, whose imports alone take seconds.
    """
    monkeypatch.chdir(cwd)
    script = ROOT / "scripts" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    spec = importlib.util.spec_from_file_location(f"script_{name}", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        module.run_script(module.main)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def write_config(path: Path, settings: dict[str, Any]) -> Path:
    """Write a YAML config file."""
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def tiny_sections() -> dict[str, Any]:
    """Settings that keep every stage small."""
    stage = {"epochs": 1, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 0.002}
    return {
        "policy": {
            "scratch": {
                "vocabulary_size": 300,
                "hidden_size": 32,
                "layers": 2,
                "heads": 2,
                "intermediate_size": 48,
                "max_positions": 96,
            }
        },
        "sft": stage,
        "reward_model": stage,
        "rollout": {"batch_size": 6, "max_new_tokens": 10},
        "ppo": {"steps": 2, "epochs": 2, "minibatches": 2, "learning_rate": 0.001},
        "evaluation": {"every": 1, "prompts_during_training": 3, "bootstrap_samples": 100},
        "checkpoint": {"every": 1},
    }


GOLD = """
def score(prompts, responses, topic):
    assert len(prompts) == len(responses) == len(topic)
    return [{"score": len(r) / 10, "vowels": sum(c in "aeiou" for c in r)} for r in responses]
"""
