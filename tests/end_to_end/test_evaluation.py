"""Evaluation as a user runs it: of a run, again otherwise, of two models without a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli import run_here, run_script, write_config
from helpers import given_reward, read_jsonl, write_plain_data

GOLD = """
def score(prompts, responses):
    return [{"score": len(r) / 10 - r.count("e"), "size": len(r), "e": r.count("e")}
            for r in responses]
"""
LISTS = ("score", "gold", "kl", "length", "stopped")


def here(name: str, config: Path, *words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        return run_here(name, ["--config", str(config), *words], config.parent, patch)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, gpt2_models: dict[str, str]) -> Path:
    """Config of a finished run of three steps, beside its folder `run`."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "gold.py").write_text(GOLD, encoding="utf-8")
    settings: dict[str, Any] = {
        "output_dir": "run",
        "data": write_plain_data(folder),
        "policy": {"path": gpt2_models["policy"]},
        "reward": given_reward(gpt2_models["reward"]),
        "rollout": {"batch_size": 6, "max_new_tokens": 8},
        "ppo": {"steps": 3, "epochs": 2, "minibatches": 3, "learning_rate": 0.01},
        "evaluation": {
            "every": 1, "prompts_during_training": 5, "bootstrap_samples": 100,
            "gold": "gold.py:score", "best_of": 4, "best_of_prompts": 6,
        },
        "checkpoint": {"every": 1, "keep": 0},
        "logging": {"trackers": []},
    }  # fmt: skip
    file = write_config(folder / "config.yaml", settings)
    assert here("train", file) == 0
    return file


@pytest.fixture
def copied(config: Path, tmp_path: Path) -> Path:
    """Config of a copy of that run, which a test may change."""
    folder = tmp_path / "copy"
    shutil.copytree(config.parent, folder)
    return folder / "config.yaml"


