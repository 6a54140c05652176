"""Bars, lines and the time left: what a person sees who waits."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from rlhf_ppo import console as console_module
from rlhf_ppo.console import Stepper, _SafeConsole, activity, duration, expect_after, tick
from rlhf_ppo.training.trainer import TrainerProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that only a test moves on."""
    now = [1000.0]
    monkeypatch.setattr("rlhf_ppo.console.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(console_module, "say", lines.append)
    return lines


@pytest.fixture(autouse=True)
def _nothing_ahead() -> Iterator[None]:
    yield
    expect_after()


def test_lines_come_at_first_and_then_in_a_rhythm_that_slows(
    clock: list[float], said: list[str]
) -> None:
    """The story: a stage of an hour had ten lines, the first after six minutes."""
    with Stepper("supervised", 3600, shown=True) as stepper:
        for _ in range(3600):
            clock[0] += 1
            stepper.advance("loss 1.0")
    steps = [int(line.split()[1].split("/")[0]) for line in said]
    assert steps[:4] == [1, 11, 21, 31] and steps[-1] == 3600
    gaps = [later - one for one, later in itertools.pairwise(steps)]
    assert max(gaps[:-1]) <= 3600 / 20 + 1 and len(steps) < 100


def test_the_whole_run_takes_at_least_what_is_known_of_later_stages(
    clock: list[float], said: list[str]
) -> None:
    expect_after(share=2.0, seconds=30)
    with Stepper("supervised", 100, shown=True, every_step=True) as stepper:
        for _ in range(20):
            clock[0] += 2
            stepper.advance()
    # 80 steps of 2 s; then twice the 200 s of this stage, and 30 s.
    assert said[-1] == "supervised 20/100  40 s, 160 s left (whole run: at least 590 s)"
    assert "whole run" not in said[0], "a first step is slow"


def test_a_resumed_stage_expects_later_ones_by_its_own_pace(
    clock: list[float], said: list[str]
) -> None:
    expect_after(share=1.0)
    with Stepper("ppo", 100, shown=True, every_step=True) as stepper:
        stepper.start_at(90)
        for _ in range(8):
            clock[0] += 1
            stepper.advance()
    assert said[-1] == "ppo 98/100  8 s, 2 s left (whole run: at least 102 s)"


def test_ticks_move_the_activity_and_no_other_bar(clock: list[float], said: list[str]) -> None:
    with activity("scores", 40):
        for _ in range(4):
            clock[0] += 6
            tick(10)
    assert said == ["scores 20/40  12 s, 12 s left", "scores 40/40  24 s, 0 s left", "scores: 24 s"]
    said.clear()
    with Stepper("ppo", 4, shown=True) as stepper:
        tick(3)  # the responses of a PPO step
        with activity("held-out prompts", 8):
            clock[0] += 60
            tick(8)
        stepper.advance()
    assert [line.split("  ")[0] for line in said] == ["ppo 1/4"]


def test_an_activity_that_fails_leaves_nothing_open(said: list[str]) -> None:
    with pytest.raises(ZeroDivisionError), activity("scores", 2):
        raise ZeroDivisionError
    assert console_module._open == []
    tick()


def test_what_takes_a_moment_is_not_worth_a_line(said: list[str]) -> None:
    with activity("reading the data"):
        pass
    assert said == []


def test_other_processes_are_silent(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with activity("scores", 2):
        tick(2)
    console_module.begin("settings")
    assert said == []


@pytest.mark.parametrize("width", [1, 7, 20, 80])
def test_a_bar_fits_any_terminal_and_keeps_a_history(
    width: int, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    screen = _SafeConsole(force_terminal=True, width=width, file=file, soft_wrap=True)
    monkeypatch.setattr(console_module, "console", screen)
    with Stepper("ppo", 50, shown=True, every_step=True) as stepper:
        for step in range(50):
            clock[0] += 5
            stepper.advance(f"score {step}.00")
    shown = "".join(file.getvalue().split())
    assert "ppo1/505s" in shown.replace("\x1b[?25l", "") or width < 20
    assert shown.count("score2.00") >= 1 and "score49.00" in shown


@pytest.mark.parametrize("terminal", ["dumb", "unknown"])
def test_a_terminal_without_a_cursor_gets_lines(
    terminal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rich draws nothing there until a bar's end: hours of silence."""
    file = io.StringIO()
    size = {"TERM": terminal}
    screen = _SafeConsole(force_terminal=True, file=file, soft_wrap=True, _environ=size)
    monkeypatch.setattr(console_module, "console", screen)
    with Stepper("ppo", 2, shown=True, every_step=True) as stepper:
        stepper.advance("score 1.00")
        assert "score 1.00" in file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (599, "599 s"), (601, "10 min"), (9000, "2.5 h")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


class Told:
    """Processes that remember what the trackers were sent."""

    is_main = True

    def __init__(self) -> None:
        self.sent: list[tuple[int, str]] = []

    def track(self, values: dict[str, float], step: int, stage: str) -> None:
        self.sent.append((step, stage))


@pytest.mark.parametrize(("steps", "logged"), [(4, [1, 2, 3, 4]), (30, [1, 3, 6]), (900, [1, 10])])
def test_the_first_loss_is_there_after_the_first_optimizer_step(
    steps: int, logged: list[int], said: list[str], tmp_path: Any
) -> None:
    """The story: the first loss came after ten steps, in a short stage never."""
    told = Told()
    progress = TrainerProgress("supervised", "sft", told)  # type: ignore[arg-type]
    arguments, state = TrainingArguments(output_dir=str(tmp_path)), TrainerState()
    state.max_steps = steps
    progress.on_train_begin(arguments, state, TrainerControl())
    for step in range(1, min(steps, 11)):
        state.global_step, control = step, TrainerControl()
        progress.on_step_end(arguments, state, control)
        if control.should_log:  # what the Trainer does then
            progress.on_log(arguments, state, control, {"loss": 1.0 / step})
    progress.close()
    expected = [step for step in logged if step < min(steps, 11)]
    assert [entry["step"] for entry in progress.history][: len(expected)] == expected
    assert told.sent[0] == (1, "sft")
    assert said[0].endswith("loss 1.000")
