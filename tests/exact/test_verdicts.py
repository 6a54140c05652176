"""What claims a direction claims it wrongly in at most 5 % of all evaluations, also of few pairs.

The simulation: `pytest -m slow tests/exact/test_verdicts.py`.
"""

from __future__ import annotations

import bisect
import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from rlhf_ppo.diagnostics import diagnose
from rlhf_ppo.evaluation.exploitation import exploited
from rlhf_ppo.evaluation.judge import Verdict, summarise_verdicts
from rlhf_ppo.evaluation.length_control import length_controlled
from rlhf_ppo.evaluation.over_optimisation import FORMS, Path, turning_point
from rlhf_ppo.evaluation.sides import Side
from rlhf_ppo.evaluation.statistics import (
    Estimate,
    flip_test,
    paired_change,
    paired_changes,
    win_rate,
)
from rlhf_ppo.proportions import (
    compare_pairs,
    difference_interval,
    share_interval,
    sign_test,
)
from rlhf_ppo.report.folder import Estimate as Shown
from rlhf_ppo.report.verdict import direction

# Prompts, and the share of them on which the two sides differ, half each way.
CELLS = list(itertools.product((64, 288, 1000), (0.01, 0.02, 0.05, 0.2)))
MORE = [(64, 0.4), (288, 0.4), (1000, 0.4), (16, 0.5)]
SPARSE = [(wins, 0) for wins in range(1, 6)] + [(4, 1), (6, 1), (7, 1), (0, 5), (1, 6)]


def source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def binomial(pairs: int, won: int) -> Fraction:
    return Fraction(math.comb(pairs, won), 2**pairs)


def outcomes(wins: int, losses: int, count: int) -> tuple[Tensor, Tensor]:
    """Scores of policy and reference on `count` prompts of which so few differ."""
    policy, reference = torch.zeros(count), torch.zeros(count)
    policy[:wins], reference[wins : wins + losses] = 1.0, 1.0
    return policy, reference


def claimed(found: Estimate, null: float = 0.5) -> bool:
    assert (found["p"] >= 0.05) <= (found["low"] <= null <= found["high"])
    return not found["low"] <= null <= found["high"]


# The exact test, by its definition


def test_the_sign_test_is_the_binomial_one_in_whole_numbers() -> None:
    for pairs in range(40):
        for won in range(pairs + 1):
            far = abs(2 * won - pairs)
            tail = sum(binomial(pairs, k) for k in range(pairs + 1) if abs(2 * k - pairs) >= far)
            assert sign_test(won, pairs - won) == pytest.approx(float(tail), rel=1e-9)
    assert sign_test(3, 0) == pytest.approx(0.25)  # three wins and no loss
    assert sign_test(5200, 4800) == pytest.approx(6.6e-5, rel=0.02)  # thousands of pairs


@pytest.mark.parametrize(("count", "differ"), CELLS + MORE)
def test_the_error_of_a_verdict_is_at_most_5_percent_by_enumeration(
    count: int, differ: float
) -> None:
    """No sampling: P(m pairs differ) x P(the interval excludes 1/2 | m), over all m and wins."""
    error = 0.0
    for pairs in range(count + 1):
        weight = math.comb(count, pairs) * differ**pairs * (1 - differ) ** (count - pairs)
        if weight < 1e-9:
            continue
        # More wins are never less of a claim: from the least on that are one, all are.
        least = bisect.bisect_left(
            range(pairs + 1),
            True,
            lo=(pairs + 1) // 2,
            key=lambda k: claimed(compare_pairs(k, pairs - k, count - pairs)),
        )
        ways = sum(math.comb(pairs, k) for k in range(least, pairs + 1))
        error += weight * float(2 * Fraction(ways, 2**pairs))
    assert 0 < error <= 0.05


