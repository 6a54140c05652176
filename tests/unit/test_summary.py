"""The numbers of an evaluation from two sides by hand, and how they are kept and shown."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import encoded_prompts, make_config, plain_prompts, read_jsonl

import rlhf_ppo.evaluation.table as table_module
from rlhf_ppo.errors import UserError
from rlhf_ppo.evaluation.diversity import distinct_n
from rlhf_ppo.evaluation.exploitation import exploited, part_signs
from rlhf_ppo.evaluation.heldout import during_training, number, numbers, part_names
from rlhf_ppo.evaluation.length_control import length_controlled
from rlhf_ppo.evaluation.sides import Side
from rlhf_ppo.evaluation.statistics import bootstrap_mean
from rlhf_ppo.evaluation.summary import Answers, summarise, write_samples
from rlhf_ppo.report.compare import comparison_text
from rlhf_ppo.rollout.noise import derive_seed

NAN = math.nan
SAMPLES = 200


def side(
    scores: list[float], gold: list[float] | None = None, lengths: list[float] | None = None,
    texts: list[str] | None = None, kl: list[float] | None = None, parts: Any = None,
) -> Side:  # fmt: skip
    count = len(scores)
    flaws = [0.25 * place for place in range(count)]
    named = [{"score": g, "flaws": f} for g, f in zip(gold or [], flaws, strict=False)]
    return Side(
        texts=texts or [f"answer {place} of {count}" for place in range(count)],
        scores=torch.tensor(scores, dtype=torch.float64),
        parts=parts or {"a": torch.tensor(scores, dtype=torch.float64)},
        gold=named,
        lengths=lengths or [4.0] * count,
        stopped=[1.0, 0.0, 1.0, 1.0][:count],
        kl=kl or [],
    )


POLICY = side(
    [2.0, NAN, 1.0, 5.0], [1.0, 2.0, 3.0, 8.0], [10.0, 20.0, 4.0, 40.0],
    ["a a b", "c d", "a b", "e f g h"], [0.1, 0.2, 0.3, 0.6],
)  # fmt: skip
REFERENCE = side([1.0, 3.0, NAN, 5.0], [1.0, 4.0, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0])
GREEDY = side([9.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0])
GREEDY_REFERENCE = side([9.0, 9.0, 10.0, 8.0], [9.0, 0.0, 9.0, 9.0])
OTHER = side([0.0, 9.0, 9.0, 9.0], [0.0, 9.0, 9.0, 9.0], [6.0] * 4)


def config() -> Any:
    settings = {"bootstrap_samples": SAMPLES, "models": {"one": "path/one", "two": "path/two"}}
    return make_config(seed=7, evaluation=settings, rollout={"temperature": 0.8})


def summary(**more: Any) -> dict[str, Any]:
    answers = {"greedy_policy": None, "greedy_reference": None, "models": {}} | more
    return summarise(config(), Answers(POLICY, REFERENCE, **answers))  # type: ignore[arg-type]


def estimate(values: list[float]) -> dict[str, float]:
    """With the run's own resamples, so that everything stays paired."""
    return bootstrap_mean(values, SAMPLES, derive_seed(7, "bootstrap"))


def test_a_side_is_summed_up_over_what_it_has() -> None:
    found = summary()
    policy = found["policy"]
    assert found["prompts"] == 4 and found["seed"] == 7 and found["temperature"] == 0.8
    assert policy["score"] == estimate([2.0, 1.0, 5.0])
    assert policy["failed"] == 1 and "reward_parts" not in policy
    assert policy["gold"] == estimate([1.0, 2.0, 3.0, 8.0])
    assert policy["gold_parts"] == {"flaws": estimate([0.0, 0.25, 0.5, 0.75])}
    assert policy["length"] == estimate([10.0, 20.0, 4.0, 40.0])
    stopped = policy["stopped"]
    assert stopped["mean"] == 0.75 and stopped["low"] < 0.75 < stopped["high"]
    for end in (stopped["low"], stopped["high"]):  # Wilson's: at 1.96 standard errors of its own
        assert abs(end - 0.75) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / 4), rel=1e-4)
    assert policy["kl"] == estimate([0.1, 0.2, 0.3, 0.6])
    assert policy["distinct_1"] == distinct_n(POLICY.texts, 1)
    assert policy["distinct_2"] == distinct_n(POLICY.texts, 2) != policy["distinct_1"]
    assert "kl" not in found["reference"]
    assert found["reference"]["score"] == estimate([1.0, 3.0, 5.0])


