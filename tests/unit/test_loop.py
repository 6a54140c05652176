"""The order of a run's steps, around steps that only say what they are told: by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import make_config, read_jsonl
from torch import nn

from rlhf_ppo.training import loop
from rlhf_ppo.training.checkpoint import Progress, list_checkpoints
from rlhf_ppo.training.guard import observe
from rlhf_ppo.training.ppo import HeldOut

SPEED = dict.fromkeys(("tokens_per_second", "rollout", "judge", "update"), 1.0)


class Alone:
    """One process that keeps what it would send to trackers."""

    is_main = True

    def __init__(self) -> None:
        self.tracked: list[int] = []

    def wait(self) -> None:
        """Nobody to wait for."""

    def on_main(self, action: Any) -> None:
        action()

    def track(self, metrics: Any, step: int) -> None:
        self.tracked.append(step)


class Script:
    """A run whose step k has a KL and leaves all weights at k; and its evaluations."""

    def __init__(self, folder: Path, scores: dict[int, float] | None = None, **sections: Any):
        base = {"ppo": {"steps": 6}, "checkpoint": {"every": 0}, "evaluation": {"every": 0}}
        sections = {name: base.get(name, {}) | sections.get(name, {}) for name in base | sections}
        folder.mkdir(parents=True, exist_ok=True)
        self.scores = scores or {}
        self.kl: dict[tuple[int, int], float] = {}  # by rollbacks and step
        self.made: list[int] = []
        self.evaluated: list[int] = []
        self.policy = nn.Linear(1, 1)
        self.policy.weight.data.fill_(0.0)
        self.run: Any = SimpleNamespace(
            config=make_config(output_dir=str(folder), **sections),
            roles=SimpleNamespace(policy=self.policy),
            optimizer=torch.optim.SGD(self.policy.parameters(), lr=0.0),
            processes=Alone(),
            evaluate=self.evaluate,
            batches_after=0,
            checkpoints=folder / "checkpoints",
            metrics_file=folder / "metrics.jsonl",
            heldout_file=folder / "heldout.jsonl",
            failures=folder / "failures",
        )

    @property
    def weight(self) -> float:
        return self.policy.weight.item()

    def evaluate(self, progress: Progress) -> HeldOut:
        self.evaluated.append(progress.step)
        score = self.scores.get(progress.step, 0.0)
        return HeldOut({"heldout/score": score}, {"score": [score]})

    def step(self, run: Any, step: int, progress: Progress) -> Any:
        self.made.append(step)
        self.policy.weight.data.fill_(float(step))
        kl = self.kl.get((progress.watch.rollbacks, step), 0.0)
        metrics = {"step": step, "kl/ref": kl, "score/mean": 1.0}
        metrics |= {f"throughput/{name}": value for name, value in SPEED.items()}
        watch = observe(progress.watch, kl, 1.0, 1.0, 0)
        return replace(progress, step=step, watch=watch, episodes=8 * step), metrics, "sample"

    def train(self, monkeypatch: pytest.MonkeyPatch) -> Progress:
        with monkeypatch.context() as patch:
            patch.setattr(loop, "ppo_step", self.step)
            return loop.train_ppo(self.run)

    def checkpoints(self) -> list[str]:
        return [path.name for path in list_checkpoints(self.run.checkpoints)]


@pytest.mark.parametrize(
    ("every", "keep", "left"),
    [(0, 0, []), (2, 0, [2, 4, 6]), (4, 0, [4, 6]), (2, 1, [6]), (9, 0, [6])],
)
def test_checkpoints_are_made_when_due_and_at_the_end(
    every: int, keep: int, left: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(tmp_path, checkpoint={"every": every, "keep": keep})
    assert script.train(monkeypatch).step == 6
    assert script.checkpoints() == [f"step-{step:06d}" for step in left]
    assert script.made == list(range(1, 7)) == script.run.processes.tracked


def test_a_run_goes_on_from_its_newest_checkpoint_and_forgets_what_came_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "checkpoint": {"every": 2, "keep": 0},
        "evaluation": {"every": 1},
    }
    first = Script(tmp_path, **settings)
    first.train(monkeypatch)
    (first.run.checkpoints / "step-000006" / "state.json").unlink()  # as if killed in step 6
    again = Script(tmp_path, **settings)
    assert again.train(monkeypatch).step == 6
    assert again.made == [5, 6]
    assert again.evaluated == [5]  # the start was evaluated, the end is not the loop's business
    steps = [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in read_jsonl(tmp_path / "heldout.jsonl")] == [0, 1, 2, 3, 4, 5]


def test_a_policy_that_has_learnt_is_not_evaluated_as_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluation was turned on in the middle: step 2 is not the reference, which came at step 0."""
    Script(tmp_path, checkpoint={"every": 2}, ppo={"steps": 2}).train(monkeypatch)
    again = Script(tmp_path, checkpoint={"every": 2}, ppo={"steps": 5}, evaluation={"every": 1})
    again.train(monkeypatch)
    assert again.evaluated == [3, 4]


def test_what_was_learnt_is_what_a_resumed_run_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Script(tmp_path, checkpoint={"every": 2, "keep": 0}, ppo={"steps": 4}).train(monkeypatch)
    again = Script(tmp_path, checkpoint={"every": 2, "keep": 0}, ppo={"steps": 4})
    end = again.train(monkeypatch)
    assert (end.step, end.episodes, again.weight, again.made) == (4, 32, 4.0, [])


def test_a_finished_run_that_is_started_again_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Script(tmp_path, checkpoint={"every": 3}).train(monkeypatch)
    saved: list[Any] = []
    monkeypatch.setattr(loop, "save_checkpoint", lambda *given: saved.append(given))
    Script(tmp_path, checkpoint={"every": 3}).train(monkeypatch)
    assert not saved


