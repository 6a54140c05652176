"""Ctrl-C and SIGTERM: what is said to be there to go on from is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli import ROOT
from helpers import make_config

from rlhf_ppo import stopping
from rlhf_ppo.errors import StoppedError, UserError
from rlhf_ppo.stopping import told_when_stopped, what_is_there

STAGES = ("sft", "reward_model", "ppo", "evaluation")


def words(
    monkeypatch: pytest.MonkeyPatch, stage: str, kept: set[str], step: int | None, **more: Any
) -> str:
    """What a run says that was stopped in a stage after 766 seconds."""
    monkeypatch.setattr(stopping, "finished_stages", lambda *_: kept)
    monkeypatch.setattr(stopping, "list_checkpoints", lambda _: [] if step is None else ["found"])
    monkeypatch.setattr(stopping, "read_progress", lambda _: make_progress(step or 0))
    config = make_config(ppo={"steps": 300}, checkpoint={"every": 50}, **more)
    return what_is_there(config, STAGES, {}, stage, time.monotonic() - 766)


def make_progress(step: int) -> Any:
    from runs import START

    return type(START)(step=step, episodes=0, tokens=0, beta=0.0)


def test_supervised_stages_promise_no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: after 766 s of sft, "go on from the last checkpoint". There was none."""
    text = words(monkeypatch, "sft", set(), None)
    assert text == (
        "sft starts over: it keeps no checkpoints, its 13 min are lost. "
        "Go on by the same command with --resume."
    )
    text = words(monkeypatch, "reward_model", {"sft"}, None)
    assert "reward_model starts over" in text and "Finished and kept: sft." in text


@pytest.mark.parametrize(
    ("step", "part"),
    [
        (None, "ppo starts over: no checkpoint was made yet (checkpoint.every = 50)"),
        (0, "ppo starts over"),  # where a guard could roll back to
        (150, "ppo goes on after step 150 of 300"),
    ],
)
def test_ppo_names_its_newest_checkpoint(
    step: int | None, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = words(monkeypatch, "ppo", {"sft", "reward_model"}, step)
    assert part in text and "kept: sft, reward_model." in text


def test_the_evaluation_keeps_what_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    text = words(monkeypatch, "evaluation", {"sft", "reward_model", "ppo"}, 300)
    assert "evaluation starts over" in text and "sft, reward_model, ppo" in text
    done = words(monkeypatch, "evaluation", set(STAGES), 300)
    assert done == "Finished and kept: sft, reward_model, ppo, evaluation."


def test_results_of_other_settings_are_not_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: Any) -> set[str]:
        raise UserError("made with other settings")

    monkeypatch.setattr(stopping, "finished_stages", other)
    assert "kept:" not in what_is_there(make_config(), STAGES, {}, "sft", time.monotonic())


def test_the_innermost_message_counts_and_the_code_stays() -> None:
    with pytest.raises(StoppedError) as stop:  # noqa: SIM117
        with told_when_stopped(lambda: "outer"), told_when_stopped(lambda: "inner"):
            raise StoppedError(code=143)
    assert (str(stop.value), stop.value.code) == ("inner", 143)


WAITS = """
import time
from rlhf_ppo.console import say
from rlhf_ppo.script import run_script
from rlhf_ppo.stopping import told_when_stopped

def main(words):
    with told_when_stopped(lambda: "Nothing was written."):
        say("waits")
        try:
            time.sleep(60)
        except Exception:
            pass  # a user's function that swallows what it can
        time.sleep(60)

run_script(main)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_one_message_and_its_code(number: int, code: int, tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(WAITS, encoding="utf-8")
    child = subprocess.Popen(
        [sys.executable, str(tmp_path / "waits.py")],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "waits\n"
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (code, "\ninterrupted. Nothing was written.\n")
