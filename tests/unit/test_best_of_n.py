"""Best-of-n and the paths of the frontier by enumeration and by hand."""

from __future__ import annotations

import itertools
import math
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
from helpers import write_jsonl
from torch import Tensor

from rlhf_ppo.evaluation.best_of_n import best_of, best_of_kl, best_of_weights, sizes
from rlhf_ppo.evaluation.frontier import (
    Frontier,
    best_of_path,
    ppo_path,
    read_history,
    summarise_frontier,
)
from rlhf_ppo.evaluation.over_optimisation import Path, turning_point
from rlhf_ppo.evaluation.sides import Side
from rlhf_ppo.evaluation.statistics import resamples

SCORES = torch.tensor([[3.0, 1.0, 2.0, 2.0, 5.0, 2.0], [0.0, 0.0, 1.0, -1.0, 4.0, 4.0]])
GOLD = torch.tensor([[1.0, 7.0, 2.0, 4.0, 0.0, 9.0], [3.0, 5.0, 1.0, 1.0, 2.0, 8.0]])


def by_listing(scores: list[float], values: list[float], n: int) -> float:
    """Mean over all subsets of n; of equal best ones each is as likely."""
    found = []
    for subset in itertools.combinations(range(len(scores)), n):
        best = max(scores[place] for place in subset)
        tied = [values[place] for place in subset if scores[place] == best]
        found.append(sum(tied) / len(tied))
    return sum(found) / len(found)


@pytest.mark.parametrize("n", range(1, 7))
def test_best_of_n_is_the_mean_over_every_subset_ties_and_all(n: int) -> None:
    for values in (SCORES, GOLD):
        found = best_of(SCORES, values, n)
        wanted = [
            by_listing(s.tolist(), v.tolist(), n) for s, v in zip(SCORES, values, strict=True)
        ]
        assert found.tolist() == pytest.approx(wanted)
    weights = best_of_weights(SCORES, n)
    assert weights.sum(dim=1).tolist() == pytest.approx([1.0, 1.0])
    assert weights[1, 4] == weights[1, 5]  # equal scores are equally likely


def test_the_kl_of_best_of_n_and_its_sizes_by_hand() -> None:
    assert best_of_kl(1) == 0.0
    assert best_of_kl(2) == pytest.approx(0.6931471805599453 - 0.5)
    assert best_of_kl(16) == pytest.approx(4 * math.log(2) - 15 / 16)
    assert [sizes(most) for most in (1, 2, 3, 4, 6, 8, 9)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 6], [1, 2, 4, 8], [1, 2, 4, 8, 9],
    ]  # fmt: skip


def side(scores: Tensor, gold: Tensor | None) -> Side:
    flat = scores.flatten().double()
    return Side(
        texts=["x"] * len(flat),
        scores=flat,
        parts={},
        gold=[] if gold is None else [{"score": value} for value in gold.flatten().tolist()],
        lengths=[1.0] * len(flat),
        stopped=[1.0] * len(flat),
        kl=[],
    )


def test_the_path_of_best_of_n_takes_each_prompts_own_samples() -> None:
    """The first of three prompts has a sample without a score: it leaves with its gold."""
    missing = torch.full((1, 6), 9.0)
    missing[0, 2] = math.nan
    path = best_of_path(side(torch.cat([missing, SCORES]), torch.cat([missing * 0 + 9, GOLD])), 6)
    assert path is not None and path.gold is not None
    for place, n in enumerate([1, 2, 4, 6]):
        assert path.kl[:, place].tolist() == pytest.approx([best_of_kl(n)] * 2)
        for found, values in ((path.score, SCORES), (path.gold, GOLD)):
            wanted = [
                by_listing(s.tolist(), v.tolist(), n) for s, v in zip(SCORES, values, strict=True)
            ]
            assert found[:, place].tolist() == pytest.approx(wanted)
    alone = best_of_path(side(SCORES, None), 6)
    assert alone is not None and alone.gold is None
    assert best_of_path(side(torch.full((2, 6), math.nan), None), 6) is None