def found(config: Path, name: str = "summary", run: str = "run") -> Any:
    file = config.parent / run / "evaluation" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def test_heldout_jsonl_holds_the_reference_first_and_a_number_a_prompt(config: Path) -> None:
    lines = read_jsonl(config.parent / "run" / "heldout.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]  # after the last one all are asked
    for line in lines:
        assert set(line) == {"step", *LISTS}
        assert all(len(line[name]) == 5 for name in LISTS)
    samples = read_jsonl(config.parent / "run" / "evaluation" / "samples.jsonl")
    reference = [sample["reference"] for sample in samples[:5]]
    assert lines[0]["kl"] == [0.0] * 5
    assert lines[0]["score"] == pytest.approx([side["score"] for side in reference])
    assert lines[0]["gold"] == [side["gold"]["score"] for side in reference]
    metrics = read_jsonl(config.parent / "run" / "metrics.jsonl")
    for line, entry in zip(lines[1:], metrics, strict=False):
        for name in LISTS:
            assert entry[f"heldout/{name}"] == pytest.approx(sum(line[name]) / 5)
        # The total is linear in its parts, and so are the means.
        parts = entry["heldout/gold/size"] / 10 - entry["heldout/gold/e"]
        assert parts == pytest.approx(entry["heldout/gold"])


def test_a_resumed_run_writes_heldout_jsonl_to_the_bit(config: Path, copied: Path) -> None:
    run = copied.parent / "run"
    for name in ("policy", "evaluation", "checkpoints/step-000002", "checkpoints/step-000003"):
        shutil.rmtree(run / name)
    with (run / "heldout.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 3, "sco')  # killed while writing
    assert here("train", copied, "--resume") == 0
    for name in ("heldout.jsonl", "evaluation/summary.json", "evaluation/frontier.json"):
        whole = config.parent / "run" / name
        assert (run / name).read_bytes() == whole.read_bytes(), name


def test_the_frontier_joins_the_run_s_evaluations_and_its_final_policy(config: Path) -> None:
    frontier = found(config, "frontier")
    assert (frontier["prompts"], frontier["samples_per_prompt"]) == (6, 4)
    assert [point["n"] for point in frontier["best_of_n"]] == [1, 2, 4]
    scores = [point["score"]["mean"] for point in frontier["best_of_n"]]
    assert scores == sorted(scores)
    assert [point["step"] for point in frontier["ppo"]] == [0, 1, 2, 3]
    samples = read_jsonl(config.parent / "run" / "evaluation" / "samples.jsonl")[:5]
    for name in ("score", "kl"):
        last = sum(sample["policy"][name] for sample in samples) / 5
        assert frontier["ppo"][3][name]["mean"] == pytest.approx(last)
    assert frontier["turning_point"]["ppo"]["text"]


def test_greedy_answers_are_those_of_temperature_towards_0(config: Path, copied: Path) -> None:
    words = ["--rollout.temperature", "0.0001", "--output_dir", "run", "--resume"]
    assert here("evaluate", copied, *words) == 0
    cold = read_jsonl(copied.parent / "run" / "evaluation" / "samples.jsonl")
    warm = read_jsonl(config.parent / "run" / "evaluation" / "samples.jsonl")
    for one, other in zip(cold, warm, strict=True):
        for side in ("policy", "reference"):
            assert one[side]["response"] == other["greedy"][side]["response"]
            assert "kl" not in other["greedy"][side]
    assert not found(copied, "frontier")["ppo"]  # the run itself asked at another temperature


def test_other_models_are_compared_without_training_again(
    config: Path, copied: Path, gpt2_models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {
        path: path.read_bytes()
        for path in (copied.parent / "run").rglob("*")
        if path.is_file() and path.parent.name != "evaluation"
    }
    models = f"{{start: {gpt2_models['policy']}, tuned: {copied.parent / 'run' / 'policy'}}}"
    assert here("evaluate", copied, "--evaluation.models", models) == 2
    assert "Evaluate again and replace it by --resume true" in capsys.readouterr().err
    assert here("evaluate", copied, "--evaluation.models", models, "--resume") == 0
    assert "other models against the reference" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    saved = copied.parent / "run" / "evaluation" / "config.yaml"
    assert set(yaml.safe_load(saved.read_text("utf-8"))["evaluation"]["models"]) == {
        "start", "tuned",
    }  # fmt: skip
    summary = found(copied)
    start, tuned = summary["models"]["start"], summary["models"]["tuned"]
    for how, reference in (("sampled", summary["reference"]),
                           ("greedy", summary["greedy"]["reference"])):  # fmt: skip
        side = start[how]["side"]
        kl = side.pop("kl", None)
        assert side == reference
        assert kl == ({"mean": 0.0, "low": 0.0, "high": 0.0} if how == "sampled" else None)
        for by in ("score", "gold"):
            rate = start[how]["win_rate"][by]
            assert (rate["mean"], rate["ties"], rate["p"]) == (0.5, 1, 1)
            assert start[how]["length_controlled"][by]["mean"] == 0.5
    assert tuned["sampled"]["side"]["kl"]["mean"] == pytest.approx(summary["policy"]["kl"]["mean"])
    assert tuned["sampled"]["win_rate"] == summary["win_rate"]
    sample = read_jsonl(copied.parent / "run" / "evaluation" / "samples.jsonl")[0]
    assert sample["models"]["tuned"]["greedy"] == sample["greedy"]["policy"]


def test_two_processes_find_what_one_finds(config: Path, copied: Path) -> None:
    models = f"{{tuned: {copied.parent / 'run' / 'policy'}}}"
    words = ["--evaluation.models", models, "--resume"]
    assert here("evaluate", copied, *words) == 0
    alone = [found(copied), found(copied, "frontier")]
    run_script("evaluate", copied, *words, processes=2)
    for one, two in zip(alone, [found(copied), found(copied, "frontier")], strict=True):
        assert close(one, two)


def close(one: Any, two: Any) -> bool:
    """Equal but for rounding, whatever is nested."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        return all(close(one[name], two[name]) for name in one)
    if isinstance(one, list):
        return all(close(a, b) for a, b in zip(one, two, strict=True))
    assert one == (pytest.approx(two, abs=1e-5) if isinstance(one, float) else two)
    return True


def test_two_models_are_compared_without_any_run(config: Path, gpt2_models: dict[str, str]) -> None:
    trained = str(config.parent / "run" / "policy")
    words = ["--output_dir", "pair", "--evaluation.policy", trained]
    assert here("evaluate", config, *words) == 0
    names = {path.name for path in (config.parent / "pair").iterdir()}
    assert names == {"config.yaml", "data_report.json", "evaluation", "machine.json"}
    ours, theirs = found(config, run="pair"), found(config)
    assert ours["policy"] == theirs["policy"] and ours["greedy"] == theirs["greedy"]
    assert found(config, "frontier", "pair")["ppo"] == []


def test_a_reward_that_says_right_or_wrong_counts_what_is_solved(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against a scorer written here: solved prompts, their exact test, pass@k of 4 samples."""
    right = config.parent / "right.py"
    right.write_text(
        "def right(prompts, responses):\n    return [len(r) % 2 == 0 for r in responses]\n", "utf-8"
    )
    sources = f"[{{kind: function, name: even, path: '{right}:right', correctness: true}}]"
    policy = str(config.parent / "run" / "policy")
    words = ["--output_dir", "solved", "--evaluation.policy", policy, "--reward.sources", sources]
    assert here("evaluate", config, *words) == 0
    output = capsys.readouterr().out
    summary = found(config, run="solved")
    samples = read_jsonl(config.parent / "solved" / "evaluation" / "samples.jsonl")
    pairs = [
        tuple(int(len(sample[side]["response"]) % 2 == 0) for side in ("policy", "reference"))
        for sample in samples
    ]
    assert [(s["policy"]["solved"], s["reference"]["solved"]) for s in samples] == pairs
    solved = summary["solved"]
    assert solved["policy"]["solved"] == sum(ours for ours, _ in pairs)
    assert solved["gained"] == sum(ours > theirs for ours, theirs in pairs)
    assert summary["greedy"]["solved"]["prompts"] == len(samples)
    points = summary["pass_at_k"]["points"]
    assert [point["k"] for point in points] == [1, 2, 4]
    assert points[0]["policy"]["mean"] <= points[1]["policy"]["mean"] <= points[2]["policy"]["mean"]
    assert f"solved, sampled: {solved['reference']['solved']} -> " in output and "pass@4" in output
    page = (config.parent / "solved" / "evaluation" / "report.html").read_text("utf-8")
    assert "Solves" in page and "Training maximised this very score" not in page


BAD = [
    (["--evaluation.best_of", "1"], "evaluation.best_of = 1: the best of one sample"),
    (
        ["--evaluation.best_of", "0", "--evaluation.best_of_prompts", "3"],
        "evaluation.best_of_prompts = 3 has no effect",
    ),
    (
        ["--evaluation.models", "{other: ./nowhere}"],
        "evaluation.models.other: no such model folder",
    ),
    (["--evaluation.models", "{'a b': ./nowhere}"], "evaluation.models"),
    (["--evaluation.policy", "./nowhere"], "evaluation.policy: no such model folder: ./nowhere"),
    (["--evaluation.judge.model", "m"], "evaluation.judge.url: missing"),
    (["--evaluation.judge.url", "localhost", "--evaluation.judge.model", "m"], "judge.url"),
    (
        [
            "--evaluation.judge.url",
            "http://127.0.0.1:9/v1",
            "--evaluation.judge.model",
            "m",
            "--evaluation.judge.template",
            "{prompt}",
        ],
        "lacks {answer_a}, {answer_b}",
    ),
    (
        ["--evaluation.judge.url", "http://127.0.0.1:9/v1", "--evaluation.judge.model", "m"],
        "evaluation.judge.url: http://127.0.0.1:9/v1 gave no verdict",
    ),
]


@pytest.mark.parametrize(("words", "said"), BAD)
def test_what_cannot_be_evaluated_is_said_before_anything_is_written(
    words: list[str], said: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--evaluation.policy" not in words:
        words = ["--evaluation.policy", str(config.parent / "run" / "policy"), *words]
    assert here("evaluate", config, "--output_dir", "new", *words) == 2
    assert said in capsys.readouterr().err
    assert not (config.parent / "new").exists()


def test_a_run_that_makes_a_policy_takes_no_other_one_in_its_place(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--output_dir", "new", "--evaluation.policy", "gpt2"]
    assert here("train", config, *words) == 2
    assert "evaluation.policy = 'gpt2': this run makes a policy" in capsys.readouterr().err
    assert here("evaluate", config, "--output_dir", "new") == 2
    assert "give the model to evaluate as evaluation.policy" in capsys.readouterr().err


def test_a_judge_that_fails_costs_its_own_number_only(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other results have taken hours: they are written, and the failure is told at the end."""
    monkeypatch.setattr("rlhf_ppo.inputs.check_judge", lambda judge, prompt: None)
    judge = ["--evaluation.judge.url", "http://127.0.0.1:9/v1", "--evaluation.judge.model", "m"]
    assert here("evaluate", copied, *judge, "--evaluation.judge.retries", "0", "--resume") == 2
    assert "8 of 8 prompts got no verdict" in capsys.readouterr().err
    assert "judge" not in found(copied) and found(copied)["win_rate"]
    assert len(read_jsonl(copied.parent / "run" / "evaluation" / "judge.jsonl")) == 8
