"""Rows to prompts, demonstrations and preferences: every form, and what is said of bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ppo.config import DataConfig
from rlhf_ppo.data.conversation import canonical, split_pair, transcript_messages
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
ROWS: list[Values] = [{"prompt": "one", "topic": 1}, {"prompt": "two", "topic": 2}]
HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: a joke?\n\nAssistant:"
HH_CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "a joke?"},
]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def prompts(folder: Path, *rows: Values, **settings: Any) -> list[Prompt]:
    source = write_jsonl(folder / "a.jsonl", rows)
    return read_prompts(source, "data.prompts", DataConfig(**settings), DataReport())


def preferences(folder: Path, *rows: Values, **settings: Any) -> list[Preference]:
    source = write_jsonl(folder / "a.jsonl", rows)
    return read_preferences(source, "data.preferences", DataConfig(**settings), DataReport())


def demonstrations(folder: Path, *rows: Values, **settings: Any) -> list[Demonstration]:
    source = write_jsonl(folder / "a.jsonl", rows)
    return read_demonstrations(source, "data.demonstrations", DataConfig(**settings), DataReport())


def test_prompts_keep_their_extra_columns_for_the_scorer(tmp_path: Path) -> None:
    found = prompts(tmp_path, *ROWS)
    assert [prompt.columns for prompt in found] == [{"topic": 1}, {"topic": 2}]
    assert [prompt.text for prompt in found] == ["one", "two"]
    assert [prompt.row for prompt in found] == [0, 1]


def test_a_column_that_some_rows_lack_is_none_there(tmp_path: Path) -> None:
    """A reward function got the column with some batches and not with others."""
    found = prompts(tmp_path, ROWS[0], {"prompt": "three", "answer": "3"})
    assert [prompt.columns for prompt in found] == [
        {"answer": None, "topic": 1},
        {"answer": "3", "topic": None},
    ]


@pytest.mark.parametrize(
    ("row", "text", "columns"),
    [
        ({"messages": [user("q")]}, [user("q")], {}),
        (
            {"messages": [system("s"), user("q"), assistant("a"), user("r")], "id": 7},
            [system("s"), user("q"), assistant("a"), user("r")],
            {"id": 7},
        ),
        ({"messages": [user("q"), assistant("a")]}, [user("q")], {"completion": "a"}),
        ({"prompt": HH}, HH_CHAT, {}),
        ({"prompt": HH + " Knock knock."}, HH_CHAT, {"completion": "Knock knock."}),
        ({"messages": HH + " Knock knock."}, HH_CHAT, {"completion": "Knock knock."}),
        ({"prompt": "Human: hi\n\nAssistant:"}, [user("hi")], {}),
        ({"prompt": "Human: a word for mankind"}, "Human: a word for mankind", {}),
        (
            {"chosen": HH + " Yes.", "rejected": HH + " No."},
            HH_CHAT,
            {"chosen": "Yes.", "rejected": "No."},
        ),
        ({"prompt": [user("q")] * 1 + [{**user("r"), "name": None}]}, [user("q"), user("r")], {}),
        ({"prompt": "q", "messages": [user("x")]}, "q", {"messages": [user("x")]}),
    ],
)
def test_every_form_of_a_prompt(tmp_path: Path, row: Values, text: Any, columns: Values) -> None:
    (found,) = prompts(tmp_path, row)
    assert (found.text, found.columns) == (text, columns)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"question": "x"}, "no column `prompt` (columns: question)"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": None}, "prompt is null"),
        ({"prompt": []}, "empty list"),
        ({"prompt": 3}, "must be a string or a list of chat messages (not 3)"),
        ({"prompt": ["x"]}, "needs messages like"),
        ({"prompt": [{"content": "x"}]}, "needs messages like"),
        ({"prompt": [{"from": "narrator", "value": "x"}]}, "from someone who is not known"),
        ({"prompt": [{"role": "user", "content": None}]}, "content is not text"),
        ({"prompt": [user(" ")]}, "empty in its last message"),
        ({"prompt": [assistant("x")]}, "ends with the assistant"),
        ({"prompt": [user("q"), assistant("x")]}, "belongs in a column `messages`"),
        ({"prompt": [system("x")]}, "ends with the system"),
        ({"prompt": json.dumps([user("x")])}, "the text of a list of messages"),
        ({"prompt": str([user("x")])}, "the text of a list of messages"),
        ({"prompt": "\n\nHuman: hi\n\nHuman: ho\n\nAssistant:"}, "two turns in a row"),
        ({"prompt": "\n\nHuman: \n\nAssistant: ho"}, "a transcript with an empty turn"),
        ({"messages": "hello"}, "messages must be a list of messages, or a transcript"),
        ({"messages": [assistant("a")]}, "after at least one other"),
        ({"messages": [user("q"), assistant("a")], "completion": "b"}, "`completion` too"),
        ({"chosen": "abc", "rejected": "xyz"}, "share no beginning"),
    ],
)
def test_a_bad_prompt_is_named_by_its_line(tmp_path: Path, row: Values, part: str) -> None:
    with pytest.raises(UserError) as caught:
        prompts(tmp_path, ROWS[0], row)
    assert f"{tmp_path / 'a.jsonl'}:2: " in str(caught.value) and part in str(caught.value)


def test_preferences_with_an_explicit_prompt(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": "bad", "kind": "tone"}
    (pair,) = preferences(tmp_path, row)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.kind) == ("q", "good", "bad", "tone")
    assert pair.where == f"{tmp_path / 'a.jsonl'}:1"


@pytest.mark.parametrize("explicit", [{}, {"prompt": "q"}, {"prompt": [user("q")]}])
def test_preferences_that_hold_their_prompt(tmp_path: Path, explicit: Values) -> None:
    """A column `prompt` only says it again; put in front it would stand there twice."""
    asked, good, bad = [user("q")], [assistant("yes")], [assistant("no")]
    (pair,) = preferences(tmp_path, explicit | {"chosen": asked + good, "rejected": asked + bad})
    assert (pair.prompt, pair.chosen, pair.rejected, pair.kind) == (asked, good, bad, "all")


def test_implicit_preferences_in_plain_text(tmp_path: Path) -> None:
    row = {"chosen": "Q: colour? A: red", "rejected": "Q: colour? A: tuesday"}
    (pair,) = preferences(tmp_path, row)
    assert isinstance(pair.prompt, str) and isinstance(pair.chosen, str)
    assert pair.prompt + pair.chosen == row["chosen"]
    assert pair.prompt + str(pair.rejected) == row["rejected"]


@given(*[st.text("ab \n", min_size=1)] * 3)
def test_plain_pairs_are_cut_without_loss_and_between_words(
    shared: str, better: str, worse: str
) -> None:
    """TRL's `extract_prompt` makes of ("abc ", "xyz") the prompt "abc" and the answers " ", "z"."""
    chosen, rejected = "say: " + shared + better, "say: " + shared + worse
    prompt, good, bad = split_pair(chosen, rejected)
    assert isinstance(prompt, str) and isinstance(good, str) and isinstance(bad, str)
    assert (prompt + good, prompt + bad) == (chosen, rejected)
    assert prompt == prompt.rstrip()
    assert not good or good[0].isspace()
    assert not bad or bad[0].isspace()


