"""No message is longer than a person reads, whatever value it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import write_jsonl

from rlhf_ppo.config import DataConfig
from rlhf_ppo.data.preferences import read_preferences
from rlhf_ppo.data.report import DataReport
from rlhf_ppo.errors import UserError, raise_all, shown

DEEP: Any = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        ["x" * 500] * 500,
        {str(n): "y" * 99 for n in range(999)},
        7**20000,
        DEEP,
        b"z" * 999,
    ],
    ids=["text", "list", "mapping", "number", "nested", "bytes"],
)
def test_any_value_is_shown_in_a_few_words(value: Any) -> None:
    assert len(shown(value)) <= 120
    assert len(shown(value, 60)) <= 60


@pytest.mark.parametrize("value", [3, None, "it's", [1, "a"], {"a": 1}, -2.5, True])
def test_a_short_value_is_shown_as_it_is(value: Any) -> None:
    assert shown(value) == repr(value)


def test_both_ends_of_a_long_line_and_the_last_line_stay() -> None:
    message = "\n".join([f"first {'x' * 999} set it to null", *["middle"] * 9999, "(data.prompts)"])
    found = str(UserError(message)).split("\n")
    assert found[0].startswith("first ") and found[0].endswith("set it to null")
    assert found[-1] == "(data.prompts)" and "lines left out" in found[-2]
    assert max(map(len, found)) <= 800 and len("\n".join(found)) <= 4000


def test_many_problems_make_one_message_of_bounded_length() -> None:
    with pytest.raises(UserError) as caught:
        raise_all([f"problem {number}: {'why ' * 50}" for number in range(500)])
    assert len(str(caught.value)) <= 4000


def test_pairs_in_an_unknown_form_are_refused_in_few_words(tmp_path: Path) -> None:
    """Rows of long dictionaries made an error of 25,877 characters, one line of 5,097."""
    turn = {"speaker": "human", "words": "A long answer about beans. " * 200}
    rows = [{"conversation": [turn] * 3, "chosen": turn, "rejected": turn} for _ in range(30)]
    source = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError) as caught:
        read_preferences(source, "data.preferences", DataConfig(), DataReport())
    lines = str(caught.value).split("\n")
    assert max(map(len, lines)) <= 800 and len(str(caught.value)) <= 4000
    assert "30 bad row(s)" in lines[0] and "data.bad_rows = drop" in lines[-1]
