"""Runs that go wrong on purpose: what is skipped, stopped, taken back, and what stays the best."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import patch_optimizer_step
from cli import run_command
from helpers import read_jsonl
from runs import START, make_run
from safetensors.torch import load_file
from torch import Tensor, nn

import rlhf_ppo.training.loop as loop_module
import rlhf_ppo.training.ppo as ppo_module
import rlhf_ppo.training.update as update_module
from rlhf_ppo.algorithm.losses import ppo_loss
from rlhf_ppo.config import GuardConfig
from rlhf_ppo.models.forward import Layout
from rlhf_ppo.rewards.judgement import Judgement
from rlhf_ppo.rollout.collect import collect
from rlhf_ppo.training.checkpoint import Progress, list_checkpoints
from rlhf_ppo.training.guard import trouble
from rlhf_ppo.training.loop import train_ppo
from rlhf_ppo.training.ppo import HeldOut, PpoRun, ppo_step

VOLATILE = ("time/", "throughput/", "memory/")


def weights(run: PpoRun) -> str:
    """One word for all trained weights."""
    digest = hashlib.sha256()
    for parameter in run.roles.policy.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def optimizer_state(run: PpoRun) -> list[Tensor]:
    state = run.optimizer.state_dict()["state"]
    return [tensor.clone() for one in state.values() for tensor in one.values()]


def small_run(folder: Path, **sections: Any) -> PpoRun:
    base: dict[str, Any] = {
        "rollout": {"batch_size": 8, "max_new_tokens": 6},
        "ppo": {"steps": 6, "epochs": 1, "minibatches": 2, "learning_rate": 0.001},
        "checkpoint": {"every": 2},
        "evaluation": {"every": 0},
    }
    folder.mkdir(exist_ok=True)
    for name, section in sections.items():
        base[name] = base.get(name, {}) | section
    return make_run(lambda text: text.count("e"), spread=0.3, output_dir=folder, **base)


class BadReference(nn.Module):
    """A reference that gives NaN to the tokens of one response in the given calls, from 1."""

    def __init__(self, run: PpoRun, bad: Sequence[int]) -> None:
        super().__init__()
        self.inner, self.bad, self.calls = run.roles.reference, bad, 0

    def forward(self, layout: Layout, temperature: float) -> Tensor:
        """The inner log-probabilities, or spoiled ones."""
        self.calls += 1
        assert self.inner is not None
        logprobs: Tensor = self.inner(layout, temperature)
        if self.calls in self.bad:
            logprobs[3, layout.mask[3]] = float("nan")
        return logprobs


def with_bad_rewards(run: PpoRun, bad: Sequence[int]) -> PpoRun:
    """Rewards with a KL that is not a number; a score that is none leaves the batch instead."""
    reference: Any = BadReference(run, bad)
    return replace(run, roles=replace(run.roles, reference=reference))


def spoil(how: str, run: PpoRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on something is not finite."""
    if how == "gradient":
        parameter = next(run.roles.policy.lm.parameters())
        parameter.register_hook(lambda gradient: gradient * float("inf"))
    elif how == "weight":
        with torch.no_grad():
            run.roles.policy.value_head.bias.fill_(float("nan"))
    else:  # the loss alone: its gradient stays sound
        monkeypatch.setattr(update_module, "ppo_loss", infinite_loss)


def infinite_loss(*arguments: Any) -> Any:
    terms = ppo_loss(*arguments)
    return replace(terms, loss=terms.loss + float("inf"))


@pytest.mark.parametrize("how", ["gradient", "loss", "weight"])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_optimizer(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path)
    progress, metrics, _ = ppo_step(run, 1, START)
    assert metrics["update/skipped"] == 0 and not (tmp_path / "failures").exists()
    spoil(how, run, monkeypatch)
    before, state = weights(run), optimizer_state(run)
    progress, metrics, _ = ppo_step(run, 2, progress)
    assert metrics["update/skipped"] == 2 and metrics["policy/optimizer_steps"] == 0
    assert weights(run) == before
    for one, other in zip(state, optimizer_state(run), strict=True):
        assert torch.equal(one, other)
    assert progress.watch.skipped == 2
    assert all(math.isfinite(value) for key, value in metrics.items() if key.startswith("policy"))