HISTORY: list[dict[str, Any]] = [
    {"step": 0, "score": [1.0, 2.0, 3.0], "kl": [0.0, 0.1, 0.2], "gold": [5.0, 6.0, 7.0]},
    {"step": 4, "score": [2.0, None, 5.0], "kl": [1.0, 1.1, 1.2], "gold": [4.0, 3.0, 2.0]},
    {"step": 9, "score": [3.0, 4.0, 6.0, 8.0], "kl": [2.0, 2.1, 2.2, 9.0], "gold": [1.0] * 4},
]


def test_the_path_of_a_run_has_the_prompts_that_all_evaluations_scored() -> None:
    """The final one asked a prompt more; the second has no score for one of them."""
    path = ppo_path(HISTORY)
    assert path is not None and path.gold is not None
    assert path.score.tolist() == [[1.0, 2.0, 3.0], [3.0, 5.0, 6.0]]
    assert path.kl.tolist() == [[0.0, 1.0, 2.0], [0.2, 1.2, 2.2]]
    assert path.gold.tolist() == [[5.0, 4.0, 1.0], [7.0, 2.0, 1.0]]
    assert path.steps == [0, 4, 9]
    shorter = [HISTORY[2] | {"step": 0}, HISTORY[0] | {"step": 3}]
    found = ppo_path(shorter)
    assert found is not None and found.score.shape == (3, 2)


@pytest.mark.parametrize("history", [[], HISTORY[:1], HISTORY[1:]])
def test_a_run_that_did_not_begin_with_the_reference_has_no_path(history: Any) -> None:
    assert ppo_path(history) is None


def test_gold_that_one_evaluation_lacks_is_none() -> None:
    without = [{k: v for k, v in HISTORY[0].items() if k != "gold"}, *HISTORY[1:]]
    path = ppo_path(without)
    assert path is not None and path.gold is None
    nothing = [entry | {"score": [None] * len(entry["score"])} for entry in HISTORY]
    assert ppo_path(nothing) is None


def test_no_history_is_no_evaluation(tmp_path: File) -> None:
    assert read_history(tmp_path / "heldout.jsonl") == []
    write_jsonl(tmp_path / "heldout.jsonl", HISTORY)
    assert read_history(tmp_path / "heldout.jsonl") == HISTORY


def test_the_frontier_names_each_point_with_its_own_means() -> None:
    best = best_of_path(side(SCORES, GOLD), 6)
    found = summarise_frontier(Frontier(best, 6, ppo_path(HISTORY)), samples=200, seed=1)
    assert found["prompts"] == 2 and found["samples_per_prompt"] == 6
    assert [point["n"] for point in found["best_of_n"]] == [1, 2, 4, 6]
    for point in found["best_of_n"]:
        assert point["kl"] == pytest.approx(best_of_kl(point["n"]))
        for name, values in (("score", SCORES), ("gold", GOLD)):
            wanted = float(best_of(SCORES, values, point["n"]).mean())
            assert point[name]["mean"] == pytest.approx(wanted)
            assert point[name]["low"] <= wanted <= point[name]["high"]
    shown = [
        (p["step"], p["score"]["mean"], p["gold"]["mean"], p["kl"]["mean"]) for p in found["ppo"]
    ]
    assert shown == [
        (0, 2.0, 6.0, pytest.approx(0.1)),
        (4, 3.5, 3.0, pytest.approx(1.1)),
        (9, 4.5, 1.0, pytest.approx(2.1)),
    ]


# ---- where gold turns


def noisy(curve: list[float], seed: int = 0, noise: float = 0.02) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(80, len(curve), generator=generator, dtype=torch.float64)
    return torch.tensor(curve, dtype=torch.float64) + noise * draws


