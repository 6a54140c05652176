"""Rows from files and folders, and what is said of broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from helpers import write_jsonl

from rlhf_ppo.config import DataConfig
from rlhf_ppo.data.loading import BrokenRow, Row, fingerprint, hub_parts, read_rows
from rlhf_ppo.data.prompts import read_prompts
from rlhf_ppo.data.report import DataReport
from rlhf_ppo.errors import UserError

ROWS = [{"prompt": "one", "topic": 1}, {"prompt": "two", "topic": 2}]


def message(source: Path | str, setting: str = "data.prompts") -> str:
    with pytest.raises(UserError) as caught:
        read_rows(str(source), setting)
    return str(caught.value)


def rows_of(source: Path | str) -> list[Row]:
    found = read_rows(str(source), "data.prompts")
    assert not any(isinstance(row, BrokenRow) for row in found)
    return [row for row in found if isinstance(row, Row)]


def broken(source: Path | str) -> dict[str, str]:
    """Where something is that is no row, and why."""
    found = read_rows(str(source), "data.prompts")
    return {row.where: row.reason for row in found if isinstance(row, BrokenRow)}


def test_jsonl_json_and_saved_folder_hold_the_same_rows(tmp_path: Path) -> None:
    sources = [write_jsonl(tmp_path / "a.jsonl", ROWS)]
    (tmp_path / "a.json").write_text(json.dumps(ROWS), encoding="utf-8")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "folder")
    sources += [str(tmp_path / "a.json"), str(tmp_path / "folder")]
    for source in sources:
        assert [row.values for row in rows_of(source)] == ROWS


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
    assert [row.values for row in rows_of(str(path))] == [{"prompt": text}]


def test_every_broken_line_has_its_place_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x"}\n{"prompt": \n[1]\n"word"\n', encoding="utf-8")
    assert broken(path) == {
        f"{path}:2": "not valid JSON",
        f"{path}:3": "must be a JSON object",
        f"{path}:4": "must be a JSON object",
    }


def test_a_thousand_broken_lines_make_a_short_message(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{\n" * 990 + "[]\n" * 10, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_prompts(str(path), "data.prompts", DataConfig(), DataReport())
    found = str(caught.value)
    assert "1000 bad row(s)" in found and "... and 990 more" in found
    assert "990 x not valid JSON; 10 x must be a JSON object" in found
    assert len(found.splitlines()) < 16


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("a.json", '{"prompt": "x"}', "JSON list of objects"),
        ("a.json", '[{"a": 1},\n{]', ":2: not valid JSON"),
        ("a.tsv", "prompt\nx\n", "'.tsv'"),
        ("a.csv", "prompt,prompt\nx,y\n", ":1: the first line names ['prompt'] twice"),
        ("a.csv", "prompt,\nx,y\n", "has a column without a name"),
        ("a.csv", 'prompt\nx\n"y\nz\n', ":3: not valid CSV"),
        ("a.csv", "prompt\n", "holds no rows"),
        ("a.parquet", "prompt", "not a readable Parquet file"),
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


def test_a_json_file_of_one_object_a_line_is_read_too(tmp_path: Path) -> None:
    """`Dataset.to_json` writes such files under the name .json."""
    path = tmp_path / "a.json"
    datasets.Dataset.from_list(ROWS).to_json(path)
    assert rows_of(path) == [Row(f"{path}:{line}", row) for line, row in enumerate(ROWS, start=1)]


def test_parquet_holds_the_same_rows_by_index(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    chat = [{"prompt": [{"role": "user", "content": "x\ny"}], "n": 3, "m": None}]
    datasets.Dataset.from_list(chat * 2).to_parquet(path)
    assert rows_of(path) == [Row(f"{path}[0]", chat[0]), Row(f"{path}[1]", chat[0])]


def test_csv_rows_know_their_first_line_though_cells_span_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    text = 'prompt,answer\r\n"one\ntwo, ""three""",1\r\n\r\nfour,\r\n"five\r\n\r\nsix",2\r\n'
    path.write_bytes(text.encode("utf-8-sig"))
    assert rows_of(path) == [
        Row(f"{path}:2", {"prompt": 'one\ntwo, "three"', "answer": "1"}),
        Row(f"{path}:5", {"prompt": "four", "answer": ""}),
        Row(f"{path}:6", {"prompt": "five\r\n\r\nsix", "answer": "2"}),
    ]


def test_csv_cells_too_many_or_too_few_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,2\n3\n4,"5\n6",7\n8,9\n', encoding="utf-8")
    assert list(broken(path)) == [f"{path}:3", f"{path}:4"]


def test_csv_holds_chat_messages_as_json_and_long_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    chat = [{"role": "user", "content": 'say "x", please'}]
    long = "word " * 50_000
    frame = datasets.Dataset.from_list([{"prompt": json.dumps(chat), "context": long}])
    frame.to_csv(path)
    (row,) = rows_of(path)
    assert row.values == {"prompt": chat, "context": long}


def test_a_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("prompt\ncafe\ncaf\u00e9\n".encode("latin-1"))
    assert f"{path}:3: not UTF-8 text (byte 0xe9)" in message(path)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x"}\n', encoding="utf-8-sig")
    assert rows_of(path) == [Row(f"{path}:1", {"prompt": "x"})]


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("owner/name", ("owner/name", None, "train")),
        ("owner/name:test", ("owner/name", None, "test")),
        ("owner/name:main:test", ("owner/name", "main", "test")),
        ("owner/name:main:", ("owner/name", "main", "train")),
        ("owner/name:train[:100]", ("owner/name", None, "train[:100]")),
        ("owner/name:main:train[5:9]", ("owner/name", "main", "train[5:9]")),
    ],
)
def test_a_hub_id_has_a_config_and_a_split(
    source: str, parts: tuple[str, str | None, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub_parts(source) == parts
    asked: list[object] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [row.where for row in rows_of(source)] == [f"{source}[0]", f"{source}[1]"]
    assert asked == [parts]


def test_a_hub_id_that_cannot_be_loaded_says_so() -> None:
    assert "data.prompts: 'owner/nothing' is neither a file nor a folder" in message(
        "owner/nothing"
    )
