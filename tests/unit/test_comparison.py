"""Runs beside one another: any folder, what differs first, run against run on the same prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli import run_here
from report_runs import write_json, write_lines, write_run

from rlhf_ppo.errors import UserError
from rlhf_ppo.evaluation.paired_runs import RunAnswers, common_rows, compare_answers, holm
from rlhf_ppo.report.compare import answers_of, comparison_text
from rlhf_ppo.report.folder import read_run
from rlhf_ppo.report.page import comparison_html
from rlhf_ppo.report.settings import different_settings


def rows(golds: list[float], prompt: str = "q") -> list[dict[str, Any]]:
    return [
        {"prompt": f"{prompt} {place}", "policy": {"response": "x", "gold": {"score": gold}}}
        for place, gold in enumerate(golds)
    ]


def run(name: str, golds: list[float], unit: str | None = "g") -> RunAnswers:
    return RunAnswers(name, rows(golds), {"gold": unit})


def with_settings(folder: Path, **settings: Any) -> Path:
    write_run(folder, steps=2, prompts=12)
    file = folder / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name, value in settings.items():
        section, _, key = name.rpartition("__")
        (config[section] if section else config)[key] = value
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def test_two_runs_are_paired_by_prompt_with_an_exact_test() -> None:
    (found,) = compare_answers([run("a", [1.0] * 9 + [0.0] * 55), run("b", [0.0] * 63 + [1.0])])
    assert (found.wins, found.losses, found.prompts) == (9, 1, 64)
    assert found.rate == pytest.approx((9 + 54 / 2) / 64) and found.p == pytest.approx(22 / 1024)
    assert found.low > 0.5 and found.verdict == "a is better"
    (found,) = compare_answers([run("a", [0.0] * 63 + [1.0]), run("b", [1.0] * 9 + [0.0] * 55)])
    assert found.high < 0.5 and found.verdict == "b is better"
    (found,) = compare_answers([run("a", [0.0] * 64), run("b", [1.0] * 5 + [0.0] * 59)])
    assert found.high >= 0.5 and found.verdict == "cannot be told apart"  # p = .0625


def test_many_pairs_need_more_than_one() -> None:
    """Six wins of six are p = .031 between two runs, and no claim among the pairs of four."""
    better, same = [1.0] * 6 + [0.0] * 58, [0.0] * 64
    (alone,) = compare_answers([run("a", better), run("b", same)])
    assert alone.verdict == "a is better"
    family = compare_answers([run("a", better), *(run(name, same) for name in "bcd")])
    assert len(family) == 6 and {item.verdict for item in family} == {"cannot be told apart"}
    assert all(item.low <= 0.5 <= item.high for item in family)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_numbers_in_other_units_are_not_compared() -> None:
    assert compare_answers([run("a", [1.0]), run("b", [0.0], unit="other")]) == []
    assert compare_answers([run("a", [1.0]), run("b", [0.0], unit=None)]) == []


def test_a_prompt_that_stands_twice_is_matched_by_its_turn() -> None:
    one = rows([1.0, 2.0], "same") + rows([3.0], "same")
    other = rows([5.0], "same") + rows([6.0], "same")
    pairs = [
        tuple(row["policy"]["gold"]["score"] for row in pair) for pair in common_rows([one, other])
    ]
    assert pairs == [(1.0, 5.0), (3.0, 6.0)]


def test_any_folders_can_be_compared_and_what_differs_comes_first(tmp_path: Path) -> None:
    """Two runs were refused until they were called METHOD-SEED."""
    one = with_settings(tmp_path / "gsm_ppo")
    other = with_settings(tmp_path / "try two", advantage__kind="grpo", seed=4)
    text = comparison_text([one, other])
    tables = text.split("\n\n")
    assert tables[0].splitlines() == [
        "| setting that differs | gsm_ppo | try two |", "|---|---|---|",
        "| advantage.kind | gae | grpo |",
    ]  # fmt: skip
    assert "| gsm_ppo | 1 | 0.800 |" in tables[1] and "One seed has no interval" in text
    assert "| gsm_ppo over try two | gold | 12 |" in text


def test_runs_that_differ_in_seed_alone_are_one_method(tmp_path: Path) -> None:
    runs = [with_settings(tmp_path / f"a-{seed}", seed=seed) for seed in (1, 2)]
    runs.append(with_settings(tmp_path / "b", seed=1, kl__beta=0.5))
    text = comparison_text(runs)
    assert "| a | 2 | 0.800 [0.800, 0.800] |" in text and "| b | 1 | 0.800 |" in text
    again = with_settings(tmp_path / "again", seed=1)  # on another machine: no second seed
    text = comparison_text([runs[0], again])
    assert "settings: no difference" in text and "| a | 1 |" in text and "| again | 1 |" in text
    with pytest.raises(UserError, match="given twice"):
        comparison_text([again, again])


def test_a_section_that_one_run_leaves_out_is_one_row(tmp_path: Path) -> None:
    """advantage.kind was buried under twenty rows of dashes."""
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0, "learning_rate": 0.1}
    one = read_run(with_settings(tmp_path / "a", lora=lora, advantage__kind="rloo"))
    other = read_run(with_settings(tmp_path / "b"))
    found = dict(different_settings([one, other]))
    assert found == {"advantage.kind": ["rloo", "gae"], "lora": ["set", "left out"]}


def test_scores_are_compared_where_one_reward_model_gave_them(tmp_path: Path) -> None:
    runs = [with_settings(tmp_path / name) for name in ("a", "b")]
    for folder, seed in zip(runs, (1, 1), strict=True):
        write_json(folder / "reward_model" / "stage.json", {"seed": seed})
    measures = {item.by for item in compare_answers([answers_of(read_run(f)) for f in runs])}
    assert measures == {"gold", "score"}
    write_json(runs[1] / "reward_model" / "stage.json", {"seed": 2})
    measures = {item.by for item in compare_answers([answers_of(read_run(f)) for f in runs])}
    assert measures == {"gold"}


def test_what_cannot_be_compared_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("compare_runs", [str(tmp_path / "none")], tmp_path, monkeypatch) == 2
    assert "summary.json: not there" in capsys.readouterr().err
    assert run_here("compare_runs", [], tmp_path, monkeypatch) == 2
    assert "folders of finished runs" in capsys.readouterr().err


def test_the_page_shows_pairs_settings_first_and_one_colour_a_run(tmp_path: Path) -> None:
    """A run was blue in the headline and its answers had the other one's orange border."""
    runs = [
        read_run(with_settings(tmp_path / "a", kl__beta=0.5)),
        read_run(with_settings(tmp_path / "b")),
    ]
    page = comparison_html(runs)
    assert page.index("Settings that differ") < page.index("Held-out prompts, mean")
    assert "a over b" in page and "there is none over seeds" in page
    data = json.loads(page.partition('id="sample-data">')[2].partition("</script>")[0])
    assert list(zip(data["columns"], data["styles"], strict=True))[:2] == [
        ("a", "run-0"), ("b", "run-1"),
    ]  # fmt: skip
    assert '<i class="swatch run-0"></i><b>a</b>' in page
    write_lines(tmp_path / "b" / "evaluation" / "samples.jsonl", [])
    assert "a over b" not in comparison_html([runs[0], read_run(tmp_path / "b")])
