"""Several sources into one score: weights, ensembles, normalisation, missing scores."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import make_config
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ppo.algorithm.rewards import Moments
from rlhf_ppo.config import RewardConfig
from rlhf_ppo.errors import UserError
from rlhf_ppo.rewards.combine import Weighed, normalized_sources, weigh
from rlhf_ppo.rewards.failures import check_enough, check_failures, scored_rows
from rlhf_ppo.rewards.judgement import Failure

NAN = math.nan
TABLE = torch.tensor([[1.0, 10.0, -2.0], [2.0, 30.0, 0.0], [6.0, 20.0, 5.0], [3.0, 0.0, 1.0]])


def function(name: str, **settings: Any) -> dict[str, Any]:
    return {"kind": "function", "name": name, "path": "a:b"} | settings


def reward(*sources: dict[str, Any]) -> RewardConfig:
    return make_config(reward={"sources": list(sources)}).reward


def ensemble(combine: str, *settings: dict[str, Any], **own: Any) -> RewardConfig:
    members = [function(name, **given) for name, given in zip("abc", settings, strict=True)]
    return reward({"kind": "ensemble", "combine": combine, "members": members} | own)


def weighed(config: RewardConfig, table: torch.Tensor = TABLE) -> Weighed:
    return weigh(config, table, {}, learn=True)


def test_one_source_of_weight_1_passes_to_the_bit() -> None:
    table = torch.randn(50, 1) * 1e3
    assert torch.equal(weighed(reward(function("a")), table).scores, table[:, 0])


def test_the_score_is_the_weighted_sum_of_the_sources_in_their_order() -> None:
    config = reward(function("a", weight=2), function("b", weight=-0.5), function("c", weight=0))
    found = weighed(config)
    assert found.scores.tolist() == [2 - 5, 4 - 15, 12 - 10, 6.0]
    assert found.parts["b"].tolist() == [10.0, 30.0, 20.0, 0.0]  # shown as it was said
    assert list(found.parts) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("combine", "settings", "expected"),
    [
        ("mean", {}, [3.0, 32 / 3, 31 / 3, 4 / 3]),
        ("minimum", {}, [-2.0, 0.0, 5.0, 0.0]),
        ("lower", {"k": 0.5}, None),
    ],
)
def test_members_are_combined_by_mean_minimum_or_lower_bound(
    combine: str, settings: dict[str, Any], expected: list[float] | None
) -> None:
    found = weighed(ensemble(combine, {}, {}, {}, **settings))
    if expected is None:
        expected = []
        for row in TABLE.tolist():
            mean = sum(row) / 3
            spread = math.sqrt(sum((x - mean) ** 2 for x in row) / 3)
            expected.append(mean - 0.5 * spread)
    assert found.scores.tolist() == pytest.approx(expected)
    assert list(found.parts) == ["ensemble/a", "ensemble/b", "ensemble/c", "ensemble"]


def test_standardised_sources_do_not_care_about_their_units() -> None:
    config = reward(*(function(name, normalization="standardize") for name in "abc"))
    units = TABLE * torch.tensor([1.0, 100.0, 0.01]) + torch.tensor([5.0, -7.0, 0.0])
    torch.testing.assert_close(weighed(config).scores, weighed(config, units).scores)
    assert not torch.allclose(weighed(reward(*map(function, "abc"))).scores, TABLE.sum(1) * 0)


def test_members_are_standardised_before_the_minimum_is_taken() -> None:
    each = {"normalization": "standardize"}
    found = weighed(ensemble("minimum", each, each, each))
    z = (TABLE - TABLE.mean(0)) / TABLE.std(0, unbiased=False)
    torch.testing.assert_close(found.scores, z.min(dim=1).values)
    assert sorted(found.moments) == ["ensemble/a", "ensemble/b", "ensemble/c"]


@given(st.integers(1, 3))
def test_moments_are_those_of_all_scores_so_far(cut: int) -> None:
    config = reward(function("a", normalization="standardize"))
    table = TABLE[:, :1]
    once = weigh(config, table, {}, learn=True)
    first = weigh(config, table[:cut], {}, learn=True)
    second = weigh(config, table[cut:], first.moments, learn=True)
    assert second.moments["a"].count == once.moments["a"].count == 4
    assert second.moments["a"].deviation == pytest.approx(once.moments["a"].deviation)
    torch.testing.assert_close(second.scores, once.scores[cut:])


def test_evaluation_reads_the_moments_and_leaves_them() -> None:
    config = reward(function("a", normalization="standardize"))
    moments = {"a": Moments(count=10, mean=2.0, squares=40.0)}
    found = weigh(config, TABLE[:, :1], moments, learn=False)
    assert found.scores.tolist() == [-0.5, 0.0, 2.0, 0.5]
    assert found.moments == moments


@pytest.mark.parametrize("combine", ["mean", "minimum", "lower"])
def test_a_missing_member_makes_the_sum_missing_and_never_a_number(combine: str) -> None:
    """The minimum of 3 and nothing is not 3."""
    table = TABLE.clone()
    table[1, 1] = NAN
    settings = {"k": 1.0} if combine == "lower" else {}
    found = weigh(ensemble(combine, {}, {}, {}, **settings), table, {}, learn=False)
    assert found.scores.isnan().tolist() == [False, True, False, False]


def test_rows_without_a_score_leave_alone_or_with_those_they_are_compared_to() -> None:
    table = torch.zeros(6, 2)
    table[1, 0] = table[5, 1] = NAN
    assert scored_rows(table, 1).tolist() == [0, 2, 3, 4]
    assert scored_rows(table, 2).tolist() == [2, 3]
    assert scored_rows(table, 3).tolist() == []


def failures(count: int) -> list[Failure]:
    return [Failure("judge", f"data:{row}", "text " * 99, f"why {row}") for row in range(count)]


def test_more_failures_than_allowed_stop_the_run_with_source_and_first_reasons() -> None:
    table = torch.zeros(8, 2)
    table[:2] = NAN  # two responses, four scores
    check_failures(table, failures(4), 0.25, "step 3")
    check_failures(torch.zeros(8, 2), [], 0.0, "step 3")
    with pytest.raises(UserError) as caught:
        check_failures(table, failures(4), 0.24, "step 3")
    said = str(caught.value)
    for part in ("2 of 8", "step 3", "judge", "data:0", "why 2", "and 1 more", "max_failed = 0.24"):
        assert part in said
    assert "why 3" not in said and len(said) < 1500


def test_too_few_responses_left_stop_the_run_before_a_minibatch_is_empty() -> None:
    check_enough(4, 2, 2, "step 1")
    with pytest.raises(UserError, match=r"only 3 responses of step 1"):
        check_enough(3, 2, 2, "step 1")


def test_what_is_shown_is_what_was_said_and_what_is_learnt_is_new() -> None:
    """Neither the table of parts nor the caller's moments change under the normalisation."""
    each = {"normalization": "standardize"}
    config = ensemble("mean", each, {}, {}, normalization="standardize")
    before = {"ensemble/a": Moments(count=10, mean=2.0, squares=40.0)}
    found = weigh(config, TABLE, before, learn=True)
    assert found.parts["ensemble/a"].tolist() == TABLE[:, 0].tolist()
    a = (TABLE[:, 0] - found.moments["ensemble/a"].mean) / found.moments["ensemble/a"].deviation
    torch.testing.assert_close(
        found.parts["ensemble"], torch.stack([a, TABLE[:, 1], TABLE[:, 2]]).mean(dim=0)
    )
    assert before == {"ensemble/a": Moments(count=10, mean=2.0, squares=40.0)}
    assert found.moments["ensemble/a"].count == 14 and found.moments["ensemble"].count == 4


def test_a_run_keeps_the_moments_of_what_is_normalised_and_of_nothing_else() -> None:
    each = {"normalization": "standardize"}
    assert normalized_sources(ensemble("mean", each, {}, each)) == ["ensemble/a", "ensemble/c"]
    whole = ensemble("mean", {}, {}, {}, normalization="standardize")
    assert normalized_sources(whole) == ["ensemble"]
    assert normalized_sources(reward(function("a"), function("b", **each))) == ["b"]
    assert normalized_sources(reward(function("a"))) == []


def test_a_response_that_one_source_did_not_score_has_failed_once() -> None:
    table = torch.zeros(10, 2)
    table[3, 1] = table[4, 0] = table[5, 0] = table[5, 1] = NAN
    check_failures(table, failures(4), 0.3, "step 3")
    with pytest.raises(UserError, match="3 of 10"):
        check_failures(table, failures(4), 0.29, "step 3")
