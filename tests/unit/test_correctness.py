"""Rewards that say right or wrong: solved prompts, McNemar's test, pass@k, and what is refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from rlhf_ppo.config import Config, FunctionSource, RewardConfig, correctness_source
from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.errors import UserError
from rlhf_ppo.evaluation.frontier import Frontier, summarise_frontier
from rlhf_ppo.evaluation.over_optimisation import Path as Points
from rlhf_ppo.evaluation.sides import Side
from rlhf_ppo.evaluation.solved import compare_solved, pass_at_k, summarise_pass
from rlhf_ppo.evaluation.table import solved_lines
from rlhf_ppo.rewards.function import RewardFunction
from rlhf_ppo.stamps import make_stamps

RIGHT: dict[str, Any] = {"kind": "function", "path": "r.py:right", "name": "right"}


def side(right: list[float]) -> Side:
    scores = torch.tensor(right, dtype=torch.float64)
    count = len(right)
    return Side(["x"] * count, scores, {"right": scores}, [], [1.0] * count, [1.0] * count, [])


def outcomes(both: int, gained: int, lost: int, neither: int) -> tuple[Side, Side]:
    policy = [1.0] * both + [1.0] * gained + [0.0] * lost + [0.0] * neither
    reference = [1.0] * both + [0.0] * gained + [1.0] * lost + [0.0] * neither
    return side(policy), side(reference)


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(3, 0, 0.25), (6, 1, 0.125), (9, 1, 22 / 1024), (0, 0, 1.0)]
)
def test_solved_prompts_are_counted_and_tested_exactly(gained: int, lost: int, p: float) -> None:
    """0 to 3 of 64 was "Better than before"; McNemar's exact p is .25."""
    found = compare_solved(*outcomes(5, gained, lost, 50), "right")
    assert found is not None
    assert found["policy"]["solved"] == 5 + gained and found["reference"]["solved"] == 5 + lost
    assert (found["gained"], found["lost"], found["prompts"]) == (gained, lost, 55 + gained + lost)
    assert found["p"] == pytest.approx(p)
    change = found["change"]
    assert change["mean"] == pytest.approx((gained - lost) / found["prompts"])
    assert (change["low"] <= 0 <= change["high"]) == (p >= 0.05)
    assert found["policy"]["low"] < found["policy"]["mean"] < found["policy"]["high"]


def test_a_prompt_without_a_score_is_left_out() -> None:
    policy, reference = outcomes(2, 1, 0, 2)
    policy.parts["right"][0] = math.nan
    found = compare_solved(policy, reference, "right")
    assert found is not None and found["prompts"] == 4
    policy.parts["right"][:] = math.nan
    assert compare_solved(policy, reference, "right") is None


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_pass_at_k_is_the_mean_over_all_subsets(k: int) -> None:
    rows = [[0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]]
    expected = []
    for row in rows:
        subsets = list(itertools.combinations(row, k))
        expected.append(sum(any(subset) for subset in subsets) / len(subsets))
    found = pass_at_k(torch.tensor(rows, dtype=torch.float64), k)
    assert found.tolist() == pytest.approx(expected)


def test_pass_at_k_is_unbiased_where_the_obvious_estimate_is_not() -> None:
    """Chen et al. 2021: 1 - (1 - share of right ones)^k is too low on average."""
    truth, k = 1 - 0.7**4, 4
    drawn = torch.rand(20_000, 8, generator=torch.Generator().manual_seed(1)) < 0.3
    naive = float((1 - (1 - drawn.double().mean(dim=1)) ** k).mean())
    assert float(pass_at_k(drawn.double(), k).mean()) == pytest.approx(truth, abs=0.005)
    assert truth - naive > 0.02


def test_pass_at_k_of_both_sides_has_intervals_and_an_exact_change() -> None:
    base = torch.zeros(64, 4)
    better = base.clone()
    better[:3, 0] = 1
    found = summarise_pass(
        side(better.flatten().tolist()), side(base.flatten().tolist()), "right", 4, 500, 1
    )
    assert found is not None and (found["prompts"], found["samples"]) == (64, 4)
    assert [point["k"] for point in found["points"]] == [1, 2, 4]
    for point in found["points"]:
        assert point["policy"]["mean"] == pytest.approx(3 / 64 * point["k"] / 4)
        assert point["reference"]["high"] > 0.05  # none of 64 is not never
        assert point["change"]["low"] <= 0 < point["change"]["high"]  # three prompts: no claim
    better[:20, 0] = 1
    ours = side(better.flatten().tolist())
    found = summarise_pass(ours, side(base.flatten().tolist()), "right", 4, 500, 1)
    assert found is not None and all(point["change"]["low"] > 0 for point in found["points"])


