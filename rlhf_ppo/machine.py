"""`machine.json`: what a run was computed with, and how long each stage took."""

import json
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rlhf_ppo.training.distributed import Processes, available_cores

FILE = "machine.json"
PACKAGES = ("rlhf_ppo", "torch", "transformers", "accelerate", "trl", "peft", "datasets")


def write_machine(folder: Path, processes: Processes) -> None:
    """Write versions and hardware; the seconds and starts of an interrupted run are kept.

    Args:
        folder: the run's.
        processes: of the run.
    """
    before = _read(folder)
    found = {
        "versions": {"python": platform.python_version()} | _versions(),
        "system": platform.platform(),
        "device": _device_name(processes.device),
        "processes": processes.world,
        "threads": torch.get_num_threads(),
        "cores": available_cores(),
        "precision": processes.precision,
        "commit": _commit(),
        "starts": [*before.get("starts", []), datetime.now(UTC).isoformat(timespec="seconds")],
        "seconds": before.get("seconds", {}),
    }
    _write(folder, found)


@contextmanager
def timed_stage(folder: Path, stage: str, processes: Processes) -> Iterator[None]:
    """Add the seconds of a stage to `machine.json`, also if it ends by an exception."""
    started = time.monotonic()
    try:
        yield
    finally:
        if processes.is_main:
            found = _read(folder)
            seconds = found.setdefault("seconds", {})
            seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - started, 3)
            _write(folder, found)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type if device.type != "cpu" else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this program, if it runs from a checkout; "+": with changes on top."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():  # else git would look further up, at another project
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+"]
    try:
        found = subprocess.run(
            [*command, "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _read(folder: Path) -> dict[str, Any]:
    """What is known so far; a file that is damaged counts for nothing."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(folder: Path, found: dict[str, Any]) -> None:
    """Complete or not at all."""
    partial = folder / f"{FILE}.partial"
    partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / FILE)
