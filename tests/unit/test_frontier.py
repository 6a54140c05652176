"""Best-of-n and the point where gold turns, on data whose truth is known."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from rlhf_ppo.evaluation.best_of_n import best_of, best_of_kl, sizes
from rlhf_ppo.evaluation.frontier import (
    Frontier,
    best_of_path,
    ppo_path,
    summarise_frontier,
)
from rlhf_ppo.evaluation.over_optimisation import FORMS, Form, Found, Path, turning_point
from rlhf_ppo.evaluation.sides import Side


def source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("tied", [False, True])
def test_best_of_n_is_the_mean_over_all_subsets(n: int, tied: bool) -> None:
    scores = torch.randn(4, 6, generator=source(0), dtype=torch.float64)
    if tied:
        scores = scores.mul(1.2).round()
    gold = torch.randn(4, 6, generator=source(1), dtype=torch.float64)
    expected = []
    for row in range(4):
        chosen = []
        for subset in itertools.combinations(range(6), n):
            top = max(float(scores[row, i]) for i in subset)
            best = [float(gold[row, i]) for i in subset if float(scores[row, i]) == top]
            chosen.append(sum(best) / len(best))
        expected.append(sum(chosen) / len(chosen))
    assert best_of(scores, gold, n).tolist() == pytest.approx(expected)


def test_the_kl_formula_is_met_in_the_limit_and_bounds_discrete_models_from_above() -> None:
    """Exact KL of best-of-n of a categorical with distinct scores, by its distribution."""
    for n in (2, 4, 16):
        gaps = []
        for size in (3, 30, 3000):
            upper = torch.arange(1, size + 1, dtype=torch.float64) / size
            lower = upper - 1 / size
            chosen = upper**n - lower**n  # P(the best of n is the i-th)
            kl = float((chosen * (chosen * size).log()).sum())
            assert kl < best_of_kl(n)
            gaps.append(best_of_kl(n) - kl)
        assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 1e-3
    assert best_of_kl(1) == 0


def test_the_sizes_are_powers_of_two_and_the_largest() -> None:
    assert sizes(16) == [1, 2, 4, 8, 16] and sizes(12) == [1, 2, 4, 8, 12] and sizes(2) == [1, 2]


def planted(
    form: Form, alpha: float, beta: float, ds: list[float], noise: float, prompts: int = 64
) -> Path:
    """A path whose gold follows a curve, with noise of each prompt's own along the way."""
    d = torch.tensor([0.0, *ds], dtype=torch.float64)
    inner = d if form == FORMS["best_of_n"] else d.clamp(min=1e-12).log()
    curve = d * (alpha - beta * inner)
    level = torch.randn(prompts, 1, generator=source(7), dtype=torch.float64)
    drawn = torch.randn(prompts, len(d), generator=source(8), dtype=torch.float64)
    gold = curve + level + noise * drawn
    kl = (d**2).expand(prompts, -1)
    steps = [10 * place for place in range(len(d))]
    return Path(kl, 2 * d + level, gold, steps if form == FORMS["ppo"] else None)


CASES = [
    pytest.param(FORMS["best_of_n"], 1.0, 0.3, id="best-of-n"),
    pytest.param(FORMS["ppo"], 1.0, 0.8, id="ppo"),
]


@pytest.mark.parametrize(("form", "alpha", "beta"), CASES)
def test_known_curves_are_found_again(form: Form, alpha: float, beta: float) -> None:
    found = turning_point(planted(form, alpha, beta, [0.5, 1, 2, 3, 4], 1e-6), form, 200, 1)
    assert found.fits is not None
    assert found.fits["gold"]["alpha"] == pytest.approx(alpha, abs=1e-4)
    assert found.fits["gold"]["beta"] == pytest.approx(beta, abs=1e-4)
    assert found.fits["gold"]["form"] == form
    top = alpha / (2 * beta) if form == FORMS["best_of_n"] else math.exp(alpha / beta - 1)
    assert found.turning_point["kl"]["mean"] == pytest.approx(top**2, rel=1e-3)


@pytest.mark.parametrize(("form", "alpha", "beta"), CASES)
def test_a_planted_turning_point_is_found_within_its_interval(
    form: Form, alpha: float, beta: float
) -> None:
    found = turning_point(planted(form, alpha, beta, [0.5, 1, 1.5, 2, 3, 4], 0.8), form, 500, 1)
    point = found.turning_point
    top = alpha / (2 * beta) if form == FORMS["best_of_n"] else math.exp(alpha / beta - 1)
    assert point["found"]
    assert point["kl"]["low"] < top**2 < point["kl"]["high"]
    assert point["kl"]["high"] - point["kl"]["low"] < 4
    assert point["fall"]["low"] > 0
    assert "gold is highest" in point["text"] and ("step" in point) == (form == FORMS["ppo"])
    if form == FORMS["ppo"]:
        assert point["step"]["low"] <= 20 + 10 * (top - 1) / 0.5 <= point["step"]["high"] + 1