def planted(form: str, alpha: float, beta: float, ds: list[float], steps: Any = None) -> Path:
    """Gold that follows a known curve over d, the root of the KL, from 1.0 at the reference."""
    if form == "best_of_n":
        gain = [d * (alpha - beta * d) for d in ds]
    else:
        gain = [d * (alpha - beta * math.log(d)) if d else 0.0 for d in ds]
    kl = torch.tensor([d * d for d in ds], dtype=torch.float64).expand(80, -1)
    gold = noisy([1.0 + g for g in gain])
    return Path(kl, noisy([0.5 * d for d in ds], 1), gold, steps)


def test_the_turn_of_a_parabola_lies_at_half_its_ratio() -> None:
    """d (alpha - beta d) is highest at d = alpha / 2 beta: KL 1, gain alpha^2 / 4 beta."""
    path = planted("best_of_n", 1.0, 0.5, [0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8])
    found = turning_point(path, "d(alpha - beta d)", 400, 0)
    turn = found.turning_point
    assert turn["found"] and found.fits is not None
    assert turn["kl"]["mean"] == pytest.approx(1.0, abs=0.05)
    assert turn["gold"]["mean"] == pytest.approx(1.5, abs=0.02)
    assert turn["kl"]["low"] < 1.0 < turn["kl"]["high"]
    assert found.fits["gold"]["alpha"] == pytest.approx(1.0, abs=0.05)
    assert found.fits["gold"]["beta"] == pytest.approx(0.5, abs=0.05)
    # Best measured point to the last one: d .9 to 1.8, .495 to .18.
    assert turn["fall"]["mean"] == pytest.approx(0.315, abs=0.03)


def test_the_turn_of_a_run_lies_where_its_logarithm_says_and_between_two_evaluations() -> None:
    """d (alpha - beta log d) is highest at d = exp(alpha / beta - 1)."""
    ds, steps = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0], [0, 10, 20, 30, 40, 50, 60]
    path = planted("ppo", 0.5, 0.4, ds, steps)
    peak = math.exp(0.5 / 0.4 - 1)
    found = turning_point(path, "d(alpha - beta log d)", 400, 0)
    turn = found.turning_point
    assert turn["found"] and found.fits is not None
    assert turn["kl"]["mean"] == pytest.approx(peak**2, rel=0.05)
    assert turn["step"]["mean"] == pytest.approx(20 * peak, rel=0.05)  # d grows by .5 in 10 steps
    assert turn["gold"]["mean"] == pytest.approx(1 + peak * (0.5 - 0.4 * math.log(peak)), abs=0.02)


@pytest.mark.parametrize(
    ("curve", "word"),
    [
        ([1.0, 0.9, 0.7, 0.5, 0.2], "no rise"),
        ([1.0, 1.2, 1.4, 1.5, 1.6], "no fall"),
        ([1.0, 1.0, 1.0, 1.0, 1.0], "no rise"),
        ([1.0, 0.5, 0.8, 0.9, 0.6], "no rise"),
    ],
)
def test_without_a_rise_and_a_fall_after_it_there_is_no_turn(curve: list[float], word: str) -> None:
    kl = torch.tensor([0.0, 0.3, 0.8, 1.5, 2.5], dtype=torch.float64).expand(80, -1)
    path = Path(kl, noisy(curve, 1), noisy(curve), [0, 1, 2, 3, 4])
    found = turning_point(path, "d(alpha - beta log d)", 400, 0)
    assert not found.turning_point["found"] and found.fits is None
    assert word in found.turning_point["text"]
    change = curve[-1] - curve[0]
    assert f"{change:.2f}"[:4] in found.turning_point["text"] or abs(change) < 0.1


def test_three_points_beyond_the_reference_are_the_fewest() -> None:
    kl = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64).expand(80, -1)
    path = Path(kl, noisy([1, 2, 3, 4]), noisy([1.0, 1.5, 1.6, 1.0]), [0, 1, 2, 3])
    enough = turning_point(path, "d(alpha - beta log d)", 200, 0).turning_point["text"]
    assert "too little" not in enough
    fewer = Path(kl[:, :3], path.score[:, :3], path.gold[:, :3], [0, 1, 2])  # type: ignore[index]
    assert (
        "too little" in turning_point(fewer, "d(alpha - beta log d)", 200, 0).turning_point["text"]
    )