def test_transcripts_share_all_but_the_last_answer(tmp_path: Path) -> None:
    row = {"chosen": HH + " To get across.", "rejected": HH + " To get to war."}
    (chat,) = preferences(tmp_path, row)
    good, bad = [assistant("To get across.")], [assistant("To get to war.")]
    assert (chat.prompt, chat.chosen, chat.rejected) == (HH_CHAT, good, bad)
    (text,) = preferences(tmp_path, row, to_chat="never")
    assert (text.prompt, text.chosen, text.rejected) == (HH, " To get across.", " To get to war.")
    assert canonical(text.prompt) == canonical(chat.prompt)


def test_a_transcript_as_prompt_takes_plain_answers(tmp_path: Path) -> None:
    (pair,) = preferences(tmp_path, {"prompt": HH, "chosen": " Yes.", "rejected": " No."})
    assert (pair.prompt, pair.chosen) == (HH_CHAT, [assistant("Yes.")])


def test_what_a_person_quotes_is_no_turn() -> None:
    found = transcript_messages("\n\nHuman: he said\nHuman: no\n\nAssistant: he\n\nnever", "x")
    assert [message["content"] for message in found] == ["he said\nHuman: no", "he\n\nnever"]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": "q", "chosen": "a"}, "no column `rejected` (columns: chosen, prompt)"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "q", "chosen": "a ", "rejected": " a"}, "are the same"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "rejected is empty"),
        ({"prompt": "q", "chosen": [assistant("")], "rejected": "b"}, "chosen is empty"),
        ({"chosen": "abc", "rejected": "xyz"}, "share no beginning"),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("a")]}, "only begins the other"),
        ({"chosen": [user("a")], "rejected": [user("b")]}, "share no beginning"),
        (
            {"chosen": [user("a"), user("b")], "rejected": [user("a"), user("c")]},
            "differ before an answer",
        ),
        (
            {"prompt": "q", "chosen": [assistant("a")], "rejected": "b"},
            "must both be text or both be chat messages",
        ),
        (
            {"prompt": "q", "chosen": [assistant("a")], "rejected": [assistant("b")]},
            "the prompt is text and its completion chat messages",
        ),
        (
            {
                "prompt": [user("q")],
                "chosen": [assistant("a"), user("x")],
                "rejected": [assistant("b")],
            },
            "must end with the assistant (not user)",
        ),
        (
            {"chosen": HH + " a", "rejected": HH.replace("joke", "song") + " b"},
            "differ before an answer",
        ),
    ],
)
def test_a_bad_preference_is_named_by_its_line(tmp_path: Path, row: Values, part: str) -> None:
    with pytest.raises(UserError) as caught:
        preferences(tmp_path, row)
    assert f"{tmp_path / 'a.jsonl'}:1: " in str(caught.value) and part in str(caught.value)


