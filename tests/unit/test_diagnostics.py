"""Each finding is made when it should be, alone, once, and never on a healthy run."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from rlhf_ppo.command_line import setting_names
from rlhf_ppo.config import KlConfig, ModelSource
from rlhf_ppo.diagnostics import Diagnosis, Finding, diagnose, read_metrics, write_findings
from rlhf_ppo.diagnostics.checks import CHECKS

Lines = list[dict[str, float]]
ROOT = Path(__file__).parents[2]


def healthy(steps: int = 80) -> Lines:
    """What a run with a value model of its own looks like, noise included (docs/metrics.md)."""
    noise = random.Random(0)
    lines = []
    for step in range(1, steps + 1):
        done = step / steps
        lines.append(
            {
                "step": step,
                "score/mean": 0.4 + 1.6 * done + noise.gauss(0, 0.1),
                "score/std": 1.2 - 0.4 * done,
                "gold/mean": 0.6 + 1.7 * done + noise.gauss(0, 0.1),
                "kl/ref": 3 * done + noise.gauss(0, 0.2),
                "kl/update": 0.002,
                "policy/clip_fraction": 0.01 + 0.005 * noise.random(),
                "policy/optimizer_steps": 8,
                "policy/entropy": 0.38 - 0.15 * done,
                "policy/ratio_first_error": 1e-6,
                "policy/sampler_gap": 6e-6,
                "value/explained_variance": 0.2 * done + noise.gauss(0, 0.03),
                "response/length": 14 + 4 * done,
                "response/stopped": 0.98,
                "group/identical": 0.1,
                "group/equal_scores": 0.2,
                "update/skipped": 0,
                "reward/dropped": 0,
                "grad_norm": 0.3 + 0.2 * noise.random(),
            }
        )
    return lines


def changed(start: int, **values: Any) -> Lines:
    """A healthy run with other numbers from a step on; `a__b` stands for `a/b`."""
    lines = healthy()
    for line in lines[start - 1 :]:
        for name, value in values.items():
            key = name.replace("__", "/")
            line[key] = value(line) if callable(value) else value
    return lines


# What is wrong from which step on, and the step at which it must be said.
SICK: dict[str, tuple[Lines, int]] = {
    "kl_runaway": (changed(50, kl__ref=40), 52),
    "ratio_not_one": (changed(50, policy__ratio_first_error=0.02), 50),
    "sampler_mismatch": (changed(50, policy__sampler_gap=0.7), 50),
    "entropy_collapse": (changed(50, policy__entropy=0.01), 52),
    "entropy_rise": (changed(50, policy__entropy=0.8), 52),
    "values_not_learnt": (changed(1, value__explained_variance=-0.02), 40),
    "clip_fraction_high": (changed(50, policy__clip_fraction=0.5), 52),
    "clip_fraction_zero": (changed(50, policy__clip_fraction=0), 59),
    "length_drift": (changed(50, response__length=60), 51),
    "never_stops": (changed(50, response__stopped=0.1), 51),
    "identical_samples": (changed(50, group__identical=0.9, group__equal_scores=0.95), 51),
    "equal_scores": (changed(50, group__equal_scores=0.9), 51),
    "skipped_updates": (changed(50, update__skipped=1), 50),
    "dropped_rewards": (changed(50, reward__dropped=2), 50),
    "gradient_explosion": (changed(50, grad_norm=30), 50),
    "reward_hacking": (changed(50, gold__mean=lambda line: line["gold/mean"] - 1.2), 57),
    "score_fell": (changed(50, score__mean=0.3), 54),
}


def recorded(name: str) -> Lines:
    """The numbers of a run of the embedded default, seeds 7 and others, rounded."""
    runs = json.loads((ROOT / "tests" / "unit" / "recorded_runs.json").read_text(encoding="utf-8"))
    columns = runs[name]
    count = len(columns["kl/ref"])
    return [
        {"step": row + 1} | {key: values[row] for key, values in columns.items()}
        for row in range(count)
    ]


def side(score: float, gold: float) -> dict[str, dict[str, float]]:
    return {
        "score": {"mean": score, "low": score - 0.1, "high": score + 0.1},
        "gold": {"mean": gold, "low": gold - 0.1, "high": gold + 0.1},
    }


def summary(policy: tuple[float, float], rate: float, **more: Any) -> dict[str, Any]:
    rates = {"score": {"mean": rate, "low": rate - 0.05, "high": rate + 0.05, "ties": 0.1}}
    return {"policy": side(*policy), "reference": side(0.2, 0.6), "win_rate": rates} | more


CHANGE = {"mean": -0.2, "low": -0.3, "high": -0.1}
UP, DOWN = {"mean": 1.8, "low": 1.6, "high": 2.0}, {"mean": -0.5, "low": -0.6, "high": -0.4}
COIN = {"accuracy": 0.55, "low": 0.49, "high": 0.61, "pairs": 299}
WEAK = {"accuracy": 0.58, "low": 0.52, "high": 0.63, "pairs": 299}
WRONG_WAY = {"accuracy": 0.2, "pairs": 50, "p": 1e-5}
WORSE = [{"part": "polite", "reference": 0.9, "policy": 0.7, "change": CHANGE}]
AT_THE_END = {
    "no_gain": summary((0.22, 0.6), 0.52),
    "reward_hacking": summary((2.0, 0.1), 0.9, change={"score": UP, "gold": DOWN}),
    "reward_model_coin": summary((2.0, 2.2), 0.9, reward_model=COIN),
    "reward_model_weak": summary((2.0, 2.2), 0.9, reward_model=WEAK),
    "reward_model_wrong_way": summary(
        (2.0, 2.2),
        0.9,
        reward_model=WEAK | {"accuracy": 0.8, "kinds": {"flattery": WRONG_WAY}},
    ),
    "parts_exploited": summary((2.0, 1.9), 0.9, exploited=WORSE),
}


def test_a_healthy_run_is_left_alone() -> None:
    assert diagnose(healthy(), summary((2.0, 2.2), 0.9)) == []


def test_real_runs_are_told_apart() -> None:
    """Of the value model, of the default, and of two whose trunk the value loss broke."""

    def names(run: str) -> list[str]:
        return [finding.name for finding in diagnose(recorded(run), None)]

    assert names("value_model") == []
    assert names("quickstart") == ["values_not_learnt"]
    assert "entropy_rise" in names("broken_trunk")
    assert names("badly_broken_trunk") == ["entropy_rise", "score_fell"]


@pytest.mark.parametrize("name", SICK)
def test_what_is_wrong_is_said_and_nothing_else(name: str) -> None:
    lines, step = SICK[name]
    (finding,) = diagnose(lines, None)
    assert (finding.name, finding.step) == (name, pytest.approx(step, abs=1))
    assert any(character.isdigit() for character in finding.message), "the numbers seen"
    assert finding.remedy


@pytest.mark.parametrize("name", AT_THE_END)
def test_what_the_evaluation_shows_is_said_at_the_end(name: str) -> None:
    (finding,) = diagnose(healthy(), AT_THE_END[name])
    assert (finding.name, finding.step) == (name, 80)


def test_every_check_has_its_test() -> None:
    assert set(SICK) | set(AT_THE_END) == {check.name for check in CHECKS}


@pytest.mark.parametrize("name", SICK)
def test_step_by_step_says_what_the_whole_says_and_takes_nothing_back(name: str) -> None:
    lines, _ = SICK[name]
    diagnosis, said = Diagnosis(), []
    for number, line in enumerate(lines, start=1):
        said += diagnosis.add(line)
        if number % 10 == 0:
            assert said == diagnosis.findings == diagnose(lines[:number], None)


def test_one_bad_step_is_noise_where_a_mean_is_meant() -> None:
    lines = healthy()
    lines[40] |= {"policy/entropy": 0.2, "policy/clip_fraction": 0.4, "response/stopped": 0.45}
    assert diagnose(lines, None) == []


def test_numbers_that_are_missing_or_not_finite_are_no_finding() -> None:
    assert diagnose([], None) == []
    assert diagnose([{"step": step} for step in range(60)], None) == []
    blind = [line | dict.fromkeys(list(line)[1:], math.nan) for line in healthy()]
    assert diagnose(blind, None) == []
    without_score = {"policy": {"score": {"mean": 1.0, "low": 0.0, "high": 2.0}}}
    assert diagnose([], without_score | {"reference": without_score["policy"]}) == []


def test_the_rounding_of_half_precision_is_no_bug() -> None:
    lines = changed(1, policy__ratio_first_error=0.1, policy__sampler_gap=0.06)
    assert diagnose(lines, None) == []


def test_nothing_is_clipped_while_the_values_warm_up_or_by_a_single_step() -> None:
    warming = changed(1, policy__clip_fraction=0, kl__update=0)
    single = changed(1, policy__clip_fraction=0, policy__optimizer_steps=1)
    assert diagnose(warming, None) == diagnose(single, None) == []


def test_remedies_name_settings_that_exist() -> None:
    names = set(setting_names())
    sections = {name.split(".")[0] for name in names if "." in name}
    for check in CHECKS:
        for word in check.remedy.replace(",", " ").replace(";", " ").replace(":", " ").split():
            section, dot, rest = word.strip("().`").partition(".")
            if dot and section in sections and rest:
                assert f"{section}.{rest}" in names, f"{check.name}: {word}"
    assert "beta" in KlConfig.model_fields and "max_tokens" in ModelSource.model_fields


def test_findings_are_written_as_a_list_of_objects(tmp_path: Path) -> None:
    finding = Finding("never_stops", "warning", 7, "Only 3 %.", "Raise something.")
    write_findings(tmp_path / "diagnostics.json", [finding])
    (read,) = json.loads((tmp_path / "diagnostics.json").read_text(encoding="utf-8"))
    assert Finding(**read) == finding


def test_half_a_line_of_a_killed_run_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2', encoding="utf-8")
    assert read_metrics(file) == [{"step": 1}]
    assert read_metrics(tmp_path / "none.jsonl") == []


def table() -> str:
    """The checks as docs/debugging.md shows them."""
    rows = ["| finding | | made when | why there |", "|---|---|---|---|"]
    rows += [f"| `{c.name}` | {c.severity} | {c.when} | {c.why} |" for c in CHECKS]
    return "\n".join(rows)


def test_the_documentation_has_the_same_limits() -> None:
    text = (ROOT / "docs" / "debugging.md").read_text(encoding="utf-8")
    assert table() in text, f"put this into docs/debugging.md:\n{table()}"
    for check in CHECKS:
        assert f"### {check.name}\n" in text, f"no section on {check.name}"