def test_the_start_has_the_beta_and_the_penalty_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(
        tmp_path, kl={"beta": 0.3}, ppo={"steps": 1, "objective": "kl_penalty", "penalty": 4.0}
    )
    end = script.train(monkeypatch)
    assert (end.beta, end.penalty) == (0.3, 4.0)


# ---- evaluations


@pytest.mark.parametrize(
    ("every", "save", "expected"),
    [(0, "last", []), (2, "last", [0, 2, 4]), (4, "last", [0, 4]), (2, "best", [0, 2, 4, 6]),
     (1, "last", [0, 1, 2, 3, 4, 5])],
)  # fmt: skip
def test_evaluations_come_when_due_but_not_after_the_last_step_unless_the_best_is_wanted(
    every: int, save: str, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"every": 2, "save": save}
    script = Script(tmp_path, evaluation={"every": every}, checkpoint=settings)
    script.train(monkeypatch)
    assert script.evaluated == expected
    if every:
        lines = read_jsonl(tmp_path / "heldout.jsonl")
        assert [line["step"] for line in lines] == expected


def best(folder: Path, scores: list[float], **sections: Any) -> Script:
    return Script(
        folder,
        dict(enumerate(scores, start=1)),
        checkpoint={"every": 2, "keep": 0, "save": "best"},
        evaluation={"every": 1},
        ppo={"steps": len(scores)},
        **sections,
    )


@pytest.mark.parametrize(
    ("scores", "step"),
    [([1.0, 3.0, 2.0], 2), ([-3.0, -2.0, -5.0], 2), ([2.0, 1.0], 1), ([1.0, 1.0, 0.0], 1),
     ([0.0, 1.0, 2.0], 3)],
)  # fmt: skip
def test_the_policy_with_the_highest_held_out_score_is_left_the_first_of_equals(
    scores: list[float], step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = best(tmp_path, scores)
    end = script.train(monkeypatch)
    assert (end.best_step, end.best_score) == (step, scores[step - 1])
    assert script.weight == float(step)
    assert end.step == len(scores)


def test_a_policy_beyond_a_limit_is_not_the_best_however_high_its_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = best(tmp_path, [1.0, 9.0, 0.5], guard={"max_kl": 5.0})
    script.kl = {(0, 2): 6.0}
    end = script.train(monkeypatch)
    assert (end.step, end.best_step, script.weight) == (2, 1, 1.0)  # the guard stopped it there


# ---- rollbacks


def guarded(folder: Path, every: int = 1, steps: int = 6, **guard: Any) -> Script:
    guard = {"max_kl": 5.0, "action": "rollback", "max_rollbacks": 2} | guard
    return Script(
        folder,
        guard=guard,
        checkpoint={"every": every, "keep": 0},
        evaluation={"every": 1},
        ppo={"steps": steps},
    )


def test_a_rollback_goes_to_the_newest_checkpoint_before_the_policy_that_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 5 measures what step 4 left, so the checkpoint of step 4 holds the trouble."""
    script = guarded(tmp_path)
    script.kl = {(0, 5): 9.0}
    end = script.train(monkeypatch)
    assert script.made == [1, 2, 3, 4, 5, 4, 5, 6]
    assert (end.step, end.watch.rollbacks, script.weight) == (6, 1, 6.0)
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    taken = tmp_path / "failures"
    assert [line["step"] for line in read_jsonl(taken / "rollback-1.jsonl")] == [4, 5]
    assert [line["step"] for line in read_jsonl(taken / "heldout-rollback-1.jsonl")] == [4, 5]
    assert script.checkpoints() == [f"step-{step:06d}" for step in range(7)]


def test_a_checkpoint_that_is_in_trouble_itself_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a lower limit after a resume: the newest checkpoints were fine when they were made."""
    before = guarded(tmp_path, steps=4, max_kl=99.0)
    before.kl = {(0, 3): 7.0, (0, 2): 6.0, (0, 4): 8.0}
    before.train(monkeypatch)
    script = guarded(tmp_path)
    script.train(monkeypatch)
    assert script.made[0] == 2  # from the checkpoint of step 1
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_weights_and_later_checkpoints_are_those_of_the_step_gone_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = guarded(tmp_path, every=2)
    script.kl = {(0, 5): 9.0}
    seen: list[tuple[int, float, list[str]]] = []
    step = script.step

    def watching(run: Any, number: int, progress: Progress) -> Any:
        seen.append((number, script.weight, script.checkpoints()))
        return step(run, number, progress)

    script.step = watching  # type: ignore[method-assign]
    script.train(monkeypatch)
    (again,) = [found for found in seen[5:] if found[0] == 3]
    assert again == (3, 2.0, ["step-000000", "step-000002"])


@pytest.mark.parametrize(("allowed", "rollbacks"), [(1, 1), (2, 2), (3, 3)])
def test_after_the_last_rollback_that_is_allowed_the_run_stops(
    allowed: int, rollbacks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = guarded(tmp_path, max_rollbacks=allowed)
    script.kl = {(count, 4): 9.0 for count in range(9)}
    end = script.train(monkeypatch)
    assert (end.step, end.watch.rollbacks) == (4, rollbacks)
    assert len(script.made) == 4 + 2 * rollbacks


def test_without_rollbacks_the_run_stops_where_the_guard_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(tmp_path, guard={"max_kl": 5.0}, checkpoint={"every": 2})
    script.kl = {(0, 3): 9.0}
    assert script.train(monkeypatch).step == 3
    assert script.checkpoints()[-1] == "step-000003"
