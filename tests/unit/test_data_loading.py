"""Rows from files and folders, and what is said of broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from helpers import write_jsonl

from rlhf_ppo.data.loading import fingerprint, read_rows
from rlhf_ppo.data.preferences import read_demonstrations, read_preferences
from rlhf_ppo.data.prompts import check_no_overlap, read_prompts
from rlhf_ppo.errors import UserError

ROWS = [{"prompt": "one", "topic": 1}, {"prompt": "two", "topic": 2}]


def message(source: Path | str, setting: str = "data.prompts") -> str:
    with pytest.raises(UserError) as caught:
        read_rows(str(source), setting)
    return str(caught.value)


def test_jsonl_json_and_saved_folder_hold_the_same_rows(tmp_path: Path) -> None:
    sources = [write_jsonl(tmp_path / "a.jsonl", ROWS)]
    (tmp_path / "a.json").write_text(json.dumps(ROWS), encoding="utf-8")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "folder")
    sources += [str(tmp_path / "a.json"), str(tmp_path / "folder")]
    for source in sources:
        assert [row.values for row in read_rows(source, "data.prompts")] == ROWS


def test_rows_know_their_line_blank_lines_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"prompt": "x"}\r\n\n{"prompt": "y"}', encoding="utf-8")
    assert [row.where for row in read_rows(str(path), "s")] == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_line_separator_inside_a_json_string_does_not_end_the_line(
    tmp_path: Path, separator: str
) -> None:
    path = tmp_path / "a.jsonl"
    text = f"before{separator}after"
    escaped = json.dumps({"prompt": text}, ensure_ascii=separator < "\x20")
    path.write_text(escaped + "\n", encoding="utf-8")
    assert [row.values for row in read_rows(str(path), "s")] == [{"prompt": text}]


def test_every_broken_line_is_named_with_file_and_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x"}\n{"prompt": \n[1]\n"word"\n', encoding="utf-8")
    found = message(path)
    assert "3 bad row(s)" in found
    for number in (2, 3, 4):
        assert f"{path}:{number}:" in found
    assert f"{path}:1:" not in found


def test_a_thousand_broken_lines_make_a_short_message(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{\n" * 1000, encoding="utf-8")
    found = message(path)
    assert "1000 bad row(s)" in found and "... and 990 more" in found
    assert len(found.splitlines()) < 15


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("a.json", '{"prompt": "x"}', "JSON list of objects"),
        ("a.json", '[{"a": 1},\n{]', ":2: not valid JSON"),
        ("a.csv", "prompt\nx\n", "'.csv'"),
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", "\n \n", "holds no rows"),
    ],
)
def test_unusable_files_say_why(tmp_path: Path, name: str, text: str, part: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    found = message(path)
    assert str(path) in found and part in found


def test_binary_missing_and_foreign_sources_say_why(tmp_path: Path) -> None:
    binary = tmp_path / "a.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in message(binary)
    assert "no such file or folder" in message(tmp_path / "nowhere.jsonl")
    assert "data.prompts" in message("nowhere.jsonl")
    (tmp_path / "folder").mkdir()
    assert "not a folder saved by `datasets`" in message(tmp_path / "folder")


def test_a_folder_with_splits_asks_for_one_of_them(tmp_path: Path) -> None:
    splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "both")
    assert "['test', 'train']" in message(tmp_path / "both")
    assert len(read_rows(str(tmp_path / "both" / "train"), "s")) == 2


def test_fingerprint_changes_with_the_data(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    before = fingerprint(write_jsonl(path, ROWS))
    assert fingerprint(str(path)) == before
    assert fingerprint(write_jsonl(path, ROWS[::-1])) != before
    assert fingerprint("owner/name") == "owner/name"
    folder = fingerprint(str(tmp_path))
    (tmp_path / "b.txt").write_text("new", encoding="utf-8")
    assert fingerprint(str(tmp_path)) != folder


def test_a_model_trained_again_to_the_same_size_is_another_model(tmp_path: Path) -> None:
    """Names and sizes alone took a retrained model for the one before, and resume went on."""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"a" * 5000)
    before = fingerprint(str(tmp_path))
    weights.write_bytes(b"a" * 4999 + b"b")
    assert fingerprint(str(tmp_path)) != before


def test_prompts_keep_their_extra_columns_for_the_scorer(tmp_path: Path) -> None:
    prompts = read_prompts(write_jsonl(tmp_path / "a.jsonl", ROWS), "data.prompts")
    assert [prompt.columns for prompt in prompts] == [{"topic": 1}, {"topic": 2}]
    assert [prompt.text for prompt in prompts] == ["one", "two"]
    assert [prompt.row for prompt in prompts] == [0, 1]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"question": "x"}, "no column `prompt` (columns: question)"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": []}, "empty list"),
        ({"prompt": 3}, "must be a string or a list of chat messages, not 3"),
        ({"prompt": ["x"]}, "needs messages like"),
        ({"prompt": [{"content": "x"}]}, "needs messages like"),
        ({"prompt": [{"role": "user", "content": None}]}, "content is not text"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "ends with the assistant"),
    ],
)
def test_a_bad_prompt_is_named_by_its_line(tmp_path: Path, row: dict, part: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], row])
    with pytest.raises(UserError) as caught:
        read_prompts(source, "data.prompts")
    assert f"{source}:2: " in str(caught.value) and part in str(caught.value)


def test_heldout_prompts_may_not_be_trained_on(tmp_path: Path) -> None:
    train = read_prompts(write_jsonl(tmp_path / "train.jsonl", ROWS), "s")
    heldout = read_prompts(write_jsonl(tmp_path / "held.jsonl", [{"prompt": "two"}]), "s")
    other = read_prompts(write_jsonl(tmp_path / "other.jsonl", [{"prompt": "three"}]), "s")
    check_no_overlap(train, other)
    with pytest.raises(UserError) as caught:
        check_no_overlap(train, heldout)
    assert "held.jsonl:1" in str(caught.value) and "train.jsonl:2" in str(caught.value)


def test_preferences_with_an_explicit_prompt(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": "bad", "kind": "tone"}
    (pair,) = read_preferences(write_jsonl(tmp_path / "a.jsonl", [row]), "s")
    assert (pair.prompt, pair.chosen, pair.rejected, pair.kind) == ("q", "good", "bad", "tone")


def test_preferences_that_share_their_beginning_have_an_implicit_prompt(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "q"}]
    good, bad = ([{"role": "assistant", "content": text}] for text in ("yes", "no"))
    rows = [{"chosen": asked + good, "rejected": asked + bad}]
    (pair,) = read_preferences(write_jsonl(tmp_path / "a.jsonl", rows), "s")
    assert (pair.prompt, pair.chosen, pair.rejected, pair.kind) == (asked, good, bad, "all")


def test_implicit_preferences_in_plain_text(tmp_path: Path) -> None:
    rows = [{"chosen": "Q: colour? A: red", "rejected": "Q: colour? A: tuesday"}]
    (pair,) = read_preferences(write_jsonl(tmp_path / "a.jsonl", rows), "s")
    assert isinstance(pair.prompt, str) and isinstance(pair.chosen, str)
    assert pair.prompt + pair.chosen == rows[0]["chosen"]
    assert pair.prompt + str(pair.rejected) == rows[0]["rejected"]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": "q", "chosen": "a"}, "no column `rejected` (columns: chosen, prompt)"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "rejected is empty"),
        ({"chosen": "abc", "rejected": "xyz"}, "prompt is empty"),
        (
            {"prompt": "q", "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"},
            "must both be text or both be chat messages",
        ),
    ],
)
def test_a_bad_preference_is_named_by_its_line(tmp_path: Path, row: dict, part: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [row])
    with pytest.raises(UserError) as caught:
        read_preferences(source, "data.preferences")
    assert f"{source}:1: " in str(caught.value) and part in str(caught.value)


def test_plain_text_is_a_completion_of_nothing(tmp_path: Path) -> None:
    (found,) = read_demonstrations(write_jsonl(tmp_path / "a.jsonl", [{"text": "once upon"}]))
    assert (found.prompt, found.completion) == ("", "once upon")


def test_demonstrations_from_messages_and_from_prompt_and_completion(tmp_path: Path) -> None:
    user, assistant = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    rows = [{"messages": [user, assistant]}, {"prompt": "q", "completion": "a"}]
    chat, plain = read_demonstrations(write_jsonl(tmp_path / "a.jsonl", rows))
    assert (chat.prompt, chat.completion) == ([user], [assistant])
    assert (plain.prompt, plain.completion) == ("q", "a")


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"words": "x"}, "needs `messages`, `prompt` and `completion`, or `text` (columns: words)"),
        ({"text": " "}, "text must be a string that is not empty, not ' '"),
        ({"text": ["x"]}, "text must be a string"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "after at least one other"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "ends with the assistant"),
        ({"prompt": "q", "completion": [{"role": "assistant", "content": "a"}]}, "must both be"),
    ],
)
def test_a_bad_demonstration_is_named_by_its_line(tmp_path: Path, row: dict, part: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [row])
    with pytest.raises(UserError) as caught:
        read_demonstrations(source)
    assert f"{source}:1: " in str(caught.value) and part in str(caught.value)