def test_several_sources_have_their_means_and_one_has_the_score_alone() -> None:
    parts = {"a": torch.tensor([1.0, NAN, 3.0]), "b": torch.tensor([4.0, 5.0, 9.0])}
    two = side([1.0, 2.0, 3.0], parts=parts)
    found = summarise(config(), Answers(two, two, None, None, {}))["policy"]
    assert found["reward_parts"] == {"a": estimate([1.0, 3.0]), "b": estimate([4.0, 5.0, 9.0])}
    assert "failed" not in found and "gold" not in found


def test_sides_are_compared_on_the_prompts_that_both_were_scored_on() -> None:
    """By score the first (won) and the last (a tie); by gold all four."""
    found = summary()
    assert found["win_rate"]["score"]["mean"] == 0.75
    assert found["win_rate"]["score"]["ties"] == 0.5
    assert found["win_rate"]["gold"]["mean"] == (0.5 + 0 + 1 + 1) / 4
    seed = derive_seed(7, "bootstrap")
    equal = length_controlled(torch.tensor([1.0, 0.5]), torch.tensor([5.0, 35.0]), SAMPLES, seed)
    assert found["length_controlled"]["score"] == pytest.approx(equal)
    gold = length_controlled(
        torch.tensor([0.5, 0.0, 1.0, 1.0]), torch.tensor([5.0, 15.0, -1.0, 35.0]), SAMPLES, seed
    )
    assert found["length_controlled"]["gold"] == pytest.approx(gold)


def test_changes_are_from_the_reference_to_the_policy_on_the_same_prompts() -> None:
    change = summary()["change"]
    assert change["score"]["mean"] == (1.0 + 0.0) / 2  # of the first and the last prompt
    assert change["gold"]["mean"] == (0 - 2 + 2 + 7) / 4
    assert change["length"]["mean"] == (5 + 15 - 1 + 35) / 4
    assert change["gold"]["low"] <= 0 <= change["gold"]["high"]  # of four nothing can be claimed


def test_changes_of_parts_leave_out_prompts_without_a_score() -> None:
    ours = {"a": torch.tensor([1.0, NAN, 3.0]), "b": torch.tensor([4.0, 5.0, 9.0])}
    theirs = {"a": torch.tensor([0.0, 1.0, 1.0]), "b": torch.tensor([8.0, NAN, 7.0])}
    flaws = [[{"score": 1.0, "flaws": flaw}] * 3 for flaw in (2.0, 0.5)]
    sides = [
        replace(side([1.0, 2.0, 3.0], parts=parts), gold=gold)
        for parts, gold in zip((ours, theirs), flaws, strict=True)
    ]
    change = summarise(config(), Answers(*sides, None, None, {}))["change"]
    assert change["reward_parts"]["a"]["mean"] == (1 + 2) / 2
    assert change["reward_parts"]["b"]["mean"] == (-4 + 2) / 2
    assert change["gold_parts"]["flaws"]["mean"] == 1.5


def test_where_no_prompt_was_scored_on_both_sides_there_is_no_win_rate_by_score() -> None:
    one, two = side([1.0, NAN], [1.0, 2.0]), side([NAN, 1.0], [1.0, 1.0])
    found = summarise(config(), Answers(one, two, None, None, {}))
    assert list(found["win_rate"]) == ["gold"] == list(found["length_controlled"])


