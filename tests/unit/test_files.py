"""What a run keeps on disk: checkpoints, metrics, stamps, results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_config, write_jsonl
from torch import nn

from rlhf_ppo.algorithm.rewards import Moments
from rlhf_ppo.errors import UserError
from rlhf_ppo.stamps import check_stamp, make_stamps, read_stamp, write_stamp
from rlhf_ppo.training.checkpoint import (
    Progress,
    list_checkpoints,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.metrics import append_metrics, cut_metrics
from rlhf_ppo.training.trainer import save_stage


def progress(step: int) -> Progress:
    return Progress(step, 8 * step, 80 * step, 0.05, 0.1, 2.0, Moments(3, 0.1, 1 / 3))


def model_and_optimizer(seed: int, width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 1))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[1].parameters(), lr=0.1)
    model(torch.ones(2, width)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_a_checkpoint_brings_back_weights_optimizer_and_progress(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer(0)
    save_checkpoint(tmp_path, progress(7), model, optimizer, keep=2)
    other, other_optimizer = model_and_optimizer(1)
    frozen = other[0].weight.clone()  # type: ignore[index]
    (found,) = list_checkpoints(tmp_path)
    load_checkpoint(found, other, other_optimizer)
    assert read_progress(found) == progress(7)
    assert torch.equal(model[1].weight, other[1].weight)  # type: ignore[index]
    assert torch.equal(frozen, other[0].weight)  # type: ignore[index]
    one, two = (o.state_dict()["state"][0]["exp_avg"] for o in (optimizer, other_optimizer))
    assert torch.equal(one, two)


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (0, [1, 2, 3, 4])])
def test_the_newest_checkpoints_are_kept(tmp_path: Path, keep: int, left: list[int]) -> None:
    model, optimizer = model_and_optimizer(0)
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, progress(step), model, optimizer, keep)
    assert [read_progress(path).step for path in list_checkpoints(tmp_path)] == left


def test_a_half_written_checkpoint_is_absent_and_its_remains_do_not_disturb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = model_and_optimizer(0)
    save_checkpoint(tmp_path, progress(1), model, optimizer, keep=2)

    def full_disk(*_: Any) -> None:
        raise OSError("No space left on device")

    for function in ("torch.save", "rlhf_ppo.training.checkpoint.save_file"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(function, full_disk)
            save_checkpoint(tmp_path, progress(2), model, optimizer, keep=2)
        assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000001"]
    save_checkpoint(tmp_path, progress(2), model, optimizer, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000001", "step-000002"]
    assert not list(tmp_path.glob(".partial*"))


def test_checkpoints_are_ordered_by_step_beyond_a_million(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer(0)
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path, progress(step), model, optimizer, keep=0)
    assert [read_progress(path).step for path in list_checkpoints(tmp_path)] == [999_999, 1_000_000]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, progress(1), *model_and_optimizer(0), keep=2)
    with pytest.raises(UserError, match="other weights"):
        load_checkpoint(tmp_path / "step-000001", *model_and_optimizer(0, width=4))


def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, progress(1), *model_and_optimizer(0), keep=2)
    (tmp_path / "step-000001" / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        read_progress(tmp_path / "step-000001")


def test_metrics_after_the_checkpoint_are_cut_the_half_line_too(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_metrics(file, {"step": step, "x": 0.5})
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"step": 4, "x"')
    cut_metrics(file, 2)
    append_metrics(file, {"step": 3})
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    cut_metrics(tmp_path / "absent.jsonl", 2)


def test_a_stamp_names_each_setting_that_differs(tmp_path: Path) -> None:
    write_stamp(tmp_path, {"seed": 1, "ppo": {"epochs": 4, "steps": 2}, "list": [1]})
    assert check_stamp(tmp_path, {"seed": 1, "ppo": {"epochs": 4, "steps": 2}, "list": (1,)})
    with pytest.raises(UserError) as caught:
        check_stamp(tmp_path, {"seed": 1, "ppo": {"epochs": 5}, "list": [1]})
    message = str(caught.value)
    assert "ppo.epochs: 4 then, 5 now" in message
    assert "ppo.steps: 2 then, 'not set' now" in message
    assert "seed" not in message
    assert check_stamp(tmp_path / "nothing", {}) is False


def test_a_damaged_stamp_is_reported(tmp_path: Path) -> None:
    (tmp_path / "stage.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        read_stamp(tmp_path)


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"kl": {"beta": 0.7}}, {"ppo", "evaluation"}),
        ({"ppo": {"epochs": 9}}, {"ppo", "evaluation"}),
        ({"ppo": {"steps": 9}}, {"evaluation"}),
        ({"reward_model": {"epochs": 9}}, {"reward_model", "ppo", "evaluation"}),
        ({"sft": {"epochs": 9}}, {"sft", "reward_model", "ppo", "evaluation"}),
        ({"seed": 9}, {"sft", "reward_model", "ppo", "evaluation"}),
        ({"logging": {"sample_every": 9}}, set()),
        ({"checkpoint": {"every": 9}}, set()),
        ({"hardware": {"cpu_threads": 1}}, set()),
        ({"evaluation": {"bootstrap_samples": 9}}, {"evaluation"}),
        ({"output_dir": "elsewhere"}, set()),
    ],
)
def test_a_setting_touches_the_stages_that_depend_on_it(
    change: dict[str, Any], stages: set[str]
) -> None:
    base: dict[str, Any] = {"sft": {}, "reward_model": {}}
    before, after = make_stamps(make_config(**base)), make_stamps(make_config(**base | change))
    assert {stage for stage in before if before[stage] != after[stage]} == stages


def reward_stamp(folder: Path, code: str = "", **settings: Any) -> dict[str, Any]:
    (folder / "r.py").write_text(code, encoding="utf-8")
    sources = [
        {"kind": "http", "url": "http://a/"} | settings,
        {"kind": "function", "path": f"{folder}/r.py:f"},
    ]
    max_failed = settings.pop("max_failed", 0.0)
    sources[0].pop("max_failed", None)
    return make_stamps(make_config(reward={"sources": sources, "max_failed": max_failed}))["ppo"]


def test_a_run_that_a_failing_service_stopped_may_go_on_with_more_patience(tmp_path: Path) -> None:
    before = reward_stamp(tmp_path)
    assert reward_stamp(tmp_path, timeout=99, retries=9, batch_size=1, max_failed=0.5) == before
    for other in ({"weight": 2}, {"url": "http://b/"}, {"normalization": "standardize"}):
        assert reward_stamp(tmp_path, **other) != before, other


def test_a_reward_function_that_was_edited_is_another_reward(tmp_path: Path) -> None:
    assert reward_stamp(tmp_path, "a = 1") != reward_stamp(tmp_path, "a = 2")


def test_changed_data_touches_the_stages_that_read_it(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}])
    config = make_config(sft={}, data={"prompts": source, "demonstrations": source})
    before = make_stamps(config)
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "b"}])
    after = make_stamps(config)
    assert all(before[stage] != after[stage] for stage in ("sft", "ppo", "evaluation"))


def test_a_stage_is_put_in_place_whole_or_not_at_all(tmp_path: Path) -> None:
    processes = Processes(make_config())
    folder = tmp_path / "policy"

    def fail(target: Path) -> None:
        (target / "half").write_text("x", encoding="utf-8")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_stage(folder, processes, {"a": 1}, fail)
    assert not folder.exists()
    save_stage(folder, processes, {"a": 1}, lambda target: (target / "one").touch())
    assert sorted(path.name for path in folder.iterdir()) == ["one", "stage.json"]
    with pytest.raises(OSError, match="No space"):
        save_stage(folder, processes, {"a": 2}, fail)
    assert sorted(path.name for path in folder.iterdir()) == ["one", "stage.json"]


def test_remains_of_a_run_that_died_while_replacing_a_stage_do_not_stop_the_next(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "policy"
    for remains in ("policy", "policy.old", "policy.partial"):
        (tmp_path / remains).mkdir()
        (tmp_path / remains / "old").touch()
    save_stage(folder, Processes(make_config()), {}, lambda target: (target / "new").touch())
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert sorted(path.name for path in folder.iterdir()) == ["new", "stage.json"]
