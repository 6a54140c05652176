"""The numbers of a step by hand from tensors, and what is kept of them on disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import make_config, read_jsonl, write_jsonl
from safetensors.torch import load_file
from tensors import mask_of, response_tokens, train_batch
from torch import Tensor

import rlhf_ppo.training.metrics as metrics_module
from rlhf_ppo.algorithm.batch import Minibatch, Responses, Rollout
from rlhf_ppo.rewards.combine import Weighed
from rlhf_ppo.rewards.judgement import Failure
from rlhf_ppo.training.failures import MOST, save_failure
from rlhf_ppo.training.metrics import (
    append_metrics,
    cut_metrics,
    group_metrics,
    peak_memory_gib,
    rollout_metrics,
    source_metrics,
    throughput,
    update_metrics,
)
from rlhf_ppo.training.train_batch import loss_settings
from rlhf_ppo.training.update import UpdateStats

JUNK = 77.0  # in the padding
ROWS = ([1.0, 1.0, 1.0], [1.0])


def table(*rows: list[float]) -> Tensor:
    """(B, R) with junk in the padding."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[JUNK] * (width - len(row))] for row in rows])


def rollout() -> Rollout:
    mask = mask_of(*ROWS)
    sampled = table([-1.0, -2.0, -3.0], [-0.5]) + 5 * ~mask
    return Rollout(
        Responses(
            response_tokens(mask), sampled, torch.tensor([False, False]), torch.tensor([4, 2])
        ),
        logprobs=table([-1.0, -2.25, -3.0], [-0.25]),
        ref_logprobs=table([-1.5, -2.0, -4.0], [-2.0]) - JUNK * ~mask,
        values=torch.zeros(mask.shape),
        entropy=torch.zeros(mask.shape),
        source_scores=torch.zeros(2, 1),
    )


def test_the_numbers_of_a_rollout_by_hand() -> None:
    """KL: a mean over responses of sums over their tokens; the gap: the largest of any token."""
    mask = mask_of(*ROWS)
    values, returns = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0, 0]]), 2 * mask * torch.ones(2, 3)
    returns[0] = torch.tensor([2.0, 4.0, 0.0])
    batch = train_batch(mask, values=values, returns=returns)
    weighed = Weighed(torch.tensor([1.0, 4.0]), {}, {})
    found = rollout_metrics(rollout(), weighed, torch.tensor([0.5, 1.0]), batch, True)
    assert found["kl/ref"] == pytest.approx(((0.5 - 0.25 + 1.0) + 1.75) / 2)
    assert found["policy/sampler_gap"] == pytest.approx(0.25)
    assert (found["score/mean"], found["score/std"]) == (2.5, 1.5)
    assert found["score/shaped"] == 0.75
    assert found["response/length"] == 2.0
    assert found["response/stopped"] == 0.0
    kept = [(1.0, 2.0), (2.0, 4.0), (3.0, 0.0), (4.0, 2.0)]  # V, return
    rest = [g - v for v, g in kept]

    def variance(x: list[float]) -> float:
        return sum((item - sum(x) / len(x)) ** 2 for item in x) / len(x)

    explained = 1 - variance(rest) / variance([g for _, g in kept])
    assert found["value/explained_variance"] == pytest.approx(explained)
    without = rollout_metrics(rollout(), weighed, torch.zeros(2), batch, False)
    assert "value/explained_variance" not in without


def test_a_sampler_that_saw_more_is_as_far_off_as_one_that_saw_less() -> None:
    found = rollout()
    found.logprobs[0, 0] -= 0.75
    weighed, batch = Weighed(torch.zeros(2), {}, {}), train_batch(mask_of(*ROWS))
    metrics = rollout_metrics(found, weighed, torch.zeros(2), batch, False)
    assert metrics["policy/sampler_gap"] == pytest.approx(0.75)


def test_each_source_has_its_mean_and_its_own_failures() -> None:
    failures = [Failure("judge", "d:1", "", ""), Failure("judge", "d:2", "", "")]
    failures.append(Failure("judge2", "d:2", "", ""))
    parts = {"judge": torch.tensor([1.0, 3.0]), "judge2": torch.tensor([5.0, 5.0])}
    assert source_metrics(Weighed(torch.zeros(2), parts, {}), failures, 2) == {
        "reward/judge/mean": 2.0,
        "reward/judge/failed": 2,
        "reward/judge2/mean": 5.0,
        "reward/judge2/failed": 1,
        "reward/dropped": 2,
    }


def test_groups_are_alike_when_all_of_their_samples_are() -> None:
    """Three prompts with samples to compare, and a fourth with one that counts for nothing."""
    rows = [3, 3, 3, 1, 1, 1, 3, 3, 3, 8]
    texts = ["a", "a", "b", "c", "c", "c", "d", "e", "f", "g"]
    scores = torch.tensor([1.0, 1, 2, 5, 5, 5, 4, 4, 4, 9])
    found = group_metrics(rows, texts, scores)
    assert found == {"group/identical": 1 / 3, "group/equal_scores": 2 / 3}
    assert group_metrics([1, 2, 3], ["a", "a", "a"], torch.zeros(3)) == {}


def test_tokens_a_second_over_the_step_and_in_each_phase() -> None:
    found = throughput(120, {"time/rollout": 2.0, "time/judge": 1.0, "time/update": 3.0})
    assert found == {
        "throughput/tokens_per_second": 20.0,
        "throughput/rollout": 60.0,
        "throughput/judge": 120.0,
        "throughput/update": 40.0,
    }
    assert throughput(5, {"time/update": 0.0})["throughput/update"] > 0