def test_one_bad_reward_costs_its_step_and_nothing_after_it(tmp_path: Path) -> None:
    """Beta and the moments of the scores would stay NaN for ever."""
    sections: dict[str, Any] = {
        "reward": {"normalization": "standardize", "normalization_from": "running"},
        "kl": {"controller": "adaptive", "beta": 0.1},
        "guard": {"max_skipped": 3},
    }
    run = with_bad_rewards(small_run(tmp_path, **sections), [3])
    progress = train_ppo(run)
    metrics = read_jsonl(tmp_path / "metrics.jsonl")
    assert [entry["update/skipped"] for entry in metrics] == [0, 0, 2, 0, 0, 0]
    assert all(math.isfinite(entry["score/shaped"]) for entry in metrics[3:])
    assert math.isfinite(progress.beta) and math.isfinite(progress.scores.mean)
    assert progress.step == 6 and trouble(run.config.guard, progress.watch) is None


def test_the_minibatch_is_kept_once_and_shows_the_bad_response(tmp_path: Path) -> None:
    run = with_bad_rewards(small_run(tmp_path, advantage={"whiten": False}), [2])
    train_ppo(run)
    folder = tmp_path / "failures"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "step-000002.safetensors",
    ]
    rows = load_file(folder / "step-000002.safetensors")
    bad = (~rows["batch.advantages"].isfinite()).any(dim=1)
    assert int(bad.sum()) == 1 and len(bad) == 4
    code = (folder / "README.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    load = code.split("tokenizer =")[0].replace("step-000012", str(folder / "step-000002"))
    look = "for name" + code.split("for name")[1].split("row = 0")[0]
    shown = run_command([sys.executable, "-c", "\n".join((load, look))], tmp_path).stdout
    assert f"batch.advantages responses {bad.nonzero().flatten().tolist()}" in shown


def test_a_run_of_skips_stops_it_though_it_began_in_the_step_before(tmp_path: Path) -> None:
    run = with_bad_rewards(small_run(tmp_path, guard={"max_skipped": 3}), range(2, 99))
    before = weights(with_steps(run, 1, tmp_path / "one"))
    progress = train_ppo(run)
    assert progress.step == 3
    assert "3 optimizer steps in a row (guard.max_skipped = 3)" in str(
        trouble(run.config.guard, progress.watch)
    )
    skipped = [entry["update/skipped"] for entry in read_jsonl(tmp_path / "metrics.jsonl")]
    assert skipped == [0, 2, 1]
    kept = [path.name for path in (tmp_path / "failures").glob("step-*")]
    assert kept == ["step-000002.safetensors"]  # the first of the row
    assert weights(run) == before


def with_steps(run: PpoRun, steps: int, folder: Path) -> PpoRun:
    """A fresh healthy run of so many steps with the same settings, gone to its end."""
    sections = run.config.model_dump(exclude={"output_dir", "policy", "lora"})
    sections["ppo"]["steps"] = steps
    fresh = small_run(folder, **{k: v for k, v in sections.items() if isinstance(v, dict)})
    train_ppo(fresh)
    return fresh


RUNAWAY: dict[str, Any] = {"ppo": {"learning_rate": 0.02, "steps": 8}, "checkpoint": {"every": 3}}


def test_too_much_kl_stops_the_run_and_a_higher_limit_lets_it_go_on(tmp_path: Path) -> None:
    run = small_run(tmp_path, guard={"max_kl": 1.0}, **RUNAWAY)
    progress = train_ppo(run)
    kl = [entry["kl/ref"] for entry in read_jsonl(tmp_path / "metrics.jsonl")]
    assert 1 < progress.step < 8
    assert kl[-1] > 1.0 >= max(kl[:-1])
    stopped = weights(run)
    again = small_run(tmp_path, guard={"max_kl": 1.0}, **RUNAWAY)
    assert train_ppo(again) == progress and weights(again) == stopped  # not one step further
    higher = small_run(tmp_path, guard={"max_kl": 1e9}, **RUNAWAY)
    assert train_ppo(higher).step == 8
    whole = small_run(tmp_path / "free", **RUNAWAY)
    train_ppo(whole)
    assert weights(higher) == weights(whole)


def test_limits_that_are_not_reached_change_nothing(tmp_path: Path) -> None:
    free = small_run(tmp_path / "free")
    guard = {"max_kl": 1e6, "max_score_drop": 50.0, "action": "rollback"}
    guarded = small_run(tmp_path / "guarded", guard=guard)
    train_ppo(free)
    train_ppo(guarded)
    assert weights(free) == weights(guarded)
    assert metrics_of(tmp_path / "free") == metrics_of(tmp_path / "guarded")
    assert not (tmp_path / "guarded" / "failures").exists()


def metrics_of(folder: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in entry.items() if not key.startswith(VOLATILE)}
        for entry in read_jsonl(folder / "metrics.jsonl")
    ]