FLAT = {
    "flat": (0.0, 0.0, "no rise of gold"),
    "rising": (0.5, 0.0, "no fall after it"),
    "falling": (-0.5, 0.0, "no rise of gold"),
}


@pytest.mark.parametrize("form", FORMS.values())
@pytest.mark.parametrize("shape", FLAT)
def test_flat_rising_and_falling_gold_have_no_turning_point(form: Form, shape: str) -> None:
    alpha, beta, said = FLAT[shape]
    found = turning_point(planted(form, alpha, beta, [0.5, 1, 2, 3, 4], 0.8), form, 300, 1)
    assert found.fits is None and not found.turning_point["found"]
    assert (
        said in found.turning_point["text"] and "no curve is fitted" in found.turning_point["text"]
    )


def test_gold_that_levels_off_is_not_said_to_turn() -> None:
    """A parabola through a saturating curve has a maximum in its middle: the data have none."""
    d = torch.tensor([0.0, 0.5, 1, 2, 3, 4], dtype=torch.float64)
    gold = (1 - torch.exp(-2 * d)) + 0.5 * torch.randn(
        64, 6, generator=source(9), dtype=torch.float64
    )
    path = Path((d**2).expand(64, -1), gold, gold)
    assert (
        "no fall after it" in turning_point(path, FORMS["best_of_n"], 300, 1).turning_point["text"]
    )


def test_a_run_whose_kl_came_back_is_not_said_to_have_turned_at_its_highest_kl() -> None:
    """KL 7.8 at step 25 with gold 1.2, KL 3.0 at the end with gold 1.8: no fall, though the point
    of highest KL lay below the curve's maximum."""
    d = torch.tensor([0.0, 1.0, 1.5, 2.8, 2.0, 1.8, 1.7], dtype=torch.float64)
    gold = torch.tensor([0.7, 1.1, 1.7, 1.2, 1.6, 1.8, 1.8], dtype=torch.float64)
    noise = 0.3 * torch.randn(288, 7, generator=source(3), dtype=torch.float64)
    path = Path((d**2).expand(288, -1), gold + noise, gold + noise, [0, 5, 15, 25, 50, 75, 100])
    found = turning_point(path, FORMS["ppo"], 300, 1)
    assert not found.turning_point["found"] and found.fits is None
    assert "no fall after it" in found.turning_point["text"]


def measured(gold: list[float], d: list[float], noise: float = 0.5) -> Path:
    """Points of 288 prompts whose gold follows no curve of d."""
    drawn = noise * torch.randn(288, len(d), generator=source(3), dtype=torch.float64)
    table = torch.tensor(gold, dtype=torch.float64) + drawn
    kl = torch.tensor(d, dtype=torch.float64).square().expand(288, -1)
    return Path(kl, table, table, [5 * place for place in range(len(d))])


def test_a_rise_that_no_curve_follows_is_told_as_measured() -> None:
    """Gold .7, .9, 1.0, then -1 for ever while d grows to 15: the logarithm saw no rise at all."""
    path = measured([0.7, 0.9, 1.0, 0.4, -0.7, -1, -1, -1, -1], [0, 0.4, 3, 4, 6, 8, 11, 14, 15])
    found = turning_point(path, FORMS["ppo"], 300, 1)
    point = found.turning_point
    assert point["found"] and found.fits is None
    step = point["step"]
    assert step["mean"] == 10 and step["low"] in (0, 5) and step["high"] == 15
    assert point["gold"]["low"] < 1.0 < point["gold"]["high"]
    assert point["fall"]["low"] < 2.0 < point["fall"]["high"]
    assert "does not follow these points" in point["text"]


def test_a_curve_that_sees_the_fall_and_not_the_rise_is_not_drawn() -> None:
    """Its maximum lay at the reference, though gold had doubled before it fell."""
    golds = [0.5, 0.84, 1.08, 0.4, -0.1, -0.7, -0.9, -0.7, -0.6, -1.3, -1.6, -1.5]
    path = measured(golds, [0, 0.4, 2.1, 4.2, 5.2, 6.3, 7.5, 7, 7.6, 11, 11.5, 13.7])
    found = turning_point(path, FORMS["ppo"], 300, 1)
    assert found.turning_point["found"] and found.fits is None
    assert found.turning_point["step"]["mean"] == 10