def test_a_pair_of_texts_that_part_before_the_last_answer_is_bad(tmp_path: Path) -> None:
    row = {"chosen": HH + " a", "rejected": HH.replace("joke", "song") + " b"}
    with pytest.raises(UserError, match="differ before their last answer"):
        preferences(tmp_path, row, to_chat="never")


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"messages": [user("q"), assistant("a")]}, [user("q")], [assistant("a")]),
        ({"prompt": "q", "completion": "a"}, "q", "a"),
        ({"prompt": [user("q")], "completion": "a"}, [user("q")], [assistant("a")]),
        ({"messages": HH + " Knock."}, HH_CHAT, [assistant("Knock.")]),
    ],
)
def test_every_form_of_a_demonstration(
    tmp_path: Path, row: Values, prompt: Any, completion: Any
) -> None:
    (found,) = demonstrations(tmp_path, row)
    assert (found.prompt, found.completion) == (prompt, completion)


def test_plain_text_is_a_completion_of_nothing(tmp_path: Path) -> None:
    (found,) = demonstrations(tmp_path, {"text": "once upon"})
    assert (found.prompt, found.completion) == ("", "once upon")


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"words": "x"}, "no column `prompt`, `completion` (columns: words)"),
        ({"text": " "}, "text must be a string that is not empty (not ' ')"),
        ({"text": ["x"]}, "text must be a string that is not empty"),
        ({"prompt": "x"}, "no column `completion` (columns: prompt)"),
        ({"messages": [assistant("a")]}, "after at least one other"),
        ({"messages": [user("a")] * 2}, "must end with the assistant"),
        ({"messages": "q a"}, "a list of messages, or a transcript, with an answer last"),
        ({"prompt": "q", "completion": [assistant("a")]}, "the prompt is text"),
        (
            {"prompt": [user("q")], "completion": [user("q"), assistant("a")]},
            "begins with the prompt again",
        ),
    ],
)
def test_a_bad_demonstration_is_named_by_its_line(tmp_path: Path, row: Values, part: str) -> None:
    with pytest.raises(UserError) as caught:
        demonstrations(tmp_path, row)
    assert f"{tmp_path / 'a.jsonl'}:1: " in str(caught.value) and part in str(caught.value)


def test_the_system_prompt_stands_before_conversations_without_one(tmp_path: Path) -> None:
    rows = [{"prompt": [user("q")]}, {"prompt": [system("own"), user("q")]}, {"prompt": HH}]
    found = [prompt.text for prompt in prompts(tmp_path, *rows, system_prompt="Be kind.")]
    kind = system("Be kind.")
    assert found == [[kind, user("q")], [system("own"), user("q")], [kind, *HH_CHAT]]
    (pair,) = preferences(
        tmp_path,
        {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        system_prompt="Be kind.",
    )
    assert (pair.prompt, pair.chosen) == ([kind, user("q")], [assistant("a")])


def test_a_plain_string_takes_no_system_prompt_unless_it_becomes_a_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set data\.to_chat = always"):
        prompts(tmp_path, ROWS[0], system_prompt="Be kind.")
    (found,) = prompts(tmp_path, ROWS[0], system_prompt="Be kind.", to_chat="always")
    assert found.text == [system("Be kind."), user("one")]


def test_all_strings_become_messages_or_none(tmp_path: Path) -> None:
    row = {"prompt": "q", "completion": " a"}
    (found,) = demonstrations(tmp_path, row, to_chat="always")
    assert (found.prompt, found.completion) == ([user("q")], [assistant("a")])
    (prompt,) = prompts(tmp_path, {"prompt": HH}, to_chat="never")
    assert prompt.text == HH


def test_columns_are_renamed_where_a_source_looks_for_them(tmp_path: Path) -> None:
    columns = {"prompt": "question", "completion": "answer", "solution": "final"}
    row = {"question": "q", "answer": "a", "final": "4"}
    (asked,) = prompts(tmp_path, row, columns=columns)
    assert (asked.text, asked.columns) == ("q", {"answer": "a", "solution": "4"})
    (shown,) = demonstrations(tmp_path, row, columns=columns)
    assert (shown.prompt, shown.completion) == ("q", "a")


def test_two_columns_can_change_names_and_a_source_without_them_is_left_alone(
    tmp_path: Path,
) -> None:
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    (pair,) = preferences(
        tmp_path, {"prompt": "q", "chosen": "worse", "rejected": "better"}, columns=swapped
    )
    assert (pair.chosen, pair.rejected) == ("better", "worse")
    assert [p.text for p in prompts(tmp_path, *ROWS, columns={"prompt": "question"})] == [
        "one",
        "two",
    ]


def test_a_missing_column_is_asked_for_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column `question` \(columns: query\)"):
        prompts(tmp_path, {"query": "q"}, columns={"prompt": "question"})


@given(st.text(min_size=1).filter(str.strip))
def test_a_string_and_its_conversation_of_one_message_are_the_same_prompt(text: str) -> None:
    assert canonical(f" {text}\n") == canonical([user(text)])
    assert canonical([user(text)]) != canonical([system("s"), user(text)])