def test_a_kl_that_came_back_is_told_with_the_best_measured_point() -> None:
    kl = torch.tensor([0.0, 1.0, 4.0, 3.0, 1.0], dtype=torch.float64).expand(80, -1)
    path = Path(kl, noisy([1, 2, 3, 3, 3]), noisy([1.0, 1.4, 1.8, 1.5, 1.1]), [0, 10, 20, 30, 40])
    found = turning_point(path, "d(alpha - beta log d)", 400, 0)
    assert found.fits is None and "came back" in found.turning_point["text"]
    assert found.turning_point["step"]["mean"] == 20
    assert found.turning_point["kl"]["mean"] == 4.0
    assert found.turning_point["fall"]["mean"] == pytest.approx(0.7, abs=0.02)
    assert found.turning_point["gold"]["mean"] == pytest.approx(1.8, abs=0.01)


def test_a_point_that_is_measured_badly_hardly_bends_the_curve() -> None:
    """A third of a unit low, but with a hundred times the others' deviation."""
    path = planted("best_of_n", 1.0, 0.5, [0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8])
    assert path.gold is not None
    path.gold[:, 5] += -0.3 + 2.0 * torch.tensor([1.0, -1.0] * 40, dtype=torch.float64)
    found = turning_point(path, "d(alpha - beta d)", 400, 0)
    assert found.fits is not None
    assert found.fits["gold"]["alpha"] == pytest.approx(1.0, abs=0.05)
    assert found.fits["gold"]["beta"] == pytest.approx(0.5, abs=0.05)


def test_intervals_of_a_measured_turn_are_percentiles_and_a_simultaneous_band() -> None:
    """By numpy from the same resamples: points 1 and 2 lie between the reference and the last."""
    kl = torch.tensor([0.0, 1.0, 4.0, 1.0], dtype=torch.float64).expand(80, -1)
    gold = noisy([1.0, 1.4, 1.8, 1.1], noise=0.3)
    found = turning_point(Path(kl, gold, gold, [0, 1, 2, 3]), "d(alpha - beta log d)", 500, 7)
    counts = torch.cat(list(resamples(80, 500, 7))).numpy()
    once, means = gold.numpy().mean(axis=0), counts @ gold.numpy() / 80
    low, high = np.quantile(means[:, 2], [0.025, 0.975])
    turn = found.turning_point
    assert turn["gold"] == pytest.approx({"mean": once[2], "low": low, "high": high})

    def contrasts(m: Any) -> Any:
        start, one, two, last = m.T
        return np.stack([one - start, two - start, one - last, two - last, last - start], axis=-1)

    apart = contrasts(means)
    error = apart.std(axis=0, ddof=1)
    width = np.quantile((np.abs(apart - contrasts(once)) / error).max(axis=1), 0.95)
    fall, half = once[2] - once[3], width * error[3]
    wanted = {"mean": fall, "low": fall - half, "high": fall + half}
    assert turn["fall"] == pytest.approx(wanted, rel=1e-6)


def test_percentiles_are_those_of_the_resamples_alone() -> None:
    """Of ten of them, the last of which is now and then the lowest or the highest."""
    kl = torch.tensor([0.0, 1.0, 4.0, 1.0], dtype=torch.float64).expand(80, -1)
    gold = noisy([1.0, 1.4, 1.8, 1.1], noise=0.1)
    for seed in range(8):
        found = turning_point(Path(kl, gold, gold, [0, 1, 2, 3]), "d(alpha - beta log d)", 10, seed)
        counts = torch.cat(list(resamples(80, 10, seed))).numpy()
        low, high = np.quantile((counts @ gold.numpy() / 80)[:, 2], [0.025, 0.975])
        shown = found.turning_point["gold"]
        mean = float(gold[:, 2].mean())
        assert shown == pytest.approx(
            {"mean": mean, "low": min(low, mean), "high": max(high, mean)}
        )