def test_after_a_kl_that_came_back_a_turn_is_told_as_measured() -> None:
    path = measured([0.7, 1.5, 1.8, 1.6, 0.8, 0.5], [0, 1, 2, 5, 3, 2])
    found = turning_point(path, FORMS["ppo"], 300, 1)
    assert found.turning_point["found"] and found.fits is None
    assert "went to 25.00 nats at step 15 and came back to 4.00" in found.turning_point["text"]


def test_the_fall_is_to_the_last_evaluation_not_to_the_one_of_highest_kl() -> None:
    """A little less KL at the end than in between is noise; its gold is where the run stands."""
    path = planted(FORMS["ppo"], 1.0, 0.8, [0.5, 1, 1.5, 2, 3, 4, 3.9], 0.01)
    point = turning_point(path, FORMS["ppo"], 300, 1).turning_point
    assert path.gold is not None
    gold = path.gold.mean(dim=0)
    assert point["found"]
    assert point["fall"]["mean"] == pytest.approx(float(gold[3] - gold[-1]), abs=0.02)


def test_noise_alone_turns_in_fewer_than_one_run_of_twenty() -> None:
    alarms = 0
    for seed in range(60):
        gold = torch.randn(64, 6, generator=source(100 + seed), dtype=torch.float64)
        kl = torch.tensor([0.0, 0.2, 0.6, 1.2, 1.8, 2.5]).expand(64, -1).double()
        found: Found = turning_point(Path(kl, gold, gold), FORMS["ppo"], 100, 1)
        alarms += found.turning_point["found"]
    assert alarms < 3


def test_without_gold_or_with_too_few_points_it_says_so() -> None:
    path = planted(FORMS["ppo"], 1, 0.8, [1, 2], 0.1)
    few = turning_point(path, FORMS["ppo"], 100, 1).turning_point
    assert not few["found"] and "2 points beyond the reference" in few["text"]
    blind = turning_point(Path(path.kl, path.score, None), FORMS["ppo"], 100, 1).turning_point
    assert "no gold scorer" in blind["text"]


def line(step: int, score: list[Any], **columns: list[Any]) -> dict[str, Any]:
    return {"step": step, "score": score, "kl": [float(step)] * len(score), **columns}


def test_the_path_of_a_run_keeps_the_prompts_that_all_evaluations_scored() -> None:
    history = [
        line(0, [1.0, 2.0, 3.0], gold=[0.0, 1.0, 2.0]),
        line(5, [2.0, None, 4.0, 9.0], gold=[1.0, 1.0, 5.0, 9.0]),
    ]
    path = ppo_path(history)
    assert path is not None and path.gold is not None and path.steps == [0, 5]
    assert path.score.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert path.gold.tolist() == [[0.0, 1.0], [2.0, 5.0]]
    assert path.kl.tolist() == [[0.0, 5.0]] * 2
    assert ppo_path(history[1:]) is None and ppo_path(history[:1]) is None


def test_the_frontier_has_the_documented_form() -> None:
    scores = torch.randn(8 * 4, generator=source(2), dtype=torch.float64)
    scores[5] = torch.nan  # of the second prompt
    gold = [{"score": float(i)} for i in range(32)]
    side = Side(["a"] * 32, scores, {}, gold, [1.0] * 32, [1.0] * 32, [])
    history = [line(step, [float(step)] * 8, gold=[0.0] * 8) for step in (0, 2, 4)]
    frontier = Frontier(best_of_path(side, 4), 4, ppo_path(history))
    found = summarise_frontier(frontier, 50, 1)
    assert (found["prompts"], found["samples_per_prompt"]) == (7, 4)
    assert [point["n"] for point in found["best_of_n"]] == [1, 2, 4]
    assert [point["step"] for point in found["ppo"]] == [0, 2, 4]
    assert found["ppo"][1]["kl"] == {"mean": 2.0, "low": 2.0, "high": 2.0}
    kept = torch.cat([scores[:4], scores[8:]]).view(7, 4)
    assert found["best_of_n"][2]["score"]["mean"] == pytest.approx(float(kept.amax(dim=1).mean()))
    assert found["best_of_n"][0]["score"]["mean"] == pytest.approx(float(kept.mean()))
    assert set(found["turning_point"]) == set(found["fits"]) == {"best_of_n", "ppo"}
    empty = summarise_frontier(Frontier(None, 0, None), 50, 1)
    assert (empty["best_of_n"], empty["ppo"], empty["prompts"]) == ([], [], 0)
