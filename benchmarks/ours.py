"""One run of ours: python benchmarks/ours.py FOLDER [--value.model policy ...], see learning.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from sentiment import __file__ as reward_file
from tasks import Record, Task, read_task

from rlhf_ppo.command_line import load_config, run_script
from rlhf_ppo.data.prompts import encode_prompts
from rlhf_ppo.prepare import prepare
from rlhf_ppo.stamps import model_paths
from rlhf_ppo.training.checkpoint import Progress
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.ppo import HeldOut, PpoRun, ppo_step
from rlhf_ppo.training.roles import build_roles, sampling_settings


def settings(task: Task, folder: Path) -> dict[str, Any]:
    """A task in the words of our config; all else is the default, which is what is measured."""
    reward = {"kind": "function", "name": "sentiment", "path": f"{reward_file}:sentiment"}
    return {
        "seed": task.seed,
        "output_dir": str(folder / "unused"),
        "data": {"prompts": task.prompts, "heldout_prompts": task.heldout},
        "policy": {"path": task.model},
        "sft": None,
        "reward_model": None,
        "reward": {"sources": [reward]},
        "rollout": {
            "batch_size": task.batch_size // task.group_size,
            "samples_per_prompt": task.group_size,
            "max_new_tokens": task.response_tokens,
        },
        "ppo": {
            "steps": task.steps,
            "epochs": task.epochs,
            "learning_rate": task.learning_rate,
        },
        "value": {"coefficient": task.value_coefficient},
        "kl": {"beta": task.beta},
        "logging": {"trackers": []},
        "hardware": {"cpu_threads": 1},
    }


def make_run(task: Task, folder: Path, overrides: Sequence[str]) -> PpoRun:
    """A run as `scripts/ppo.py` builds it."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(settings(task, folder)), encoding="utf-8")
    config = load_config(["--config", str(file), *overrides], file)
    inputs = prepare(config, ["ppo"]).inputs
    processes = Processes(config)
    roles, optimizer = build_roles(config, model_paths(config), processes)
    limit = config.data.max_prompt_tokens
    prompts, _ = encode_prompts(inputs.train_prompts, roles.tokenizer, limit, "data.prompts")
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


def main(arguments: Sequence[str]) -> None:
    """Train, and leave `steps.jsonl` and policies."""
    folder = Path(arguments[0])
    task = read_task(folder / "task.json")
    run = make_run(task, folder, arguments[1:])
    progress = Progress(0, 0, 0, beta=run.config.kl.beta)
    record = Record(folder, task)
    made = 0
    for step in range(1, task.steps + 1):
        before = progress.tokens
        progress, metrics, _ = ppo_step(run, step, progress)
        made += int(metrics["policy/optimizer_steps"])
        measured = {"score": metrics["score/mean"], "kl": metrics["kl/ref"]} | {
            name: metrics[name]
            for name in ("value/explained_variance", "kl/update", "policy/ratio_max", "grad_norm")
            if name in metrics
        }
        record.add(measured, made, progress.tokens - before)
        record.keep(step, run.roles.policy.lm)


if __name__ == "__main__":
    run_script(main)
