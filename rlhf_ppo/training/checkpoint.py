"""Checkpoints: complete or absent, never half.

All randomness of a run is a function of seed and step (`rollout/noise.py`, `data/sampler.py`), so a
checkpoint holds what was learnt and a few numbers, and no random state.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rlhf_ppo.algorithm.rewards import Moments
from rlhf_ppo.errors import UserError

WEIGHTS, OPTIMIZER, STATE = "trainable.safetensors", "optimizer.pt", "state.json"


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a PPO step."""

    step: int
    episodes: int
    tokens: int
    beta: float  # weight of the KL to the reference, reward units per nat
    kl_error: float = -1.0  # what the KL controller saw last; KL 0 is far below any target
    penalty: float = 1.0  # weight of KL(old || new), objective kl_penalty
    scores: Moments = field(default_factory=Moments)  # what scores are normalised by
    sources: dict[str, Moments] = field(default_factory=dict)  # and those of each reward source


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int,
) -> None:
    """Write `checkpoints/step-000050` and remove older ones beyond the newest `keep`.

    Args:
        folder: the run's `checkpoints` folder.
        progress: where the run stands.
        model: its trained parameters are saved, the frozen ones are not.
        optimizer: over these parameters.
        keep: newest checkpoints to keep; 0: all.
    """
    target = folder / f"step-{progress.step:06d}"
    partial = folder / f".partial-{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_trained(model), partial / WEIGHTS)
    torch.save(optimizer.state_dict(), partial / OPTIMIZER)
    (partial / STATE).write_text(json.dumps(asdict(progress), indent=2) + "\n", encoding="utf-8")
    if target.exists():  # the same step, from an earlier try that went on from before it
        shutil.rmtree(target)
    partial.rename(target)
    for old in list_checkpoints(folder)[:-keep] if keep else []:
        shutil.rmtree(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    complete = [path for path in folder.glob("step-*") if (path / STATE).is_file()]
    return sorted(complete, key=lambda path: int(path.name.removeprefix("step-")))


def read_progress(checkpoint: Path) -> Progress:
    """Where the run stood at a checkpoint.

    Raises:
        UserError: damaged or from another version.
    """
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        sources = {name: Moments(**found) for name, found in state["sources"].items()}
        return Progress(**state | {"scores": Moments(**state["scores"]), "sources": sources})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{checkpoint / STATE}: damaged or from another version ({error}). Remove this "
            "checkpoint folder to go on from the one before."
        ) from error


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and optimizer state back in place.

    Raises:
        UserError: the checkpoint belongs to another model.
    """
    saved = load_file(checkpoint / WEIGHTS)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    same = saved.keys() == trained.keys() and all(
        saved[name].shape == trained[name].shape for name in saved
    )
    if not same:
        raise UserError(
            f"{checkpoint}: holds other weights than this model trains. Resume with the settings "
            "the run was started with, or choose another output_dir."
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(saved[name])
    state: dict[str, Any] = torch.load(checkpoint / OPTIMIZER, weights_only=True)
    optimizer.load_state_dict(state)


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach().contiguous().cpu()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
