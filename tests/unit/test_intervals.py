"""The intervals of an evaluation cover what they are meant to cover."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlhf_ppo.evaluation.diversity import repetition
from rlhf_ppo.evaluation.length_control import length_controlled
from rlhf_ppo.evaluation.statistics import Estimate, bootstrap_mean, resamples, win_rate, wins

TRIALS = 1500
RESAMPLES = 1000


def source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covers(found: Estimate, truth: float) -> bool:
    return found["low"] <= truth <= found["high"]


@pytest.mark.parametrize("count", [64, 288])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_interval_of_a_mean_covers_it_95_times_in_100(count: int, skewed: bool) -> None:
    data = torch.randn(TRIALS, count, generator=source(1), dtype=torch.float64)
    truth = 0.0
    if skewed:  # like a KL: squares of normal numbers plus some noise
        data, truth = data[:, :, None].square().sum(dim=2) + data, 1.0
    hits = sum(covers(bootstrap_mean(row.tolist(), RESAMPLES, 1), truth) for row in data)
    assert hits / TRIALS == pytest.approx(0.95, abs=0.025 if skewed else 0.015)


@pytest.mark.parametrize(
    ("count", "won", "tied"),
    [
        (64, 0.4, 0.2),
        (64, 0.8, 0.15),
        (288, 0.4, 0.2),
        (288, 0.85, 0.1),
        (64, 0.95, 0.0),
        (288, 0.95, 0.0),
        (64, 0.05, 0.0),
        (288, 0.02, 0.1),
        (64, 0.1, 0.9),
        (288, 0.05, 0.95),
    ],
)
def test_the_interval_of_a_win_rate_with_ties_covers_it(
    count: int, won: float, tied: float
) -> None:
    """Plain percentiles cover .95 of 64 prompts in 83 of 100 evaluations only."""
    drawn = torch.rand(TRIALS, count, generator=source(2), dtype=torch.float64)
    policy = (drawn < won).double() + 0.5 * ((drawn >= won) & (drawn < won + tied))
    reference = torch.full((count,), 0.5, dtype=torch.float64)
    truth = won + tied / 2
    hits = sum(covers(win_rate(row, reference, RESAMPLES, 1), truth) for row in policy)
    assert 0.935 <= hits / TRIALS <= 0.97  # few different win rates are possible: rather too wide


def lengths_and_wins(trials: int, count: int, level: float) -> tuple[Tensor, Tensor]:
    """Length differences and wins that follow the regression, with log-odds `level` at 0."""
    longer = torch.randn(trials, count, generator=source(3), dtype=torch.float64) * 7 + 3
    scaled = torch.tanh(longer / longer.std(dim=1, keepdim=True, unbiased=False))
    odds = torch.sigmoid(level + 1.2 * scaled)
    won = torch.rand(trials, count, generator=source(4), dtype=torch.float64) < odds
    return longer, won.double()


@pytest.mark.parametrize(
    ("count", "trials"), [(64, 1000), pytest.param(288, 2000, marks=pytest.mark.slow)]
)
def test_the_interval_of_the_length_controlled_win_rate_covers_it(count: int, trials: int) -> None:
    truth = 1 / (1 + math.exp(-0.4))
    pairs = zip(*lengths_and_wins(trials, count, 0.4), strict=True)
    found = [length_controlled(won, longer, 200, 1) for longer, won in pairs]
    assert sum(covers(item, truth) for item in found) / trials == pytest.approx(0.95, abs=0.015)
    mean = sum(item["mean"] for item in found) / trials
    assert mean == pytest.approx(truth, abs=0.01)


def test_wins_by_length_alone_are_taken_away() -> None:
    """A judge that likes long answers and nothing else: half at equal length."""
    longer = torch.tensor([8.0, 5.0, 6.0, 9.0, 7.0, 4.0, -6.0, -7.0] * 20)
    found = length_controlled((longer > 0).double(), longer, 200, 1)
    assert found["mean"] < 0.65 < 0.75 == float((longer > 0).double().mean())


def test_the_regression_is_at_its_maximum() -> None:
    """Against a search over a grid of the penalised log-likelihood, written out by hand."""
    (longer,), (won,) = lengths_and_wins(1, 12, 0.4)  # few, so that the prior weighs something
    won[:2] = 0.5
    x = torch.tanh(longer / longer.std(unbiased=False))
    best = (-math.inf, 0.0)
    for a in torch.linspace(-1, 2, 301, dtype=torch.float64):
        b = torch.linspace(-1, 4, 501, dtype=torch.float64)
        p = torch.sigmoid(a + b[:, None] * x)
        fit = (won * p.log() + (1 - won) * (1 - p).log()).sum(dim=1) - b**2 / (2 * 2.5**2)
        middle = torch.sigmoid(a)
        fit = fit + 0.5 * middle.log() + 0.5 * (1 - middle).log()
        best = max(best, (float(fit.max()), float(a)))
    expected = 1 / (1 + math.exp(-best[1]))
    assert length_controlled(won, longer, 10, 1)["mean"] == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("longer", [[0.0] * 8, [-4.0, -3, -2, -1, 1, 2, 3, 4]])
@pytest.mark.parametrize("won", [[1.0] * 8, [0.0] * 4 + [1.0] * 4, [0.5] * 8, [0.0] * 8])
def test_eight_prompts_and_separable_wins_give_a_sane_number(
    longer: list[float], won: list[float]
) -> None:
    found = length_controlled(torch.tensor(won), torch.tensor(longer), 500, 1)
    assert 0 < found["low"] <= found["mean"] <= found["high"] < 1
    if not any(longer):
        assert found["mean"] == pytest.approx((sum(won) + 0.5) / 9)


def test_a_model_against_itself_wins_half() -> None:
    scores = torch.randn(2, 288, generator=source(5))
    found = win_rate(scores[0], scores[1], 1000, 1)
    assert found["low"] < 0.5 < found["high"] and found["ties"] == 0
    same = wins(scores[0], scores[0])
    found = win_rate(scores[0], scores[0], 1000, 1)
    assert (found["mean"], found["ties"], found["p"]) == (0.5, 1.0, 1.0)
    assert found["low"] == pytest.approx(1 - found["high"])
    assert 0.49 < found["low"] < 0.5  # 288 ties say that at most few prompts would differ
    exact = {"mean": 0.5, "low": 0.5, "high": 0.5, "p": 1.0}
    assert length_controlled(same, torch.zeros(288), 100, 1) == exact


def test_large_sets_are_resampled_piece_by_piece_to_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = torch.rand(50, generator=source(6)).tolist()
    before = bootstrap_mean(values, 2500, 9)
    monkeypatch.setattr("rlhf_ppo.evaluation.statistics.KEPT", 0)
    assert bootstrap_mean(values, 2500, 9) == pytest.approx(before, rel=1e-12)
    pieces = list(resamples(50, 2500, 9))
    assert [len(piece) for piece in pieces] == [1000, 1000, 500]
    assert all(bool((piece.sum(dim=1) == 50).all()) for piece in pieces)


def test_repetition_by_hand() -> None:
    # 4-grams of 8 words: abcd bcda cdab dabc abcd; the last stood there already
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("A b c d e") == 0.0
    assert repetition("too short text") == 0.0
    assert repetition("no no no no no no") == pytest.approx(2 / 3)
