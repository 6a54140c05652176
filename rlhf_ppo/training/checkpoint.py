"""Checkpoints: complete or absent, never half.

All randomness of a run is a function of seed and step (`rollout/noise.py`, `data/sampler.py`), so a
checkpoint holds what was learnt and a few numbers, and no random state.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from rlhf_ppo.algorithm.rewards import Moments
from rlhf_ppo.errors import UserError
from rlhf_ppo.training.guard import Watch

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
    watch: Watch = field(default_factory=Watch)  # what the guard has seen
    best_step: int = 0  # whose policy has the best held-out score; 0: none yet
    best_score: float = 0.0  # that score, reward units


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

    def write(partial: Path) -> None:
        save_file(_trained(model), partial / WEIGHTS)
        torch.save(optimizer.state_dict(), partial / OPTIMIZER)
        state = json.dumps(asdict(progress), indent=2)
        (partial / STATE).write_text(state + "\n", encoding="utf-8")

    _put(folder / f"step-{progress.step:06d}", write)
    for old in list_checkpoints(folder)[:-keep] if keep else []:
        shutil.rmtree(old)
    _prune_best(folder, progress.best_step)


def save_best(folder: Path, step: int, model: nn.Module) -> None:
    """Keep the trained parameters of the best policy so far as `checkpoints/best-000050`.

    Older ones go, except those that a checkpoint still names: a run that goes on from there must
    find what it had.
    """
    _put(best_folder(folder, step), lambda partial: save_file(_trained(model), partial / WEIGHTS))
    _prune_best(folder, step)


def best_folder(folder: Path, step: int) -> Path:
    """Where the policy of a step lies that had the best held-out score."""
    return folder / f"best-{step:06d}"


def remove_checkpoints(checkpoints: Sequence[Path]) -> None:
    """Remove the given ones."""
    for checkpoint in checkpoints:
        shutil.rmtree(checkpoint)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    complete = [path for path in folder.glob("step-*") if (path / STATE).is_file()]
    return sorted(complete, key=lambda path: int(path.name.removeprefix("step-")))


def check_checkpoint(checkpoint: Path) -> None:
    """A run can go on from it, as far as that shows without reading all weights.

    Raises:
        UserError: a file is missing, cut short or empty; that of the best policy so far as well.
    """
    best = read_progress(checkpoint).best_step
    if best:
        file = best_folder(checkpoint.parent, best) / WEIGHTS
        with _reading(file), safe_open(file, framework="pt"):
            pass
    with _reading(checkpoint / WEIGHTS), safe_open(checkpoint / WEIGHTS, framework="pt"):
        pass
    with _reading(checkpoint / OPTIMIZER), ZipFile(checkpoint / OPTIMIZER):  # as torch.save writes
        pass


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what PyTorch and Safetensors raise on a damaged file into one `UserError`.

    Raises:
        UserError: in place of any other exception; only reading runs inside.
    """
    try:
        yield
    except Exception as error:
        best = file.parent.name.startswith("best-")
        reason = "missing" if not file.is_file() else f"damaged ({type(error).__name__}: {error})"
        raise UserError(
            f"{file}: {reason.splitlines()[0]}. "
            + (
                "Put it back, or set checkpoint.save to last."
                if best
                else f"Remove the checkpoint {file.parent} to go on from the one before, or from "
                "the start if it is the only one."
            )
        ) from error


def read_progress(checkpoint: Path) -> Progress:
    """Where the run stood at a checkpoint.

    Raises:
        UserError: damaged or from another version.
    """
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        nested = {
            "scores": Moments(**state["scores"]),
            "sources": {name: Moments(**found) for name, found in state["sources"].items()},
            "watch": Watch(**state["watch"]),
        }
        return Progress(**state | nested)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{checkpoint / STATE}: damaged or from another version ({error}). Remove this "
            "checkpoint folder to go on from the one before."
        ) from error


def load_checkpoint(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and optimizer state back in place.

    Raises:
        UserError: the checkpoint is damaged, or belongs to another model.
    """
    load_weights(checkpoint, model)
    with _reading(checkpoint / OPTIMIZER):
        state: dict[str, Any] = torch.load(checkpoint / OPTIMIZER, weights_only=True)
        optimizer.load_state_dict(state)


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Put the trained parameters back in place.

    Raises:
        UserError: they belong to another model, are damaged, or are not there.
    """
    with _reading(checkpoint / WEIGHTS):
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


def _put(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, then put it in place: complete or not at all."""
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    if target.exists():  # the same step, from an earlier try that went on from before it
        shutil.rmtree(target)
    partial.rename(target)


def _prune_best(folder: Path, step: int) -> None:
    """Remove all best policies but that of `step` and those that a checkpoint names."""
    named = {read_progress(checkpoint).best_step for checkpoint in list_checkpoints(folder)}
    needed = {best_folder(folder, number) for number in {step, *named}}
    for old in set(folder.glob("best-*")) - needed:
        shutil.rmtree(old)


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach().contiguous().cpu()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
