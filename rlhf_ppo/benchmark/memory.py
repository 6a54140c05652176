"""Memory of PPO with adapters beside a plain LoRA supervised step on the same base model."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from rlhf_ppo.benchmark.compare import Worker, forecast_mb, ours
from rlhf_ppo.benchmark.models import SHAPES, make_assets, make_reward_adapter
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
    """Peak memory of each side above what its imports take (MB), and what we had foretold.

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
            if side == SUPERVISED:
                module = "rlhf_ppo.benchmark.supervised"
                words = [sys.executable, "-m", module, str(folder), str(RANK), str(tokens)]
                worker = Worker(words)
            else:
                worker = ours(folder, side, shape)
            for _ in range(steps):
                worker.step()
            sides[side] = {"memory_mb": max(row["memory_mb"] for row in worker.finish())}
            if side != SUPERVISED:
                sides[side]["forecast_mb"] = forecast_mb(folder, shape, side)
    for found in sides.values():
        found["share"] = found["memory_mb"] / sides[SUPERVISED]["memory_mb"]
    return {"shape": name, "steps": steps, "micro_batch_tokens": tokens, "sides": sides}


def memory_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"{result['shape']}, {result['micro_batch_tokens']} tokens a micro-batch",
        "",
        "| | memory MB | of the supervised step | forecast MB |",
        "|---|---|---|---|",
    ]
    for side, found in result["sides"].items():
        forecast = f"{found['forecast_mb']:.0f}" if "forecast_mb" in found else ""
        lines.append(
            f"| {SIDES[side]} | {found['memory_mb']:.0f} | {found['share']:.2f} | {forecast} |"
        )
    return "\n".join(lines)