STATS = UpdateStats(
    *(float(n) for n in range(1, 10)), torch.zeros(0), ptx_loss=10.0, grad_norm=11.0,
    optimizer_steps=12, skipped=13, skipped_in_row=14,
)  # fmt: skip
ALWAYS = {
    "kl/update": 5.0,
    "policy/loss": 1.0,
    "policy/ratio_max": 8.0,
    "policy/ratio_first_error": 9.0,
    "policy/entropy": 7.0,
    "policy/optimizer_steps": 12,
    "update/skipped": 13,
    "grad_norm": 11.0,
}
VALUES = {"value/loss": 2.0, "value/clip_fraction": 4.0}


@pytest.mark.parametrize(
    ("sections", "with_text", "more"),
    [
        ({}, False, VALUES | {"policy/clip_fraction": 3.0}),
        ({"ppo": {"objective": "surrogate"}}, False, VALUES),
        ({"ppo": {"objective": "kl_penalty"}}, False, VALUES | {"policy/penalty": 1.5}),
        ({"kl": {"place": "loss"}}, False, VALUES | {"policy/clip_fraction": 3.0, "kl/loss": 6.0}),
        ({"advantage": {"kind": "reward_to_go"}}, True,
         {"policy/clip_fraction": 3.0, "ptx/loss": 10.0}),
    ],
)  # fmt: skip
def test_an_update_shows_the_parts_that_its_loss_has(
    sections: dict[str, Any], with_text: bool, more: dict[str, float]
) -> None:
    loss = loss_settings(make_config(**sections), beta=0.2, penalty=1.5)
    assert update_metrics(STATS, loss, with_text) == ALWAYS | more


@pytest.mark.parametrize(("platform", "unit"), [("linux", 2**20), ("darwin", 2**30)])
def test_peak_memory_is_in_gib_on_every_system(
    platform: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's unit is KiB on Linux and bytes on macOS."""
    usage = SimpleNamespace(
        getrusage=lambda who: SimpleNamespace(ru_maxrss=3 * unit), RUSAGE_SELF=0
    )
    monkeypatch.setattr(metrics_module, "resource", usage)
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_memory_gib(torch.device("cpu")) == 3.0


def test_lines_after_the_last_step_are_cut_and_kept_elsewhere(tmp_path: Path) -> None:
    """A half line of a killed run stands between whole ones; a line without a step is none."""
    file, removed = tmp_path / "metrics.jsonl", tmp_path / "failures" / "rollback-1.jsonl"
    for step in (1, 2):
        append_metrics(file, {"step": step})
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"step": 3, "x"\n{"y": 1}\n')
    for step in (3, 4, 5):
        append_metrics(file, {"step": step})
    cut_metrics(file, 3, removed)
    assert [line["step"] for line in read_jsonl(file)] == [1, 2, 3]
    assert [line["step"] for line in read_jsonl(removed)] == [4, 5]
    cut_metrics(file, 3, tmp_path / "nothing.jsonl")
    assert not (tmp_path / "nothing.jsonl").exists()
    cut_metrics(file, 0)
    assert file.read_text(encoding="utf-8") == ""


# ---- minibatches that were skipped


def minibatch(number: float = 1.0) -> Minibatch:
    mask = mask_of([1.0, 1.0], [1.0])
    batch = train_batch(mask, returns=torch.full((2, 2), number))
    return Minibatch(batch, torch.tensor([0.5, 1])).select(torch.arange(2))


def test_a_skipped_minibatch_is_kept_by_the_names_of_its_records(tmp_path: Path) -> None:
    text = response_tokens(mask_of([1.0, 1.0, 1.0]))
    save_failure(tmp_path / "failures", 12, minibatch(), text)
    found = load_file(tmp_path / "failures" / "step-000012.safetensors")
    tokens = {f"tokens.{name}" for name in vars(text)}
    columns = {"logprobs", "ref_logprobs", "values", "advantages", "returns"}
    expected = {f"batch.{name}" for name in tokens | columns} | {"weights"}
    expected |= {f"ptx.{name}" for name in vars(text)}
    assert set(found) == expected
    assert found["weights"].tolist() == [0.5, 1]
    assert found["batch.returns"].tolist() == [[1.0, 1.0]] * 2
    assert found["ptx.response_mask"].shape == (1, 3)
    assert found["batch.tokens.response_mask"].shape == (2, 2)
    assert "load_file" in (tmp_path / "failures" / "README.md").read_text(encoding="utf-8")


def test_the_first_minibatch_of_a_step_and_the_first_steps_are_kept(tmp_path: Path) -> None:
    for step in range(MOST + 3):
        save_failure(tmp_path, step, minibatch(1.0), None)
        save_failure(tmp_path, step, minibatch(2.0), None)
    kept = sorted(tmp_path.glob("step-*"))
    assert [int(file.stem.removeprefix("step-")) for file in kept] == list(range(MOST))
    for file in kept:
        assert load_file(file)["batch.returns"].unique().tolist() == [1.0]


def test_metrics_are_added_one_line_a_step(tmp_path: Path) -> None:
    file = Path(write_jsonl(tmp_path / "metrics.jsonl", [{"step": 1}]))
    append_metrics(file, {"step": 2, "kl/ref": 0.5})
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1}, {"step": 2, "kl/ref": 0.5}]
