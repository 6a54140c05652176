"""Runs the peer's benchmark script in the peer's own environment, one update for each line.

    PEER_PYTHON peer_gate.py GATE_FILE SCRIPT ARGUMENTS...

Before each update it says so on standard output and waits for a line, so that updates of both sides
can alternate. How long it waited is written to GATE_FILE, for the script counts that as generation.
"""

import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import trl.experimental.ppo.ppo_trainer as trainer

waits: list[float] = []


def gated(generate: Any) -> Any:
    """Wait before the first thing that an update does."""

    def wait_then_generate(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        print(json.dumps({"ready": True}), flush=True)
        sys.stdin.readline()
        waits.append(time.perf_counter() - began)
        return generate(*arguments, **options)

    return wait_then_generate


if __name__ == "__main__":
    gate_file, script, *rest = sys.argv[1:]
    trainer.batch_generation = gated(trainer.batch_generation)
    sys.argv = [script, *rest]
    runpy.run_path(script, run_name="__main__")
    Path(gate_file).write_text(json.dumps(waits), encoding="utf-8")
