"""Repetition within and between texts, counted by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from rlhf_ppo.evaluation.diversity import distinct_change, distinct_n, repetition

TEXTS = ["the cat sat", "The cat ran", "a dog ran", ""]


def test_different_pairs_of_words_over_all_pairs() -> None:
    """the cat, cat sat; the cat, cat ran; a dog, dog ran: 5 different of 6."""
    assert distinct_n(TEXTS, 2)["mean"] == pytest.approx(5 / 6)
    # the cat sat ran a dog: 6 of 9.
    assert distinct_n(TEXTS, 1)["mean"] == pytest.approx(6 / 9)


@pytest.mark.parametrize("texts", [TEXTS, ["run run run now", "run now", "stop stop stop"]])
def test_the_interval_is_the_jackknifes(texts: list[str]) -> None:
    """Leave out each text in turn; sqrt((n - 1) / n times the sum of squares).

    A pair that one text alone has, twice, leaves with it.
    """
    words = [text.lower().split() for text in texts]

    def ratio(rows: list[list[str]]) -> float:
        pairs = [pair for row in rows for pair in pairwise(row)]
        return len(set(pairs)) / len(pairs)

    count, whole = len(words), ratio(words)
    without = [ratio(words[:n] + words[n + 1 :]) for n in range(count)]
    mean = sum(without) / count
    error = math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in without))
    found = distinct_n(texts, 2)
    assert found["mean"] == pytest.approx(whole)
    assert found["low"] == pytest.approx(max(0.0, whole - 1.96 * error))
    assert found["high"] == pytest.approx(min(1.0, whole + 1.96 * error))


def test_the_change_is_from_before_to_after_and_leaves_out_both_answers_to_a_prompt() -> None:
    before, after = TEXTS, ["the cat sat", "the cat sat", "a dog ran", "a dog"]

    def ratio(texts: list[str], left_out: int = -1) -> float:
        kept = [text.lower().split() for n, text in enumerate(texts) if n != left_out]
        pairs = [pair for words in kept for pair in pairwise(words)]
        return len(set(pairs)) / len(pairs)

    changes = [ratio(after, n) - ratio(before, n) for n in range(4)]
    mean = sum(changes) / 4
    error = 1.96 * math.sqrt(3 / 4 * sum((value - mean) ** 2 for value in changes))
    change = ratio(after) - ratio(before)
    assert change == pytest.approx(4 / 7 - 5 / 6)
    found = distinct_change(after, before, 2)
    expected = {"mean": change, "low": change - error, "high": change + error}
    assert found == pytest.approx(expected)
    assert distinct_change(TEXTS, TEXTS, 1) == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_an_interval_of_many_texts_holds_its_share() -> None:
    many = ["a b c d e"] * 30 + ["x y z u v"] * 30
    wide = distinct_n(many, 1)
    assert wide["low"] < wide["mean"] < wide["high"] < 1


def test_a_share_stays_between_0_and_1() -> None:
    found = distinct_n(["a b", "a b", "c d e f g h"], 1)
    assert 0 <= found["low"] <= found["mean"] <= found["high"] <= 1.0
    assert distinct_n(["a b c", "d e f", "a b d e"], 2)["high"] <= 1.0


def test_texts_without_words_have_no_diversity() -> None:
    assert distinct_n(["", "word"], 2) == {"mean": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.parametrize(
    ("text", "n", "share"),
    [
        ("a b c d e", 4, 0.0),
        ("a b c", 4, 0.0),
        ("a b a b a b", 2, 1 - 2 / 5),
        ("A a A a", 1, 3 / 4),
        ("a b c d a b c d", 4, 1 - 4 / 5),
        ("a b c d", 4, 0.0),
        ("", 1, 0.0),
    ],
)
def test_repetition_is_the_share_of_what_stood_there_before(
    text: str, n: int, share: float
) -> None:
    assert repetition(text, n) == pytest.approx(share)
