"""Runs of all stages on tiny data: what a person sees, what trackers get, what Ctrl-C says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli import ENVIRONMENT, ROOT, run_here, tiny_sections, write_config
from helpers import read_jsonl, write_jsonl
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TURNS = [
    {"role": "user", "content": "Where is the drum?"},
    {"role": "assistant", "content": "In the hall."},
]


def write_run(folder: Path, **sections: Any) -> Path:
    """A config of all stages, with prompts of two turns, some of them of other scripts."""
    asked = [[*TURNS, {"role": "user", "content": f"And the saw 你好 {n}?"}] for n in range(16)]
    answer, worse = ({"role": "assistant", "content": text} for text in ("There.", "No."))
    pairs = [{"prompt": p, "chosen": [answer], "rejected": [worse]} for p in asked]
    data = {
        "prompts": write_jsonl(folder / "p.jsonl", [{"prompt": p} for p in asked[:12]]),
        "heldout_prompts": write_jsonl(folder / "h.jsonl", [{"prompt": p} for p in asked[12:]]),
        "demonstrations": write_jsonl(
            folder / "d.jsonl", [{"messages": [*p, answer]} for p in asked]
        ),
        "preferences": write_jsonl(folder / "pairs.jsonl", pairs),
    }
    settings = tiny_sections() | {"output_dir": "run", "data": data} | sections
    settings["policy"]["scratch"]["max_positions"] = 192
    return write_config(folder / "config.yaml", settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run whose terminal knows only ASCII, and what it printed."""
    folder: Path = tmp_path_factory.mktemp("whole")
    config = write_run(folder, logging={"sample_every": 1})
    found = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(config)],
        cwd=folder,
        env=os.environ | ENVIRONMENT | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return folder / "run", found.stdout.decode("ascii")


def test_samples_show_roles_and_what_the_terminal_lacks_as_other_signs(
    whole: tuple[Path, str],
) -> None:
    """The story: a Chinese prompt in a terminal of another encoding ended a run."""
    assert "  sample | user: Where is the drum?\n         | assistant: In the hall." in whole[1]
    assert "         | user: And the saw ?? " in whole[1]
    assert "  asked   user: Where is the drum?\n          assistant: In the hall." in whole[1]


def test_every_stage_says_what_follows_and_shows_its_first_loss(whole: tuple[Path, str]) -> None:
    folder, said = whole
    assert said.startswith("settings of ") and "loading libraries" in said.split("\n")[0]
    assert "== sft ==  then reward_model, ppo, evaluation" in said
    for title, stage in (("supervised", "sft"), ("reward model", "reward_model")):
        assert f"{title} 1/2  " in said and f"{title} 2/2  " in said
        history = read_jsonl(folder / stage / "metrics.jsonl")
        assert [line["step"] for line in history] == [1, 2]


def test_tensorboard_has_the_curves_of_every_stage(whole: tuple[Path, str]) -> None:
    """The story: the supervised stages and the evaluation never reached a tracker."""
    folder = whole[0]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for stage in ("sft", "reward_model"):
        written = {
            line["step"]: line["loss"] for line in read_jsonl(folder / stage / "metrics.jsonl")
        }
        shown = {event.step: event.value for event in events.Scalars(f"{stage}/loss")}
        assert shown == pytest.approx(written)
    assert [event.step for event in events.Scalars("kl/ref")] == [1, 2]
    assert [event.step for event in events.Scalars("evaluation/policy/score/mean")] == [2]


# Where a run is interrupted, and what it then says, one resume after the other.
STOPS = [
    ("rlhf_ppo.prepare.check_inputs", "Nothing was written.", ""),
    ("trl.SFTTrainer.training_step", "sft starts over: it keeps no checkpoints", ""),
    ("trl.RewardTrainer.training_step", "reward_model starts over: it keeps no", "sft"),
    ("rlhf_ppo.training.loop.ppo_step", "ppo starts over: no checkpoint", "sft, reward_model"),
    ("rlhf_ppo.pipeline.save_policy", "ppo goes on after step 2 of 2", "sft, reward_model"),
    ("rlhf_ppo.pipeline.evaluate", "evaluation starts over", "sft, reward_model, ppo"),
    ("rlhf_ppo.pipeline.write_report", "", "sft, reward_model, ppo, evaluation"),
]


def test_control_c_says_what_is_there_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is said to be kept is what the next resume keeps."""
    config = write_run(tmp_path)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    expected = ""
    for place, part, kept in STOPS:
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupt)
            words = ["--config", str(config), "--resume"]
            assert run_here("train", words, tmp_path, patch) == 130
        out, err = capsys.readouterr()
        said = err.split("interrupted. ")[1]
        assert part in said and (f"Finished and kept: {kept}." in said) == bool(kept)
        assert re.findall(r"^(\w+): kept,", out, re.MULTILINE) == expected.split()
        assert (tmp_path / "run").exists() == (part != "Nothing was written.")
        expected = kept.replace(",", "")
