"""Checkpoints one by one: which are listed, kept and named, and what comes back from each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rlhf_ppo.algorithm.rewards import Moments
from rlhf_ppo.errors import UserError
from rlhf_ppo.training.checkpoint import (
    Progress,
    best_folder,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    read_progress,
    save_best,
    save_checkpoint,
)
from rlhf_ppo.training.guard import Watch

FULL = Progress(
    step=3,
    episodes=24,
    tokens=240,
    beta=0.07,
    kl_error=0.1,
    penalty=2.0,
    scores=Moments(3, 0.1, 1 / 3),
    sources={"a": Moments(5, 2.0, 7.0), "e/b": Moments(1, 0.0, 0.0)},
    watch=Watch(skipped=1, kl=2.5, score=0.3, best_score=0.4, deviation=1.1, rollbacks=2),
    best_step=2,
    best_score=-1.5,
)


def model(value: float = 1.0, width: int = 3) -> nn.Sequential:
    """A frozen layer and a trained one, all weights alike."""
    made = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))
    made[0].requires_grad_(False)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)
    return made


def optimizer(of: nn.Module, steps: int = 0) -> torch.optim.Optimizer:
    made = torch.optim.AdamW([p for p in of.parameters() if p.requires_grad], lr=0.0)
    for _ in range(steps):
        of(torch.ones(1, 2)).sum().backward()
        made.step()
    return made


def save(folder: Path, progress: Progress, value: float = 1.0, keep: int = 0) -> None:
    of = model(value)
    save_checkpoint(folder, progress, of, optimizer(of), keep)


def names(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def test_every_number_of_the_progress_comes_back(tmp_path: Path) -> None:
    save(tmp_path, FULL)
    assert read_progress(tmp_path / "step-000003") == FULL


def test_listed_are_complete_ones_by_their_step_as_a_number(tmp_path: Path) -> None:
    for step in (1_000_000, 5, 999_999, 40):
        save(tmp_path, replace(FULL, step=step, best_step=0))
    (tmp_path / "step-000041").mkdir()
    (tmp_path / "step-000041" / "trainable.safetensors").touch()
    assert [read_progress(path).step for path in list_checkpoints(tmp_path)] == [
        5,
        40,
        999_999,
        1_000_000,
    ]
    assert list_checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("keep", "left"), [(1, [4]), (2, [3, 4]), (3, [2, 3, 4]), (9, [1, 2, 3, 4])]
)
def test_so_many_of_the_newest_are_kept(tmp_path: Path, keep: int, left: list[int]) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, replace(FULL, step=step, best_step=0), keep=keep)
    assert names(tmp_path, "step-*") == [f"step-{step:06d}" for step in left]


def test_a_step_that_is_made_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    """From an earlier try that a rollback or a resume took back."""
    save(tmp_path, replace(FULL, beta=0.1), value=1.0)
    save(tmp_path, replace(FULL, beta=0.2), value=2.0)
    other = model(0.0)
    load_checkpoint(tmp_path / "step-000003", other, optimizer(other))
    assert read_progress(tmp_path / "step-000003").beta == 0.2
    assert other[1].weight.tolist() == [[2.0, 2.0, 2.0]]
    assert names(tmp_path) == ["step-000003"]


def test_a_run_killed_before_the_last_move_left_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files were there; only the name was not yet the one that counts."""
    save(tmp_path, replace(FULL, step=1))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        save(tmp_path, replace(FULL, step=2))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000001"]
    save(tmp_path, replace(FULL, step=2))
    assert names(tmp_path) == ["step-000001", "step-000002"]


def test_only_what_is_trained_is_saved_and_comes_back_with_the_optimizer(tmp_path: Path) -> None:
    of = model(2.0)
    save_checkpoint(tmp_path, FULL, of, optimizer(of, steps=3), keep=0)
    assert set(load_file(tmp_path / "step-000003" / "trainable.safetensors")) == {
        "1.weight",
        "1.bias",
    }
    other = model(5.0)
    fresh = optimizer(other, steps=1)
    load_checkpoint(tmp_path / "step-000003", other, fresh)
    assert other[1].weight.unique().tolist() == [2.0] and other[1].bias.tolist() == [2.0]
    assert other[0].weight.unique().tolist() == [5.0]
    assert {float(state["step"]) for state in fresh.state_dict()["state"].values()} == {3.0}


@pytest.mark.parametrize(
    "saved",
    [
        {"1.weight": torch.ones(1, 3)},
        {"1.weight": torch.ones(1, 3), "1.bias": torch.ones(1), "2.bias": torch.ones(1)},
        {"1.weight": torch.ones(1, 4), "1.bias": torch.ones(1)},
        {"1.weight": torch.ones(3, 1), "1.bias": torch.ones(1)},
        {"weight": torch.ones(1, 3), "bias": torch.ones(1)},
    ],
    ids=["fewer", "more", "wider", "transposed", "other names"],
)
def test_weights_of_another_model_are_refused_and_nothing_is_loaded(
    saved: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(saved, tmp_path / "trainable.safetensors")
    of = model(7.0)
    with pytest.raises(UserError, match="holds other weights"):
        load_weights(tmp_path, of)
    assert of[1].weight.unique().tolist() == [7.0]


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"best-000009/trainable\.safetensors: missing"):
        load_weights(best_folder(tmp_path, 9), model())


def test_the_best_policy_stays_while_a_checkpoint_names_it(tmp_path: Path) -> None:
    save_best(tmp_path, 1, model(1.0))
    save(tmp_path, replace(FULL, step=1, best_step=1))
    save_best(tmp_path, 2, model(2.0))
    assert names(tmp_path, "best-*") == ["best-000001", "best-000002"]  # step 1 may be resumed
    save(tmp_path, replace(FULL, step=2, best_step=2), keep=1)
    assert names(tmp_path) == ["best-000002", "step-000002"]
    other = model(0.0)
    load_weights(best_folder(tmp_path, 2), other)
    assert other[1].weight.unique().tolist() == [2.0]


def test_a_best_policy_that_nothing_names_goes_when_a_better_one_comes(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_best(tmp_path, step, model())
        assert names(tmp_path) == [f"best-{step:06d}"]
