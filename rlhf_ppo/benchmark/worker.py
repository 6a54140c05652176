"""One process of the benchmark: our PPO step, each time a line comes in.

    python -m rlhf_ppo.benchmark.worker ASSETS VARIANT SHAPE_AS_JSON [count]

Answers each line on standard input by one JSON object on standard output. `count` also counts the
bytes of live tensors, which is slow.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rlhf_ppo.benchmark.models import Shape
from rlhf_ppo.config import Config
from rlhf_ppo.console import quieten_libraries
from rlhf_ppo.data.prompts import EncodedPrompt, Prompt
from rlhf_ppo.data.sampler import step_rows
from rlhf_ppo.stamps import model_paths
from rlhf_ppo.training.checkpoint import Progress
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.memory import LiveBytes
from rlhf_ppo.training.ppo import HeldOut, PpoRun, ppo_step
from rlhf_ppo.training.roles import build_roles, sampling_settings

EPOCHS = 4
RANK = 8
ADAPTER = "reward_adapter"
VARIANTS: dict[str, dict[str, Any]] = {
    "pooled": {},
    "shared": {"value": {"model": "shared"}},
    "separate": {"value": {"model": "reward", "coefficient": 0.1}},
    "lora": {"lora": {"rank": RANK}},
    "one_base": {"lora": {"rank": RANK}},
    "one_base_values": {"lora": {"rank": RANK}, "value": {"model": "adapter"}},
    "bf16": {"hardware": {"mixed_precision": "bf16", "cpu_threads": 1}},
}


def memory_mb(field: str) -> float:
    """VmRSS (now) or VmHWM (most so far) of this process, MB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def make_config(assets: Path, shape: Shape, variant: str) -> Config:
    """Settings of a variant on the benchmark's models."""
    place = ADAPTER if variant.startswith("one_base") else "reward"
    reward = {"kind": "model", "path": str(assets / place)}
    sections: dict[str, Any] = {
        "output_dir": "unused",
        "policy": {"path": str(assets / "policy")},
        "reward": {"sources": [reward]},
        "rollout": {"batch_size": shape.batch, "max_new_tokens": shape.response},
        "ppo": {"epochs": EPOCHS, "minibatches": 1, "learning_rate": 1e-6},
        "logging": {"trackers": []},
        "hardware": {"cpu_threads": 1},
    }
    return Config.model_validate(sections | VARIANTS[variant])


def make_run(assets: Path, shape: Shape, variant: str) -> PpoRun:
    """A run on the benchmark's models, as `scripts/ppo.py` would build it."""
    config = make_config(assets, shape, variant)
    processes = Processes(config)
    roles, optimizer = build_roles(config, model_paths(config), processes)
    rows = (assets / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = []
    for number, row in enumerate(map(json.loads, rows)):
        prompt = Prompt(number, f"prompts.jsonl:{number + 1}", row["prompt"], {})
        prompts.append(EncodedPrompt(prompt, tuple(row["input_ids"])))
    return PpoRun(
        config=config,
        roles=roles,
        optimizer=optimizer,
        prompts=prompts,
        sampling=sampling_settings(config, roles),
        processes=processes,
        gold=None,
        evaluate=lambda progress: HeldOut({}, {}),
    )


def main(assets: str, variant: str, numbers: str, count: str = "") -> None:
    """Build, then make a step for each line."""
    quieten_libraries()
    with LiveBytes() if count else nullcontext() as live:
        _steps(assets, variant, numbers, live)


def _steps(assets: str, variant: str, numbers: str, live: LiveBytes | None) -> None:
    imported = memory_mb("VmRSS")
    run = make_run(Path(assets), Shape(**json.loads(numbers)), variant)
    progress = Progress(0, 0, 0, beta=run.config.kl.beta)
    print(json.dumps({"ready": True}), flush=True)
    for step, _ in enumerate(sys.stdin, start=1):
        before = progress.tokens
        asked = step_rows(len(run.prompts), run.config.rollout.batch_size, step, run.config.seed)
        progress, metrics, _ = ppo_step(run, step, progress)
        row = {
            "tokens": progress.tokens - before,
            "prompt_tokens": sum(len(run.prompts[row].ids) for row in asked),
            "generate": metrics["time/rollout"],
            "judge": metrics["time/judge"],
            "update": metrics["time/update"],
            "sampler_gap": metrics["policy/sampler_gap"],
            "memory_mb": memory_mb("VmHWM") - imported,
        }
        if live is not None:
            row["tensors_mb"] = live.peak / 2**20
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