def test_greedy_answers_are_compared_with_greedy_answers_and_models_alike() -> None:
    models = {"one": {"sampled": OTHER}, "two": {"sampled": GREEDY, "greedy": OTHER}}
    found = summary(greedy_policy=GREEDY, greedy_reference=GREEDY_REFERENCE, models=models)
    assert found["greedy"]["policy"]["score"]["mean"] == 9.0
    assert found["greedy"]["reference"]["score"]["mean"] == 9.0
    assert found["greedy"]["win_rate"]["score"]["mean"] == (0.5 + 0.5 + 0 + 1) / 4
    assert found["greedy"]["win_rate"]["gold"]["mean"] == (0.5 + 1 + 0.5 + 0.5) / 4
    assert found["models"]["one"]["path"] == "path/one"
    assert found["models"]["two"]["path"] == "path/two"
    one = found["models"]["one"]["sampled"]
    assert one["side"]["length"]["mean"] == 6.0
    assert one["win_rate"]["score"]["mean"] == (0 + 1 + 1) / 3
    two = found["models"]["two"]
    assert two["sampled"]["win_rate"]["score"]["mean"] == 1.0
    assert two["greedy"]["win_rate"]["score"]["mean"] == (0 + 0.5 + 0 + 1) / 4


def test_samples_are_a_line_a_prompt_with_every_answer_to_it(tmp_path: Path) -> None:
    answers = Answers(
        POLICY, REFERENCE, GREEDY, GREEDY_REFERENCE, {"one": {"sampled": OTHER, "greedy": GREEDY}}
    )
    prompts = plain_prompts({}, {}, {}, {})
    write_samples(tmp_path / "samples.jsonl", prompts, answers, None)
    lines = read_jsonl(tmp_path / "samples.jsonl")
    assert [line["prompt"] for line in lines] == [f"prompt {row}" for row in range(4)]
    assert lines[1]["policy"] == {
        "response": "c d", "score": None, "length": 20, "stopped": False, "kl": 0.2,
        "gold": {"score": 2.0, "flaws": 0.25},
    }  # fmt: skip
    assert lines[3]["reference"] == {
        "response": "answer 3 of 4", "score": 5.0, "length": 5, "stopped": True,
        "gold": {"score": 1.0, "flaws": 0.75},
    }  # fmt: skip
    assert lines[2]["greedy"]["reference"]["score"] == 10.0
    assert lines[2]["greedy"]["policy"]["score"] == 9.0
    assert lines[0]["models"]["one"]["sampled"]["score"] == 0.0
    assert lines[0]["models"]["one"]["greedy"]["score"] == 9.0


def test_letters_of_all_scripts_stay_readable(tmp_path: Path) -> None:
    answers = Answers(side([1.0], texts=["größer 大"]), side([1.0]), None, None, {})
    write_samples(tmp_path / "samples.jsonl", plain_prompts({}), answers, None)
    assert "größer 大" in (tmp_path / "samples.jsonl").read_text(encoding="utf-8")


# ---- during training


class Evaluator:
    """Gives a side for whatever is asked."""

    def __init__(self, found: Side) -> None:
        self.found = found

    def policy(self, prompts: Any) -> Any:
        return prompts

    def side(self, candidate: Any, moments: Any) -> Side:
        return self.found


def test_means_during_training_and_a_number_a_prompt() -> None:
    evaluator: Any = Evaluator(POLICY)
    found = during_training(evaluator, [], {})
    assert found.metrics == pytest.approx(
        {
            "heldout/score": (2 + 1 + 5) / 3,
            "heldout/kl": 0.3,
            "heldout/length": 74 / 4,
            "heldout/stopped": 0.75,
            "heldout/gold": 14 / 4,
            "heldout/gold/flaws": 1.5 / 4,
        }
    )
    assert (
        found.rows
        == numbers(POLICY)
        == {
            "score": [2.0, None, 1.0, 5.0],
            "kl": [0.1, 0.2, 0.3, 0.6],
            "length": [10, 20, 4, 40],
            "stopped": [1, 0, 1, 1],
            "gold": [1.0, 2.0, 3.0, 8.0],
        }
    )
    assert "gold" not in numbers(side([1.0]))
    assert part_names(POLICY.gold) == ["flaws"] and part_names([]) == []
    assert [number(torch.tensor(x)) for x in (1.5, NAN, math.inf, -math.inf)] == [
        1.5,
        None,
        None,
        None,
    ]


# ---- runs side by side


def write_run(folder: Path, mean: float, **more: Any) -> Path:
    (folder / "evaluation").mkdir(parents=True)
    one = {"mean": mean, "low": mean - 1, "high": mean + 1}
    content = {"win_rate": {"score": one} | more, "policy": {"score": one, "kl": one}}
    text = json.dumps(content)
    (folder / "evaluation" / "summary.json").write_text(text, encoding="utf-8")
    return folder