def test_wherever_the_exact_test_claims_a_difference_the_interval_excludes_none() -> None:
    """So the interval only ever has to be widened, never cut."""
    for pairs in range(1, 400):
        least = next((k for k in range(pairs // 2, pairs + 1) if sign_test(k, pairs - k) < 0.05), 0)
        if least:
            assert difference_interval(least, pairs - least, pairs + 7)[0] > 0


@pytest.mark.parametrize("count", [64, 288, 1000])
@pytest.mark.parametrize(("won", "lost"), SPARSE)
def test_a_few_pairs_that_differ_are_no_verdict(won: int, lost: int, count: int) -> None:
    """Three wins, no loss and 61 ties were "Better than before", in large green letters."""
    found = win_rate(*outcomes(won, lost, count), 10, 1)
    assert not claimed(found)
    assert direction(Shown(found["mean"], found["low"], found["high"])) == 0


@pytest.mark.parametrize(("won", "lost"), [(6, 0), (8, 1), (0, 6), (30, 10)])
def test_enough_pairs_that_differ_are_one(won: int, lost: int) -> None:
    assert claimed(win_rate(*outcomes(won, lost, 288), 10, 1))


@pytest.mark.parametrize(("wins", "losses", "count"), [(7, 0, 43), (9, 3, 64), (200, 30, 288)])
def test_at_its_ends_the_score_test_is_at_its_limit(wins: int, losses: int, count: int) -> None:
    """Tango 1998: the likeliest probability of a loss by a search, written out."""
    for found in difference_interval(wins, losses, count):
        least, most = max(0.0, -found), (1 - found) / 2
        grid = torch.linspace(least + 1e-9, most - 1e-9, 200_001, dtype=torch.float64)
        ties = count - wins - losses
        fit = (
            wins * (grid + found).log()
            + losses * grid.log()
            + ties * (1 - 2 * grid - found).clamp(min=1e-300).log()
        )
        q = float(grid[fit.argmax()])
        z = (wins - losses - count * found) / math.sqrt(count * (2 * q + found * (1 - found)))
        assert abs(z) == pytest.approx(1.96, abs=0.01)


def test_the_share_of_none_and_of_all_has_a_width() -> None:
    assert share_interval(0, 64) == (0.0, pytest.approx(0.0566, abs=1e-4))
    low, high = share_interval(81, 263)  # Newcombe 1998, table I: .2553 to .3662
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)


# Means and parts


def test_the_flip_test_is_the_mean_over_all_signs() -> None:
    data = torch.tensor([0.3, -0.1, 0.9, 0.0, 0.4, 0.25], dtype=torch.float64)
    size = [value for value in data.tolist() if value]
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, size, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(size))
    ]
    expected = sum(total >= abs(sum(size)) - 1e-12 for total in sums) / len(sums)
    assert float(flip_test(data[:, None], 1)[0]) == pytest.approx(expected)
    assert flip_test(torch.zeros(9, 2), 1).tolist() == [1.0, 1.0]


def test_drawn_signs_come_near_the_mean_over_all() -> None:
    data = torch.randn(13, 1, generator=source(1), dtype=torch.float64) + 0.4
    exact = float(flip_test(data, 1)[0])
    padded = torch.cat([data, torch.full((1, 1), 1e-9, dtype=torch.float64)])  # 14: drawn
    assert float(flip_test(padded, 1)[0]) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_a_mean_that_a_few_rows_moved_has_not_changed(rows: int) -> None:
    after = torch.zeros(288, dtype=torch.float64)
    after[:rows] = torch.tensor([0.5, 0.7, 0.6, 0.9, 0.8], dtype=torch.float64)[:rows]
    assert not claimed(paired_change(after, torch.zeros(288), 2000, 1), null=0.0)
    assert claimed(paired_change(after + 0.1, torch.zeros(288), 2000, 1), null=0.0)


def test_a_part_among_twelve_needs_more_than_one_alone() -> None:
    names = [f"part {place}" for place in range(12)]
    drawn = torch.randn(288, 12, generator=source(2), dtype=torch.float64)
    before = {name: torch.zeros(288) for name in names}
    after = dict(zip(names, drawn.unbind(dim=1), strict=True))
    after["part 0"] = torch.zeros(288)
    after["part 0"][:7] = 1.0  # p = .016 alone
    found = paired_changes(after, before, 500, 1)
    assert not claimed(found["part 0"], null=0.0)
    assert claimed(paired_change(after["part 0"], before["part 0"], 500, 1), null=0.0)


def side(scores: Tensor, gold: Tensor, wrong: Tensor) -> Side:
    parts = [
        {"score": float(total), "wrong": float(part)}
        for total, part in zip(gold, wrong, strict=True)
    ]
    count = len(scores)
    return Side(["x"] * count, scores, {}, parts, [1.0] * count, [1.0] * count, [])


def test_three_rows_that_got_worse_are_not_reported_as_exploited() -> None:
    scores = torch.randn(64, generator=source(3), dtype=torch.float64)
    nothing, three = torch.zeros(64), torch.zeros(64)
    three[:3] = 1.0
    before = side(scores, nothing, nothing)
    assert exploited(side(scores + 1, -three, three), before, 2000, 1) == []
    many = (torch.arange(64) < 12).double()
    assert exploited(side(scores + 1, -many, many), before, 2000, 1)


def test_a_score_that_three_rows_moved_did_not_rise() -> None:
    scores, many = torch.zeros(64, dtype=torch.float64), (torch.arange(64) < 12).double()
    rise = scores.clone()
    rise[:3] = 1.0
    before = side(scores, scores, scores)
    assert exploited(side(rise, -many, many), before, 2000, 1) == []


def test_at_equal_length_too_three_wins_are_no_verdict() -> None:
    wins = torch.full((64,), 0.5)
    wins[:3] = 1.0
    longer = torch.randn(64, generator=source(4)) * 4
    assert not claimed(length_controlled(wins, longer, 2000, 1))
    assert not claimed(length_controlled(wins, torch.zeros(64), 2000, 1))
    wins[:20] = 1.0
    assert claimed(length_controlled(wins, longer, 2000, 1))


