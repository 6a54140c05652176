"""Rows from files and folders, and what is said of broken ones."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import datasets
import pyarrow
import pytest
from helpers import write_jsonl
from huggingface_hub import constants

from rlhf_ppo import hub
from rlhf_ppo.config import DataConfig
from rlhf_ppo.data.loading import BrokenRow, Row, fingerprint, hub_parts, read_rows
from rlhf_ppo.data.prompts import read_prompts
from rlhf_ppo.data.report import DataReport
from rlhf_ppo.errors import UserError

ROWS = [{"prompt": "one", "topic": 1}, {"prompt": "two", "topic": 2}]


def zstd(raw: bytes) -> bytes:
    return bytes(pyarrow.compress(raw, codec="zstd", asbytes=True))


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
    found = message("owner/nothing")
    assert "data.prompts: 'owner/nothing' is neither a file nor a folder" in found
    assert "HF_HUB_OFFLINE is set" in found and "hf download owner/nothing --repo-type" in found


def test_without_a_network_a_hub_id_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries tried again and again for a minute, and did not name HF_HUB_OFFLINE."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub.hub_problem.cache_clear()
    try:
        found = message("owner/nothing")
        assert constants.HF_HUB_OFFLINE  # so that models are not tried for a minute either
    finally:
        hub.hub_problem.cache_clear()
    assert "http://127.0.0.1:9 does not answer" in found
    assert "hf download owner/nothing --repo-type dataset" in found


COMPRESSORS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_compressed_files_hold_the_same_rows_with_their_lines(tmp_path: Path, suffix: str) -> None:
    texts = {
        "jsonl": "\n".join(json.dumps(row) for row in ROWS),
        "json": json.dumps(ROWS),
        "csv": "prompt,topic\none,1\ntwo,2\n",
    }
    for kind, text in texts.items():
        path = tmp_path / f"a.{kind}.{suffix}"
        path.write_bytes(COMPRESSORS[suffix](text.encode()))
        found = rows_of(path)
        assert [row.values["prompt"] for row in found] == ["one", "two"]
        first = {"jsonl": ":1", "json": "[0]", "csv": ":2"}[kind]
        assert found[0].where == f"{path}{first}"


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.jsonl.gz", b'{"prompt": "x"}', "cannot be read as .gz"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"prompt": "x"}' * 99, mtime=0)[:-12],
            "cannot be read as .gz",
        ),
        ("a.jsonl.xz", b"x", "cannot be read as .xz"),
        ("a.jsonl.zst", b"x", "cannot be read as .zst"),
        ("a.jsonl", gzip.compress(b"x", mtime=0), "Name it a.jsonl.gz"),
        ("a.csv", bz2.compress(b"x"), "Name it a.csv.bz2"),
        ("a.parquet.gz", b"x", "unknown kind of file '.parquet.gz'"),
        ("a.gz", b"x", "unknown kind of file '.gz'"),
        ("a.jsonl.gz", gzip.compress(b"\xff", mtime=0), ":1: not UTF-8"),
    ],
    ids=range(9),
)
def test_damaged_or_misnamed_archives_say_so(
    tmp_path: Path, name: str, content: bytes, part: str
) -> None:
    (tmp_path / name).write_bytes(content)
    found = message(tmp_path / name)
    assert str(tmp_path / name) in found and part in found


NUMBERED = [{"prompt": f"row {number}"} for number in range(10)]


SLICES = {
    "[:3]": slice(3),
    "[4:7]": slice(4, 7),
    "[-2:]": slice(8, 10),
    "[:-7]": slice(3),
    "[:20%]": slice(2),
    "[33%:]": slice(3, 10),
    "[:999]": slice(10),
}


@pytest.mark.parametrize("part", SLICES)
def test_a_slice_of_a_local_file_is_that_of_datasets(tmp_path: Path, part: str) -> None:
    """`file.jsonl[:100]` was a missing file, though `owner/name:train[:100]` was a slice."""
    expected = NUMBERED[SLICES[part]]
    path = tmp_path / "a.jsonl"
    write_jsonl(path, NUMBERED)
    found = rows_of(f"{path}{part}")
    assert [row.values for row in found] == expected
    lines = [f"{path}:{int(row['prompt'][4:]) + 1}" for row in expected]
    assert [row.where for row in found] == lines  # of the file, not of the slice
    datasets.Dataset.from_list(NUMBERED).save_to_disk(tmp_path / "folder")
    assert [row.values for row in rows_of(f"{tmp_path / 'folder'}{part}")] == expected


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("[a:b]", "'[a:b]' is no slice"),
        ("[3]", "is no slice"),
        ("[:200%]", "is no slice"),
        ("[7:3]", "no rows in the slice [7:3]; there are 10"),
        ("[50:60]", "no rows in the slice"),
    ],
)
def test_a_slice_that_is_none_says_how_to_write_one(tmp_path: Path, part: str, words: str) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, NUMBERED)
    assert words in message(f"{path}{part}")
    assert "no such file" in message(f"{tmp_path / 'b.jsonl'}{part}")


def test_slices_count_rows_that_are_broken_and_brackets_may_be_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x"}\n{\n\n{"prompt": "y"}\n', encoding="utf-8")
    assert broken(f"{path}[:2]") == {f"{path}:2": "not valid JSON"}
    assert [row.where for row in read_rows(f"{path}[2:]", "s")] == [f"{path}:4"]
    named = tmp_path / "b[:1].jsonl"
    write_jsonl(named, NUMBERED)
    assert len(rows_of(named)) == 10 and len(rows_of(f"{named}[:4]")) == 4


def test_a_fingerprint_knows_the_slice(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, NUMBERED)
    prints = {fingerprint(str(path)), fingerprint(f"{path}[:5]"), fingerprint(f"{path}[:6]")}
    assert len(prints) == 3
    before = fingerprint(f"{path}[:5]")
    write_jsonl(path, NUMBERED[::-1])
    assert fingerprint(f"{path}[:5]") != before


BAD_VALUES = {
    "5000 digits": (f'"x": {"9" * 5000}', "column x holds a number that is too long"),
    "deep": (f'"x": {"[" * 100_000}{"]" * 100_000}', "not valid JSON"),
    "deep but readable": (f'"x": {"[" * 300}{"]" * 300}', "column x holds something nested"),
    "no number": ('"x": NaN', "column x holds a number that JSON does not have"),
    "infinite": ('"x": [1, -Infinity]', "column x holds a number that JSON does not have"),
    "too large": ('"x": {"y": 1e999}', "column x holds a number out of range"),
    "twice": ('"prompt": "b"', "is an object that names a key twice"),
    "twice inside": ('"x": {"y": 1, "y": 2}', "column x holds an object that names a key twice"),
    "half": (r'"x": "see \ud83d"', "column x holds half of a character"),
    "half inside": (r'"x": [{"y": "\udc00"}]', "column x holds half of a character"),
    "half in a name": (r'"\ud83d": 1', "holds half of a character"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_what_pythons_reader_lets_pass_or_ends_on_is_one_bad_row(tmp_path: Path, name: str) -> None:
    """5000 digits were a ValueError, deep nesting a RecursionError: tracebacks without a line."""
    text, reason = BAD_VALUES[name]
    path = tmp_path / "a.jsonl"
    good = '{"prompt": "a"}\n'
    path.write_text(f'{good}{{"prompt": "a", {text}}}\n{good}', encoding="utf-8")
    ((where, found),) = broken(path).items()
    assert where == f"{path}:2" and reason in found
    whole = tmp_path / "a.json"
    whole.write_text(f'[{{"prompt": "a"}},\n{{"prompt": "a", {text}}}]', encoding="utf-8")
    if name == "deep":
        assert f"{whole}:2: not valid JSON (nested more than" in message(whole)
    else:
        assert [*broken(whole)] == [f"{whole}[1]"]


@pytest.mark.parametrize("value", ["1", "[1]", '"x"', "null", "true", "NaN", "9" * 5000])
def test_a_row_that_is_no_object_is_one_bad_row(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{value}\n', encoding="utf-8")
    assert [*broken(path)] == [f"{path}:2"]


def test_parquet_counts_on_past_a_thousand_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list([{"n": n} for n in range(1002)]).to_parquet(path)
    rows = read_rows(str(path), "data.prompts")
    assert [row.where for row in rows] == [f"{path}[{n}]" for n in range(1002)]
    assert [row.values["n"] for row in rows if isinstance(row, Row)] == list(range(1002))


def test_parquet_with_text_that_is_not_utf8_names_the_row(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    raw = pyarrow.array([b"good", b"caf\xe9", b"fine"], pyarrow.binary())
    texts = pyarrow.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"prompt": texts}), path)
    assert broken(path) == {f"{path}[1]": "holds a value that cannot be read"}
    assert [row.where for row in read_rows(str(path), "s")] == [f"{path}[{n}]" for n in range(3)]


def test_parquet_with_a_time_that_python_does_not_have_names_the_row(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    times = pyarrow.array([0, 2**62, 1], pyarrow.timestamp("us"))
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a", "b", "c"], "at": times}), path)
    assert [*broken(path)] == [f"{path}[1]"]


@pytest.mark.parametrize("source", ["x" * 5000, "a\0b.jsonl", "./" + "y" * 300])
def test_what_can_be_no_path_is_a_missing_one(source: str) -> None:
    found = message(source)
    assert "no such file or folder" in found and len(found) < 600
