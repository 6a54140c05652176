"""Memory of PPO with adapters beside a plain LoRA supervised step on the same base model."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ppo.benchmark.compare import Worker, forecast_mb, ours
from rlhf_ppo.benchmark.models import SHAPES, Shape, make_assets, make_reward_adapter
from rlhf_ppo.benchmark.worker import RANK, make_config
from rlhf_ppo.plan import training_tokens

SUPERVISED = "supervised"
SIDES = {
    SUPERVISED: "plain LoRA supervised step",
    "one_base": "PPO: policy, reference, values, reward on one base",
    "one_base_values": "the same, values with an adapter of their own",
    "lora": "PPO: LoRA, reward model of its own",
    "separate": "PPO: four models, all weights",
}


def run_memory(name: str, steps: int) -> dict[str, Any]:
    """Peak memory of each side above what its imports take, and what we had foretold, MB.

    Two numbers a side. What the tensors take is what was asked for, counted: that is also what a
    GPU's allocator hands out. What the process takes comes on top on a CPU: the libraries' buffers
    and the holes that the C allocator leaves, which differ from run to run.

    Args:
        name: a shape, see `models.SHAPES`.
        steps: of each side, one process after the other.
    """
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_assets(shape, folder)
        make_reward_adapter(folder, RANK)
        tokens = training_tokens(make_config(folder, shape, "one_base").ppo, "cpu", False)
        sides: dict[str, dict[str, float]] = {}
        for side in SIDES:
            sides[side] = {}
            for number, words in (("memory_mb", ()), ("tensors_mb", ("count",))):
                worker = _start(folder, side, shape, tokens, words)
                for _ in range(steps):
                    worker.step()
                sides[side][number] = max(row[number] for row in worker.finish())
            if side != SUPERVISED:
                sides[side]["forecast_mb"] = forecast_mb(folder, shape, side)
    for found in sides.values():
        for number in ("memory", "tensors"):
            found[f"{number}_share"] = found[f"{number}_mb"] / sides[SUPERVISED][f"{number}_mb"]
    return {"shape": name, "steps": steps, "micro_batch_tokens": tokens, "sides": sides}


def _start(folder: Path, side: str, shape: Shape, tokens: int, words: Sequence[str]) -> Worker:
    if side != SUPERVISED:
        return ours(folder, side, shape, *words)
    module = "rlhf_ppo.benchmark.supervised"
    return Worker([sys.executable, "-m", module, str(folder), str(RANK), str(tokens), *words])


def memory_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"{result['shape']}, {result['micro_batch_tokens']} tokens a micro-batch",
        "",
        "| | tensors MB | of supervised | process MB | of supervised | forecast MB |",
        "|---|---|---|---|---|---|",
    ]
    for side, found in result["sides"].items():
        forecast = f"{found['forecast_mb']:.0f}" if "forecast_mb" in found else ""
        cells = [f"{found['tensors_mb']:.0f}", f"{found['tensors_share']:.2f}"]
        cells += [f"{found['memory_mb']:.0f}", f"{found['memory_share']:.2f}", forecast]
        lines.append(f"| {SIDES[side]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