def test_a_judge_s_three_verdicts_are_none() -> None:
    from rlhf_ppo.config import JudgeConfig

    verdicts = [Verdict(1.0, 0.5)] * 3 + [Verdict(0.5, 0.5)] * 61  # worth 3/4 each
    judge = JudgeConfig(url="http://x", model="m")
    found = summarise_verdicts(judge, verdicts, 2000, 1)
    assert not claimed(found["win_rate"]) and not claimed(found["first_shown"])
    more = [Verdict(1.0, 0.5)] * 12 + verdicts[12:]
    assert claimed(summarise_verdicts(judge, more, 2000, 1)["win_rate"])


def test_gold_that_turned_on_three_prompts_has_not_turned() -> None:
    kl = torch.tensor([0.0, 0.5, 1, 2, 3, 4]).square().expand(64, -1).double()
    gold = torch.zeros(64, 6, dtype=torch.float64)
    gold[:3, 2:4] = 1.0
    found = turning_point(Path(kl, gold, gold), FORMS["ppo"], 500, 1).turning_point
    assert not found["found"] and "no rise" in found["text"]
    gold[:5, 2:4] = 1.0  # sign test: p = .0625
    assert not turning_point(Path(kl, gold, gold), FORMS["ppo"], 500, 1).turning_point["found"]
    gold[:20, 2:4] = 1.0
    assert turning_point(Path(kl, gold, gold), FORMS["ppo"], 500, 1).turning_point["found"]


def test_the_finding_of_reward_hacking_rests_on_paired_changes() -> None:
    """The intervals of the sides may overlap though every prompt fell, and lie apart by three."""
    wide = {"mean": 0.0, "low": -1.0, "high": 1.0}
    sides = {"policy": {"score": wide, "gold": wide}, "reference": {"score": wide, "gold": wide}}
    up, down = {"low": 0.1, "high": 0.3}, {"low": -0.3, "high": -0.1}
    found = diagnose([], sides | {"change": {"score": up, "gold": down}})
    assert [item.name for item in found] == ["reward_hacking"]
    none = {"low": -0.3, "high": 0.0}
    assert diagnose([], sides | {"change": {"score": up, "gold": none}}) == []


# The simulations


@pytest.mark.slow
@pytest.mark.parametrize(("count", "differ"), CELLS)
def test_headlines_under_no_difference_are_wrong_in_at_most_5_percent(
    count: int, differ: float
) -> None:
    """4,000 evaluations a cell, each prompt won and lost with probability `differ / 2`."""
    drawn = torch.rand(4000, count, generator=source(count), dtype=torch.float64)
    known: dict[tuple[int, int], int] = {}
    wrong = 0
    for row in drawn:
        won, lost = int((row < differ / 2).sum()), int((row > 1 - differ / 2).sum())
        if (won, lost) not in known:
            found = win_rate(*outcomes(won, lost, count), 10, 1)
            known[won, lost] = direction(Shown(found["mean"], found["low"], found["high"]))
        wrong += known[won, lost] != 0
    print(f"n {count}, differ {differ:.0%}: {wrong / 4000:.4f}")
    assert wrong / 4000 <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("count", [64, 288])
@pytest.mark.parametrize("each", [0.01, 0.05, 0.2])
def test_changes_of_means_and_parts_under_no_difference_are_claimed_in_at_most_5_percent(
    count: int, each: float
) -> None:
    """A real-valued mean, six parts together, the win rate at equal length; 600 evaluations each.

    At a true error of 5 % the share of 600 goes beyond .068 in one of 40 simulations.
    """
    wrong = {"mean": 0, "parts": 0, "equal length": 0}
    for trial in range(600):
        generator = source(1000 * trial + count)
        drawn = torch.rand(count, 7, generator=generator, dtype=torch.float64)
        size = torch.rand(count, 7, generator=generator, dtype=torch.float64) + 0.5
        changes = size * ((drawn < each).double() - (drawn > 1 - each).double())
        none = torch.zeros(count, dtype=torch.float64)
        wrong["mean"] += claimed(paired_change(changes[:, 6], none, 200, 1), null=0.0)
        parts = {str(place): changes[:, place] for place in range(6)}
        found = paired_changes(parts, dict.fromkeys(parts, none), 200, 1)
        wrong["parts"] += any(claimed(part, null=0.0) for part in found.values())
        longer = torch.randn(count, generator=generator) * 5 + 2
        outcome = (changes[:, 6].sign() + 1) / 2
        wrong["equal length"] += claimed(length_controlled(outcome, longer, 200, 1))
    print(f"n {count}, each way {each:.0%}: {wrong}")
    assert max(wrong.values()) / 600 <= 0.068