def test_the_frontier_of_a_correct_score_asks_for_no_gold_scorer() -> None:
    kl = torch.arange(5.0).expand(8, -1).double()
    path = Points(kl, kl, None, [0, 1, 2, 3, 4])
    for correct, words in ((False, "no gold scorer"), (True, "the score is correctness")):
        found = summarise_frontier(Frontier(None, 4, path, correctness=correct), 50, 1)
        assert words in found["turning_point"]["ppo"]["text"]


def test_the_terminal_says_solved_and_pass_at_k() -> None:
    policy, reference = outcomes(30, 9, 1, 24)
    summary: dict[str, Any] = {"solved": compare_solved(policy, reference, "right")}
    summary["pass_at_k"] = summarise_pass(policy, reference, "right", 2, 100, 1)
    first, second, *points = solved_lines(summary)
    assert "solved, sampled: 31 -> 39 of 64 (9 gained, 1 lost; exact McNemar p = 0.021)" in first
    assert "2 answers to each of 32 prompts" in second and len(points) == 2
    assert solved_lines({}) == []


# What is declared is checked


def reward_file(folder: Path, body: str) -> str:
    file = folder / "rewards.py"
    file.write_text(f"def score(prompts, responses):\n    return {body}\n", encoding="utf-8")
    return f"{file}:score"


@pytest.mark.parametrize("body", ["[0.5 for _ in responses]", "[2 for _ in responses]"])
def test_a_score_that_is_neither_right_nor_wrong_is_refused_before_training(
    tmp_path: Path, body: str
) -> None:
    source = FunctionSource(kind="function", path=reward_file(tmp_path, body), correctness=True)
    function = RewardFunction(source, "reward.sources[function]")
    with pytest.raises(UserError, match=r"correctness = true: .* gave the score .*right is 1"):
        function.check([Prompt("p", 0, "x:1", {})])
    loose = RewardFunction(source.model_copy(update={"correctness": False}), "s")
    loose.check([Prompt("p", 0, "x:1", {})])


def test_true_false_and_whole_numbers_are_right_and_wrong(tmp_path: Path) -> None:
    path = reward_file(tmp_path, "[True, False, 1, 0.0][: len(responses)]")
    function = RewardFunction(FunctionSource(kind="function", path=path, correctness=True), "s")
    prompts = [Prompt("p", 0, "x:1", {})] * 4
    assert function.score(prompts, ["a"] * 4) == [1, 0, 1, 0]


def test_one_source_says_right_or_wrong_and_none_inside_an_ensemble() -> None:
    base: dict[str, Any] = {"output_dir": "x"}
    one, two = RIGHT | {"correctness": True}, RIGHT | {"correctness": True, "name": "other"}
    assert correctness_source(RewardConfig.model_validate({"sources": [RIGHT]})) is None
    assert correctness_source(RewardConfig.model_validate({"sources": [RIGHT, two]})) == "other"
    with pytest.raises(ValidationError, match="correctness is true for right and other"):
        Config.model_validate(base | {"reward": {"sources": [one, two]}})
    ensemble = {"kind": "ensemble", "members": [one, RIGHT | {"name": "b"}]}
    with pytest.raises(ValidationError, match="has no effect in an ensemble"):
        Config.model_validate(base | {"reward": {"sources": [ensemble]}})


def test_declaring_correctness_keeps_the_policy_and_evaluates_again(tmp_path: Path) -> None:
    path = reward_file(tmp_path, "[1 for _ in responses]")

    def stamps(**more: Any) -> dict[str, Any]:
        source = {"kind": "function", "path": path} | more
        return make_stamps(
            Config.model_validate({"output_dir": "x", "reward": {"sources": [source]}})
        )

    plain, declared = stamps(), stamps(correctness=True)
    assert plain["ppo"] == declared["ppo"]
    assert plain["evaluation"] != declared["evaluation"]
