"""Rows as people have them: ShareGPT, Alpaca, content parts, preferences to imitate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import write_jsonl

from rlhf_ppo.config import DataConfig
from rlhf_ppo.data.preferences import (
    Demonstration,
    Preference,
    read_demonstrations,
    read_preferences,
)
from rlhf_ppo.data.prompts import Prompt, read_prompts
from rlhf_ppo.data.report import DataReport
from rlhf_ppo.errors import UserError

Values = dict[str, Any]
SHARED = [
    {"from": "human", "value": "q"},
    {"from": "gpt", "value": "a"},
    {"from": "human", "value": "r"},
]
CHAT = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
]
ANSWER = {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}


def user(text: str) -> Values:
    return {"role": "user", "content": text}


def prompts(folder: Path, *rows: Values, **settings: Any) -> list[Prompt]:
    source = write_jsonl(folder / "a.jsonl", rows)
    return read_prompts(source, "data.prompts", DataConfig(**settings), DataReport())


def preferences(folder: Path, *rows: Values, **settings: Any) -> list[Preference]:
    source = write_jsonl(folder / "a.jsonl", rows)
    return read_preferences(source, "data.preferences", DataConfig(**settings), DataReport())


def demonstrations(folder: Path, *rows: Values, **settings: Any) -> list[Demonstration]:
    source = write_jsonl(folder / "a.jsonl", rows)
    return read_demonstrations(source, "data.demonstrations", DataConfig(**settings), DataReport())


@pytest.mark.parametrize(
    ("row", "text", "columns"),
    [
        ({"conversations": SHARED}, CHAT, {}),
        ({"conversations": SHARED, "system": "s"}, [SYSTEM, *CHAT], {"system": "s"}),
        ({"conversations": SHARED, "system": ""}, CHAT, {"system": ""}),
        ({"conversations": CHAT}, CHAT, {}),
        ({"conversation": SHARED, "id": 3}, CHAT, {"id": 3}),
        ({"messages": SHARED}, CHAT, {}),
        ({"prompt": SHARED}, CHAT, {}),
        ({"conversations": [*SHARED, {"from": "GPT", "value": "b"}]}, CHAT, {"completion": "b"}),
        (
            {"conversations": [{"from": "system", "value": "s"}, *SHARED[:1]], "system": "t"},
            [SYSTEM, user("q")],
            {"system": "t"},
        ),
        ({"instruction": "q", "output": "a"}, [user("q")], {"output": "a"}),
        ({"instruction": "q", "input": "", "output": "a"}, [user("q")], {"output": "a"}),
        ({"instruction": "q", "input": "x", "output": "a"}, [user("q\nx")], {"output": "a"}),
        (
            {"instruction": "r", "input": None, "system": "s", "history": [["q", "a"]]},
            [SYSTEM, *CHAT],
            {},
        ),
        ({"prompt": "q", "instruction": "x"}, "q", {"instruction": "x"}),
        (
            {"conversations": SHARED, "chosen": {"from": "gpt", "value": "b"}, "rejected": []},
            CHAT,
            {"chosen": [ANSWER], "rejected": []},
        ),
    ],
)
def test_prompts_in_other_programs_forms(
    tmp_path: Path, row: Values, text: Any, columns: Values
) -> None:
    (found,) = prompts(tmp_path, row)
    assert (found.text, found.columns) == (text, columns)


@pytest.mark.parametrize("speaker", ["human", "Human", "user", "prompter"])
@pytest.mark.parametrize("answerer", ["gpt", "assistant", "chatgpt", "bot", "model", "bing"])
def test_speakers_have_several_names(tmp_path: Path, speaker: str, answerer: str) -> None:
    turns = [{"from": speaker, "value": "q"}, {"from": answerer, "value": "b"}]
    (found,) = demonstrations(tmp_path, {"conversations": turns})
    assert (found.prompt, found.completion) == ([user("q")], [ANSWER])


def test_a_tool_keeps_its_turn(tmp_path: Path) -> None:
    turns = [*SHARED[:1], {"from": "function_call", "value": "f()"}]
    turns += [{"from": "observation", "value": "3"}, {"from": "gpt", "value": "b"}]
    (found,) = demonstrations(tmp_path, {"conversations": turns})
    roles = [message["role"] for message in found.prompt]  # type: ignore[index]
    assert roles == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "input": "x", "output": "b"},
        {"instruction": "q\nx", "output": "b", "text": "Below is an instruction ..."},
        {"instruction": "", "input": "q\nx", "output": "b"},
    ],
)
def test_alpaca_demonstrations_hold_their_input(tmp_path: Path, row: Values) -> None:
    (found,) = demonstrations(tmp_path, row)
    assert (found.prompt, found.completion) == ([user("q\nx")], [ANSWER])


def test_alpaca_stays_text_where_no_chat_is_wanted(tmp_path: Path) -> None:
    row = {"instruction": "q", "input": "x", "output": "b"}
    (found,) = demonstrations(tmp_path, row, to_chat="never")
    assert (found.prompt, found.completion) == ("q\nx", "b")
    with pytest.raises(UserError, match="a system text or a history"):
        demonstrations(tmp_path, row | {"system": "s"}, to_chat="never")


def test_a_mapped_instruction_does_not_lose_its_input(tmp_path: Path) -> None:
    """{prompt: instruction} asked "Translate:" of every row, without what was to be translated."""
    rows = [{"instruction": "Translate:", "input": "chat", "output": "cat"}]
    rows += [{"instruction": "Count.", "input": "", "output": "1"}]
    columns = {"prompt": "instruction"}
    assert [p.text for p in prompts(tmp_path, *rows, columns=columns)] == [
        "Translate:\nchat",
        "Count.",
    ]
    columns["completion"] = "output"
    (first, _) = demonstrations(tmp_path, *rows, columns=columns)
    assert (first.prompt, first.completion) == ("Translate:\nchat", "cat")


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversations": SHARED,
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        {"messages": CHAT, "chosen": ANSWER, "rejected": ANSWER | {"content": "no"}},
        {
            "conversations": SHARED,
            "chosen": [{"from": "gpt", "value": "b"}],
            "rejected": [{"from": "gpt", "value": "no"}],
        },
        {"conversations": SHARED, "chosen": "b", "rejected": "no"},
        {
            "chosen": [*SHARED, {"from": "gpt", "value": "b"}],
            "rejected": [*SHARED, {"from": "gpt", "value": "no"}],
        },
        {"instruction": "r", "history": [["q", "a"]], "chosen": "b", "rejected": "no"},
    ],
)
def test_preferences_in_other_programs_forms(tmp_path: Path, row: Values) -> None:
    (pair,) = preferences(tmp_path, row)
    worse = [{"role": "assistant", "content": "no"}]
    assert (pair.prompt, pair.chosen, pair.rejected) == (CHAT, [ANSWER], worse)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}],
        [{"type": "text", "text": "one two", "image_url": None}],
        ["one ", {"type": "input_text", "text": "two"}],
    ],
)
def test_parts_of_text_are_one_text(tmp_path: Path, content: Any) -> None:
    (found,) = prompts(tmp_path, {"prompt": [{"role": "user", "content": content}]})
    assert found.text == [user("one two")]


HH = "\n\nHuman: hi\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"chosen": HH + " b", "rejected": HH + " no"}, [user("hi")], [ANSWER]),
        ({"prompt": "q", "chosen": "b", "rejected": "no"}, "q", "b"),
        ({"chosen": [user("q"), ANSWER], "rejected": [user("q")]}, [user("q")], [ANSWER]),
        ({"chosen": "Q: 1+1? A: 2", "rejected": "Q: 1+1? A: 3"}, "Q: 1+1? A:", " 2"),
        ({"conversations": SHARED, "chosen": {"from": "gpt", "value": "b"}}, CHAT, [ANSWER]),
        ({"prompt": "q", "completion": "b"}, "q", "b"),
    ],
)
def test_the_chosen_side_is_imitated_where_that_is_asked_for(
    tmp_path: Path, row: Values, prompt: Any, answer: Any
) -> None:
    (found,) = demonstrations(tmp_path, row, chosen_as_demonstrations=True)
    assert (found.prompt, found.completion) == (prompt, answer)


@pytest.mark.parametrize(
    ("read", "row", "part"),
    [
        (demonstrations, {"chosen": HH + " b", "rejected": HH}, "chosen_as_demonstrations = true"),
        (demonstrations, {"prompt": "q", "completion": "b", "label": False}, "labelled as bad"),
        (demonstrations, {"instruction": "q", "input": [1], "output": "b"}, "must both be text"),
        (demonstrations, {"instruction": "", "input": "", "output": "b"}, "instruction is empty"),
        (demonstrations, {"instruction": "q", "history": ["x"], "output": "b"}, "list of pairs"),
        (demonstrations, {"conversations": SHARED}, "must end with the assistant"),
        (demonstrations, {"conversations": []}, "messages is an empty list"),
        (
            preferences,
            {"prompt": "q", "completion": "b", "label": True},
            "one answer with a `label`",
        ),
        (preferences, {"chosen": HH, "rejected": HH + " no"}, "the answer of chosen is empty"),
        (preferences, {"chosen": HH + " b", "rejected": HH + " "}, "answer of rejected is empty"),
        (prompts, {"chosen": HH + " b", "rejected": HH}, "the answer of rejected is empty"),
        (prompts, {"conversations": [{"from": "owl", "value": "q"}]}, "someone who is not known"),
        (prompts, {"conversations": SHARED, "tools": "[{...}]"}, "declares tools"),
        (prompts, {"conversations": "hello"}, "no column `prompt`"),
        (prompts, {"conversations": [{"from": "human"}]}, "content is not text"),
        (
            prompts,
            {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "a part of type image_url; only text can be used",
        ),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, read: Any, row: Values, part: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, row)
    assert f"{tmp_path / 'a.jsonl'}:1: " in str(caught.value) and part in str(caught.value)


def test_an_empty_answer_is_named_without_chat_too(tmp_path: Path) -> None:
    """ "must be a list of messages, or a transcript" was said of a transcript."""
    with pytest.raises(UserError, match="the answer of rejected is empty"):
        preferences(tmp_path, {"chosen": HH + " b", "rejected": HH}, to_chat="never")


def test_reading_a_row_does_not_change_it(tmp_path: Path) -> None:
    """TRL's conversion works in place, and a data set may be read for two settings."""
    from rlhf_ppo.data.forms import to_trl

    row: Values = {"conversations": [dict(turn) for turn in SHARED], "chosen": {"value": "b"}}
    before = json.dumps(row)
    to_trl(row, "preferences", DataConfig())
    assert json.dumps(row) == before