def test_runs_are_compared_by_method_over_their_seeds(tmp_path: Path) -> None:
    """2 and 4: mean 3, half width 12.706 sqrt(2) / sqrt(2)."""
    folders = [
        write_run(tmp_path / "dr-grpo-1", 2.0, gold={"mean": 0.5}),
        write_run(tmp_path / "dr-grpo-2", 4.0, gold={"mean": 0.5}),
        write_run(tmp_path / "gae-1", 7.0),
    ]
    lines = comparison_text(folders).partition("| method")[1:]
    lines = "".join(lines).splitlines()
    assert lines[0] == "| method | seeds | win rate by score | score | KL, nats |"  # gold: not all
    assert lines[2].startswith("| dr-grpo | 2 | 3.000 [-9.706, 15.706] |")
    assert lines[3] == "| gae | 1 | 7.000 | 7.000 | 7.000 |"


def test_a_run_that_is_given_twice_is_refused_and_one_of_the_same_name_is_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "again").mkdir()
    folders = [write_run(tmp_path / "gae-1", 1.0), write_run(tmp_path / "again" / "gae-1", 1.0)]
    with pytest.raises(UserError, match="gae-1: given twice"):
        comparison_text([folders[0], tmp_path / "again" / ".." / "gae-1"])
    lines = [line for line in comparison_text(folders).splitlines() if "| 1.000" in line]
    assert len(lines) == 2 and all("| 1 | 1.000" in line for line in lines)


# ---- the terminal


def test_samples_are_spread_over_the_set_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(table_module, "say", said.append)
    monkeypatch.setattr(table_module.console, "print", lambda text: said.append(str(text)))
    prompts = encoded_prompts([[1]] * 4)
    table_module.show_samples(prompts, POLICY, REFERENCE, 2)
    asked = [line.split()[-1] for line in said if "asked" in line]
    assert asked == ["0", "2"]
    assert "before" in said[1] and "answer 0 of 4" in said[1] and "score 1.00" in said[1]
    assert "after" in said[2] and "a a b" in said[2] and "gold 1.00" in said[2]
    assert "no score" in said[4]
    said.clear()
    table_module.show_samples(prompts, POLICY, REFERENCE, 99)
    assert len([line for line in said if "asked" in line]) == 4


def test_large_numbers_have_one_digit_less() -> None:
    policy = {"score": {"mean": 12.345, "low": 1.0, "high": 20.0}}
    reference = {"score": {"mean": -12.345, "low": -20.0, "high": 1.234}}
    content = {"prompts": 3, "policy": policy, "reference": reference, "win_rate": {}}
    with table_module.console.capture() as capture:
        table_module.show_summary(content)
    shown = capture.get()
    assert "12.3 [1.0, 20.0]" in shown and "-12.3 [-20.0, 1.2]" in shown


@pytest.mark.parametrize(("gold", "word"), [(0.4, "down"), (0.6, "up")])
def test_the_line_of_what_was_paid_for_the_score(gold: float, word: str) -> None:
    item = {"part": "flaws", "reference": 0.25, "policy": 1.5, "change": {"mean": 1.25}}
    content = {
        "policy": {"gold": {"mean": gold}},
        "reference": {"gold": {"mean": 0.5}},
        "exploited": [item],
    }
    assert table_module.exploited_line(content) == (
        f"score up, gold {word}: exploited: flaws .25 -> 1.50"
    )


def test_what_is_exploited_leaves_out_prompts_without_a_score() -> None:
    """The score rose where it is known; one missing score must not be a fall."""
    count = 40
    gold = [{"score": -0.5 * place - flaw, "flaws": flaw}
            for place, flaw in enumerate([1.0, 0.0] * 20)]  # fmt: skip
    worse = [{"score": item["score"] - 1, "flaws": item["flaws"] + 1} for item in gold]

    def of(scores: list[float], parts: Any) -> Side:
        ones = [1.0] * count
        return Side(["x"] * count, torch.tensor(scores), {}, parts, ones, ones, [])

    after, before = of([1.0] * 39 + [NAN], worse), of([0.0] * 39 + [99.0], gold)
    (found,) = exploited(after, before, SAMPLES, 0)
    assert found["part"] == "flaws"
    assert (found["reference"], found["policy"]) == (0.5, 1.5)
    assert found["change"]["mean"] == 1.0
    assert exploited(of([0.0] * 40, worse), of([0.0] * 40, gold), SAMPLES, 0) == []
    assert exploited(of([0.0] * 39 + [NAN], worse), of([0.0] * 40, gold), SAMPLES, 0) == []


