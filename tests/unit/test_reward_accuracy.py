"""A reward model's accuracy on held-out pairs: with n and interval, and what a coin is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import write_json, write_run

from rlhf_ppo.diagnostics import judge_reward_model
from rlhf_ppo.errors import UserError
from rlhf_ppo.report.folder import read_run
from rlhf_ppo.report.page import report_html
from rlhf_ppo.report.verdict import cautions, judge_run
from rlhf_ppo.rewards.accuracy import (
    accuracy_of,
    accuracy_text,
    overall,
    read_accuracy,
    with_intervals,
)
from rlhf_ppo.training.reward_model import show_accuracy

COIN = {"all": {"pairs": 299, "accuracy": 172 / 299, "margin": 0.1}}  # .575, as met on real data


def names(probes: dict[str, dict[str, float]]) -> list[str]:
    found = with_intervals(probes)
    assert found is not None
    return [finding.name for finding in judge_reward_model(found, 0)]


def margins(right: int, wrong: int, ties: int = 0) -> list[float]:
    return [1.0] * right + [-2.0] * wrong + [0.0] * ties


def test_accuracy_counts_equal_scores_half_and_has_an_interval() -> None:
    found = accuracy_of(margins(7, 2, 1))
    assert (found["pairs"], found["accuracy"], found["ties"]) == (10, 0.75, 1)
    assert found["margin"] == pytest.approx(0.3)
    assert found["low"] <= 0.5 < 0.75 < found["high"] < 1  # 7 of 9: p = .18
    assert found["p"] == pytest.approx(2 * (36 + 9 + 1) / 512)


def test_all_kinds_together_are_their_pairs_together() -> None:
    probes = {"a": accuracy_of(margins(8, 2)), "b": accuracy_of(margins(1, 3, 2))}
    both = overall(probes)
    assert both is not None and both["accuracy"] == pytest.approx(10 / 16)
    whole = accuracy_of(margins(9, 5, 2))
    assert {key: both[key] for key in both} == {key: whole[key] for key in both}
    assert overall({}) is None and with_intervals({}) is None


@pytest.mark.parametrize("kind", [{"pairs": 5, "accuracy": 0.7}, {"pairs": 4, "accuracy": 0.5}])
def test_a_file_of_an_older_version_gets_its_intervals(
    tmp_path: Path, kind: dict[str, float]
) -> None:
    write_json(tmp_path / "probes.json", {"x": kind | {"margin": 0.0}})
    found = read_accuracy(tmp_path)
    assert found is not None and found["accuracy"] == pytest.approx(kind["accuracy"])
    assert found["low"] < kind["accuracy"] < found["high"]
    assert read_accuracy(tmp_path / "nothing") is None
    (tmp_path / "probes.json").write_text('{"x": 3}', encoding="utf-8")
    with pytest.raises(UserError, match=r"probes\.json: damaged"):
        read_accuracy(tmp_path)


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        (5, 0, ["reward_model_coin"]),
        (33, 31, ["reward_model_coin"]),
        (20, 60, ["reward_model_coin", "reward_model_wrong_way"]),
        (172, 127, ["reward_model_weak"]),
        (187, 104, []),
        (12, 0, []),
    ],
)
def test_a_coin_and_a_weak_reward_model_are_findings(
    right: int, wrong: int, found: list[str]
) -> None:
    assert names({"all": accuracy_of(margins(right, wrong))}) == found


def test_a_kind_that_is_learnt_the_wrong_way_round_is_named_among_many() -> None:
    good = {f"kind {place}": accuracy_of(margins(90, 10)) for place in range(11)}
    assert names(good | {"flattery": accuracy_of(margins(20, 80))}) == ["reward_model_wrong_way"]
    # 6 of 20 alone would be p = .12, and 5 of 20 p = .041: among twelve kinds neither is a claim
    assert names(good | {"flattery": accuracy_of(margins(5, 15))}) == []


def test_the_stage_prints_n_interval_and_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    show_accuracy({"helpful": accuracy_of(margins(50, 40)), "rude": accuracy_of(margins(9, 1))})
    out = capsys.readouterr().out
    assert "right order in 0.590 [0.492, 0.681] of 100 held-out pairs (95 % interval)" in out
    assert "helpful" in out and "0.556 [0.453, 0.654] of 90 held-out pairs" in out
    assert "problem reward_model_coin" in out and "try: " in out
    show_accuracy({})
    assert capsys.readouterr().out == ""


def run_of(folder: Path, probes: dict[str, dict[str, float]], *, gold: bool) -> Path:
    write_run(folder, steps=2, prompts=8, gold=gold)
    write_json(folder / "reward_model" / "probes.json", probes)
    write_json(folder / "evaluation" / "diagnostics.json", [])
    return folder


def test_a_rise_by_a_reward_model_that_is_a_coin_is_no_green_headline(tmp_path: Path) -> None:
    """A higher score than before over word salad, green, by a reward model of .58."""
    probes = {"all": accuracy_of(margins(160, 139))}
    run = read_run(run_of(tmp_path / "run", probes, gold=False))
    verdict = judge_run(run)
    assert verdict.kind == "doubtful" and "a reward model that may be a coin" in verdict.lead
    assert accuracy_text(probes["all"]) in verdict.sentence
    assert any("cannot be told from a coin" in words for words in cautions(run))
    page = report_html(run)
    assert "53.5 %" in page and "299 held-out pairs" in page


def test_beside_a_gold_score_a_coin_is_a_caution(tmp_path: Path) -> None:
    run = read_run(run_of(tmp_path / "run", {"all": accuracy_of(margins(33, 31))}, gold=True))
    assert judge_run(run).kind == "better"
    assert any("coin" in words for words in cautions(run))


def test_a_weak_one_is_told_and_a_good_one_is_praised_by_its_numbers_alone(tmp_path: Path) -> None:
    weak = read_run(run_of(tmp_path / "weak", COIN, gold=False))
    assert judge_run(weak).kind == "doubtful" and "weak reward model" in judge_run(weak).lead
    probes = {"all": accuracy_of(margins(187, 104))}
    good = read_run(run_of(tmp_path / "good", probes, gold=False))
    assert (
        judge_run(good).kind == "better"
        and "0.643 [0.586, 0.695] of 291 held-out pairs" in judge_run(good).sentence
    )
    assert not any("reward model" in words for words in cautions(good))


def test_the_table_of_kinds_has_intervals_worst_first(tmp_path: Path) -> None:
    probes = {"slip": accuracy_of(margins(90, 10)), "rude": accuracy_of(margins(65, 35))}
    page = report_html(read_run(run_of(tmp_path / "run", probes, gold=True)))
    assert "0.650 [0.553,\u00a0" in page and page.index(">rude<") < page.index(">slip<")
    (tmp_path / "run" / "reward_model" / "probes.json").write_text(json.dumps({"x": 3}), "utf-8")
    assert "<h1" in report_html(read_run(tmp_path / "run"))