ROLLBACK = {"max_kl": 1.0, "action": "rollback", "max_rollbacks": 8, "learning_rate_factor": 0.5}


def test_a_rollback_goes_back_with_other_noise_and_a_lower_rate_until_it_holds(
    tmp_path: Path,
) -> None:
    run = small_run(tmp_path, guard=ROLLBACK, **RUNAWAY)
    progress = train_ppo(run)
    count = progress.watch.rollbacks
    assert progress.step == 8 and count >= 2
    kept = read_jsonl(tmp_path / "metrics.jsonl")
    assert [entry["step"] for entry in kept] == list(range(1, 9))
    assert all(entry["kl/ref"] <= 1.0 for entry in kept)
    assert kept[-1]["learning_rate"] == pytest.approx(0.02 * 0.5**count)
    first, second = (read_jsonl(tmp_path / "failures" / f"rollback-{n}.jsonl") for n in (1, 2))
    assert first[-1]["kl/ref"] > 1.0
    assert first[0]["step"] == second[0]["step"] == 1  # back to the start, before any checkpoint
    assert first[0]["kl/ref"] == second[0]["kl/ref"] == 0.0  # the weights are those of the start
    assert first[0]["tokens"] != second[0]["tokens"]  # the noise is not


class KilledError(Exception):
    """Stands for a machine that goes away."""


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_a_run_killed_again_and_again_rolls_back_as_one_that_was_not(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after every so many PPO steps, also between a bad step and its rollback."""
    sections = RUNAWAY | {"checkpoint": {"every": 1 if every < 3 else 3}}
    whole = small_run(tmp_path / "whole", guard=ROLLBACK, **sections)
    expected = train_ppo(whole)
    assert expected.watch.rollbacks >= 2
    deaths, left = 0, every

    def mortal(run: PpoRun, step: int, progress: Progress) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError
        return ppo_step(run, step, progress)

    monkeypatch.setattr(loop_module, "ppo_step", mortal)
    while True:
        run = small_run(tmp_path / "killed", guard=ROLLBACK, **sections)
        try:
            found = train_ppo(run)
            break
        except KilledError:
            deaths, left = deaths + 1, every + (deaths if every >= 3 else 0)
    assert deaths >= 2
    assert found == expected
    assert weights(run) == weights(whole)
    assert metrics_of(tmp_path / "killed") == metrics_of(tmp_path / "whole")


def test_after_the_last_rollback_the_run_stops(tmp_path: Path) -> None:
    run = small_run(tmp_path, guard=ROLLBACK | {"max_rollbacks": 1}, **RUNAWAY)
    progress = train_ppo(run)
    assert progress.watch.rollbacks == 1 and progress.step < 8
    assert trouble(run.config.guard, progress.watch) is not None


def test_a_bad_stretch_of_rewards_is_taken_back_by_a_rollback(tmp_path: Path) -> None:
    guard = {"max_skipped": 2, "action": "rollback"}
    run = with_bad_rewards(small_run(tmp_path, guard=guard), [4])
    progress = train_ppo(run)
    assert progress.step == 6 and progress.watch.rollbacks == 1
    assert all(math.isfinite(entry["kl/ref"]) for entry in metrics_of(tmp_path))
    lines = read_jsonl(tmp_path / "failures" / "rollback-1.jsonl")
    assert [entry["step"] for entry in lines] == [3, 4]


def test_a_collapse_of_the_score_stops_the_run(tmp_path: Path) -> None:
    run = small_run(tmp_path, guard={"max_score_drop": 1.0}, ppo={"steps": 20})
    calls = 0

    def score(prompts: Any, responses: Any) -> Judgement:
        nonlocal calls
        calls += 1
        spread = torch.linspace(-1, 1, len(responses))
        return Judgement((spread + (0.0 if calls <= 5 else -3.0))[:, None], [])

    roles = replace(run.roles, reward=type("Falling", (), {"score": staticmethod(score)})())
    progress = train_ppo(replace(run, roles=roles))
    assert 6 < progress.step < 10
    assert "guard.max_score_drop = 1" in str(trouble(run.config.guard, progress.watch))


HELDOUT = {1: 1.0, 2: 3.0, 3: 2.0, 4: 3.0, 5: 2.9, 6: -1.0}
BEST: dict[str, Any] = {"checkpoint": {"every": 2, "keep": 1, "save": "best"}}


def judged(run: PpoRun, scores: dict[int, float] = HELDOUT) -> PpoRun:
    return replace(run, evaluate=lambda progress: heldout(scores.get(progress.step, 0.0)))


def heldout(score: float) -> HeldOut:
    return HeldOut({"heldout/score": score}, {"score": [score]})


def test_the_policy_with_the_best_held_out_score_is_left_and_outlives_keep(tmp_path: Path) -> None:
    sections = BEST | {"evaluation": {"every": 1}}
    run = judged(small_run(tmp_path, **sections))
    progress = train_ppo(run)
    assert (progress.step, progress.best_step, progress.best_score) == (6, 2, 3.0)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best-000002", "step-000006"]
    assert weights(run) == weights(with_steps(small_run(tmp_path), 2, tmp_path / "two"))
    assert read_jsonl(tmp_path / "metrics.jsonl")[-1]["heldout/score"] == -1.0


def test_without_an_evaluation_due_the_last_step_is_judged_all_the_same(tmp_path: Path) -> None:
    run = judged(small_run(tmp_path, evaluation={"every": 4}, **BEST), HELDOUT | {6: 9.0})
    assert train_ppo(run).best_step == 6


@pytest.mark.parametrize("died_after", range(1, 6))
def test_the_best_survives_a_resume_though_it_was_followed_by_a_worse_one(
    died_after: int, tmp_path: Path
) -> None:
    """Later policies, which the resumed run makes again, must not have replaced it."""
    sections = BEST | {"evaluation": {"every": 1}}
    whole = judged(small_run(tmp_path / "whole", **sections))
    expected = train_ppo(whole)
    calls = 0

    def mortal(progress: Progress) -> HeldOut:
        nonlocal calls
        calls += progress.step > 0
        if calls > died_after:
            raise KilledError
        return heldout(HELDOUT.get(progress.step, 0.0))

    run = replace(small_run(tmp_path / "killed", **sections), evaluate=mortal)
    with pytest.raises(KilledError):
        train_ppo(run)
    run = judged(small_run(tmp_path / "killed", **sections))
    assert train_ppo(run) == expected
    assert weights(run) == weights(whole)
    names = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert names == ["best-000002", "step-000006"]


def test_a_rollback_forgets_a_best_that_lies_after_it_and_finds_the_one_before(
    tmp_path: Path,
) -> None:
    """The later one had replaced it on disk, and then was not there any more."""
    sections: dict[str, Any] = {
        "checkpoint": {"every": 2, "save": "best"},
        "evaluation": {"every": 1},
        "guard": {"max_skipped": 2, "action": "rollback"},
    }
    run = with_bad_rewards(small_run(tmp_path, **sections), [4])
    scores = iter([0.0, 1.0, 3.0, 5.0, 9.0, 2.0, 2.0, 2.0, 2.0])  # of 0 to 4, then 3 to 6
    progress = train_ppo(replace(run, evaluate=lambda _: heldout(next(scores))))
    kept = [entry["score"] for entry in read_jsonl(tmp_path / "heldout.jsonl")]
    assert kept == [[0.0], [1.0], [3.0], [2.0], [2.0], [2.0], [2.0]]
    gone = read_jsonl(tmp_path / "failures" / "heldout-rollback-1.jsonl")
    assert [(entry["step"], entry["score"]) for entry in gone] == [(3, [5.0]), (4, [9.0])]
    assert progress.watch.rollbacks == 1 and progress.step == 6
    assert (progress.best_step, progress.best_score) == (2, 3.0)
    assert weights(run) == weights(with_steps(small_run(tmp_path / "a"), 2, tmp_path / "b"))


def test_a_policy_beyond_a_limit_is_never_the_best(tmp_path: Path) -> None:
    """A cheated reward model gives its highest score just there."""
    scores = {step: float(step) for step in range(1, 9)}
    sections = RUNAWAY | BEST | {"evaluation": {"every": 1}, "guard": {"max_kl": 1.0}}
    run = judged(small_run(tmp_path, **sections), scores)
    progress = train_ppo(run)
    assert progress.best_step == progress.step - 1


TWO = """
import json, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_health import *
monkeypatch = pytest.MonkeyPatch()
folder = Path({folder!r})
run = small_run(folder)
progress, _, _ = ppo_step(run, 1, START)
if run.processes.rank == 1:
    spoil({how!r}, run, monkeypatch)
before = weights(run)
progress, metrics, _ = ppo_step(run, 2, progress)
found = [metrics["update/skipped"], weights(run) == before, before]
(folder / f"found-{{run.processes.rank}}.json").write_text(json.dumps(found))
"""


@pytest.mark.parametrize("how", ["gradient", "loss"])
def test_two_processes_skip_alike_what_only_one_of_them_saw(how: str, tmp_path: Path) -> None:
    here = Path(__file__).parent
    script = tmp_path / "two.py"
    paths = [str(here), str(here.parent), str(here.parents[1])]
    script.write_text(TWO.format(paths=paths, folder=str(tmp_path), how=how), encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    launcher += ["--master_port=0", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    run_command([*launcher, str(script)], tmp_path)
    one, two = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1))
    assert one == two and one[:2] == [2, True]
    assert len(list((tmp_path / "failures").glob("step-*"))) == 1


def test_checkpoints_after_the_one_gone_back_to_are_removed(tmp_path: Path) -> None:
    """A run that was stopped leaves one of its bad end; going back must not resume from there."""
    sections = RUNAWAY | {"checkpoint": {"every": 3, "keep": 0}}
    stopped = train_ppo(small_run(tmp_path, guard={"max_kl": 1.0}, **sections))
    ends = [path.name for path in list_checkpoints(tmp_path / "checkpoints")]
    assert ends[-1] == f"step-{stopped.step:06d}"
    found = train_ppo(small_run(tmp_path, guard=ROLLBACK | {"max_kl": 1.0}, **sections))
    assert found.watch.rollbacks >= 1 or found.step == stopped.step


def test_a_loss_scaler_hears_of_a_skipped_step_and_lowers_its_scale(tmp_path: Path) -> None:
    """It must be told, or the next step fails: unscale_() has already been called."""
    run = small_run(tmp_path)
    accelerator = run.processes.accelerator
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler = scaler
    for optimizer in accelerator._optimizers:
        optimizer.scaler = scaler
        optimizer._accelerate_step_called = False
        inner = optimizer.optimizer
        optimizer._optimizer_original_step_method = inner.step
        optimizer._optimizer_patched_step_method = patch_optimizer_step(optimizer, inner.step)
    parameter = next(run.roles.policy.lm.parameters())
    hook = parameter.register_hook(lambda gradient: gradient * float("inf"))
    before = weights(run)
    progress, metrics, _ = ppo_step(run, 1, START)
    assert metrics["update/skipped"] == 2 and weights(run) == before
    assert scaler.get_scale() == 256.0
    hook.remove()
    _, metrics, _ = ppo_step(run, 2, progress)
    assert metrics["update/skipped"] == 0 and metrics["policy/optimizer_steps"] == 2
    assert weights(run) != before


def test_a_token_that_the_reference_thinks_impossible_does_not_spoil_beta(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log-ratio is infinite; one such token would have left beta infinite for ever."""
    run = small_run(tmp_path, kl={"controller": "adaptive", "beta": 0.1})

    def poisoned(*arguments: Any) -> Any:
        rollout, failures = collect(*arguments)
        rollout.ref_logprobs[0, 0] = -math.inf
        return rollout, failures

    progress, _, _ = ppo_step(run, 1, START)
    with monkeypatch.context() as patch:
        patch.setattr(ppo_module, "collect", poisoned)
        after, metrics, _ = ppo_step(run, 2, progress)
    assert metrics["kl/ref"] == math.inf and metrics["update/skipped"] == 2
    assert (after.beta, after.kl_error) == (progress.beta, progress.kl_error)
    assert trouble(GuardConfig(max_kl=1e6), after.watch) is not None
    _, metrics, _ = ppo_step(run, 3, after)
    assert metrics["update/skipped"] == 0 and math.isfinite(metrics["kl/ref"])
