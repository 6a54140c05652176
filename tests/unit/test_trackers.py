"""Trackers get the whole run, and none of them can end it."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState, tracking
from accelerate.utils import LoggerType
from helpers import make_config

from rlhf_ppo.config import Config
from rlhf_ppo.errors import UserError
from rlhf_ppo.training.trackers import Trackers, numbers_of, settings_for_trackers


class FakeRun:
    """A run of W&B or trackio that remembers what it was given."""

    def __init__(self) -> None:
        self.begun: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.lines: list[tuple[dict[str, Any], int | None]] = []
        self.axes: dict[str, str] = {}
        self.ended = False
        self.broken = ""

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        if self.broken == "log":
            raise ConnectionError("server is away\nat great length")
        self.lines.append((values, step))

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric

    def finish(self) -> None:
        if self.broken == "finish":
            raise SystemExit(1)
        self.ended = True


@pytest.fixture(autouse=True)
def _processes() -> None:
    """Accelerate's trackers ask who they are; a run has joined its processes by then."""
    PartialState(cpu=True)


@pytest.fixture(params=["wandb", "trackio"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(name: str, monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    """The run that a module of that name, which is not installed here, begins."""
    run, module = FakeRun(), types.ModuleType(name)

    def init(**words: Any) -> FakeRun:
        if run.broken == "init":
            raise RuntimeError("No API key configured. Use `wandb login` to log in.")
        run.begun = words
        return run

    def update(values: dict[str, Any], allow_val_change: bool) -> None:
        run.config.update(values)

    module.init = init  # type: ignore[attr-defined]
    module.config = types.SimpleNamespace(update=update)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    here = [*tracking.get_available_trackers(), LoggerType(name)]
    monkeypatch.setattr(tracking, "_available_trackers", here)
    return run


def config_with(folder: Path, *trackers: str) -> Config:
    logging = {"trackers": trackers, "project": "ours"}
    return make_config(output_dir=str(folder / "my_run"), logging=logging, seed=7)


def test_a_tracker_knows_the_project_the_run_and_every_setting(
    name: str, run: FakeRun, tmp_path: Path
) -> None:
    """The story: W&B showed seed and beta alone, of a run called dainty-sunset-0."""
    config = config_with(tmp_path, name)
    Trackers(config).close()
    assert run.begun == {"project": "ours", "name": "my_run"} and run.ended
    assert run.config["ppo.learning_rate"] == config.ppo.learning_rate
    assert run.config["seed"] == 7 and run.config["lora"] == "null"
    assert json.loads(run.config["logging.trackers"]) == [name]
    leaves = {type(value) for value in run.config.values()}
    assert leaves <= {int, float, str, bool}, "other types are refused by TensorBoard"


def test_all_stages_are_one_run_and_the_step_is_no_number_of_its_own(
    name: str, run: FakeRun, tmp_path: Path
) -> None:
    """The story: trackio renamed a reserved key `step` in every line."""
    trackers = Trackers(config_with(tmp_path, name))
    trackers.log({"loss": 2.0}, 10, "sft")
    trackers.log({"step": 1, "kl/ref": 0.5}, 1)
    trackers.log({"win_rate/score/mean": 0.6}, 300, "evaluation")
    values = [line[0] for line in run.lines]
    if name == "wandb":  # its own step only goes up, and stages begin anew
        assert [step for _, step in run.lines] == [None] * 3
        assert run.axes == {
            "*": "step",
            "sft/*": "sft/step",
            "reward_model/*": "reward_model/step",
        }
        places = [{"sft/step": 10}, {"step": 1}, {"step": 300}]
    else:
        assert [step for _, step in run.lines] == [10, 1, 300]
        places = [{}, {}, {}]
    assert values == [
        {"sft/loss": 2.0, **places[0]},
        {"kl/ref": 0.5, **places[1]},
        {"evaluation/win_rate/score/mean": 0.6, **places[2]},
    ]


def test_one_that_cannot_be_opened_is_refused_before_anything_is_written(
    name: str, run: FakeRun, tmp_path: Path
) -> None:
    """The story: W&B without a key was a traceback after hours, when PPO began."""
    run.broken = "init"
    with pytest.raises(UserError) as error:
        Trackers(config_with(tmp_path, "tensorboard", name))
    message = str(error.value)
    assert "logging.trackers" in message and "No API key" in message
    assert ("WANDB_MODE=offline" in message) == (name == "wandb")
    assert not (tmp_path / "my_run").exists(), "TensorBoard was not opened before"


@pytest.mark.parametrize("place", ["log", "finish"])
def test_one_that_fails_later_is_reported_once_and_the_run_goes_on(
    place: str, name: str, run: FakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trackers = Trackers(config_with(tmp_path, name, "tensorboard"))
    trackers.log({"loss": 1.0}, 1)
    run.broken = place
    for step in (2, 3):
        trackers.log({"loss": 1.0}, step)
    trackers.close()
    out = capsys.readouterr().out
    assert out.count(f"logging.trackers: {name} failed") == 1
    assert "at great length" not in out
    assert len(run.lines) == (1 if place == "log" else 3)
    assert list((tmp_path / "my_run" / "tensorboard").glob("events*")), "the other one went on"


def test_a_tensorboard_folder_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "my_run").mkdir()
    (tmp_path / "my_run" / "tensorboard").write_text("a file", encoding="utf-8")
    with pytest.raises(UserError, match=r"logging\.trackers: tensorboard could not be opened"):
        Trackers(config_with(tmp_path, "tensorboard"))


def test_other_processes_open_none(name: str, run: FakeRun, tmp_path: Path) -> None:
    trackers = Trackers(config_with(tmp_path, name), opened_here=False)
    trackers.log({"loss": 1.0}, 1)
    assert not run.begun and not run.lines


def test_settings_are_flat_and_complete() -> None:
    flat = settings_for_trackers(make_config(reward={"sources": [{"kind": "model"}]}))
    assert isinstance(flat["kl.beta"], float) and flat["advantage.kind"] == "gae"
    assert json.loads(str(flat["reward.sources"]))[0]["kind"] == "model"


def test_numbers_of_a_summary_by_their_paths() -> None:
    summary = {
        "prompts": 3,
        "policy": {"score": {"mean": 1.5, "low": float("nan")}},
        "exploited": [{"part": "manner"}],
        "title": "words",
        "paid": True,
    }
    assert numbers_of(summary) == {"prompts": 3, "policy/score/mean": 1.5}