def parts_side(parts: list[dict[str, float]], scores: list[float]) -> Side:
    ones = [1.0] * len(parts)
    return Side(["x"] * len(parts), torch.tensor(scores), {}, parts, ones, ones, [])


def test_a_score_that_is_known_to_have_risen_has_risen_wherever_it_is_known() -> None:
    """Of forty prompts few were scored on both sides; the others do not say that it stayed.

    Six that rose are beyond chance, p = 2 / 2^6; five are not.
    """
    before = [{"score": -float(place % 3), "flaws": float(place % 3)} for place in range(40)]
    after = [{"score": item["score"] - 1, "flaws": item["flaws"] + 1} for item in before]
    found = [
        exploited(
            parts_side(after, [1.0] * known + [NAN] * (40 - known)),
            parts_side(before, [0.0] * 40), SAMPLES, 0,
        )
        for known in (6, 5)
    ]  # fmt: skip
    assert [[item["part"] for item in items] for items in found] == [["flaws"], []]


def changed(others: int, moved: float = 1.0) -> list[dict[str, Any]]:
    """A flaw that rose by 2.4 standard errors beside parts whose changes are noise of mean 0."""
    source = torch.Generator().manual_seed(3)
    noise = {
        f"other{n}": [
            moved if place % 2 else -moved for place in torch.randperm(40, generator=source)
        ]
        for n in range(others)
    }
    steps = [0.385 + (1.0 if place % 2 else -1.0) for place in range(40)]
    still = {f"other{n}": 0.0 for n in range(others)}
    before = [{"score": -float(n % 4), "flaws": float(n % 4)} | still for n in range(40)]
    after = [
        {"score": item["score"] - step, "flaws": item["flaws"] + step}
        | {name: float(changes[place]) for name, changes in noise.items()}
        for place, (item, step) in enumerate(zip(before, steps, strict=True))
    ]
    return exploited(
        parts_side(after, [1.0] * 40), parts_side(before, [0.0] * 40), samples=4000, seed=0
    )


def test_of_many_parts_each_must_stand_out_further() -> None:
    """Ten parts raise a false alarm once in twenty evaluations together, not each."""
    assert [item["part"] for item in changed(others=0)] == ["flaws"]
    assert changed(others=9) == []
    # Parts that stayed as they were cannot raise a false alarm.
    assert [item["part"] for item in changed(others=9, moved=0.0)] == ["flaws"]


def test_the_largest_change_comes_first_whichever_way_it_went() -> None:
    """A virtue that fell by .9 and an error that rose by .3."""
    before = [
        {"score": float(a - b), "virtue": float(a), "flaw": float(b)}
        for a in range(5)
        for b in range(5)
    ]
    after = [
        {"score": p["score"] - 1.2, "virtue": p["virtue"] - 0.9, "flaw": p["flaw"] + 0.3}
        for p in before
    ]
    found = exploited(parts_side(after, [1.0] * 25), parts_side(before, [0.0] * 25), SAMPLES, 0)
    assert [item["part"] for item in found] == ["virtue", "flaw"]


def test_the_sign_of_a_part_is_that_of_its_slope_and_0_where_it_hardly_moves_the_total() -> None:
    """totals = 10 - a + .0001 b: about the means, not about 0, where both would look good."""
    a = torch.arange(20.0, dtype=torch.float64)
    b = (a * 7) % 20
    parts = torch.stack([a, b], dim=1)
    assert part_signs(parts, 100 - a + 0.0001 * b).tolist() == [-1.0, 0.0]
    assert part_signs(parts, 100 + a - b).tolist() == [1.0, -1.0]
