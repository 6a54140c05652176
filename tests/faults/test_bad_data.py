"""Bad data: exit code 2, one clear message with place, value and remedy, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from test_bad_input import Case, Change, chat_case, check_refused, plain_case

REMEDY = "Mend or remove these rows, or drop them by data.bad_rows = drop"
USER = {"role": "user", "content": "why?"}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def add(source: str, **row: Any) -> Change:
    """A change that appends one row."""
    return lambda case: case.append(source, json.dumps(row))


def file(source: str, name: str, content: str | bytes) -> Change:
    """A change that gives a source another file."""

    def change(case: Case) -> None:
        raw = content if isinstance(content, bytes) else content.encode()
        (case.folder / name).write_bytes(raw)
        case.section("data")[source] = name

    return change


def saved(source: str, name: str, splits: dict[str, list[dict[str, Any]]]) -> Change:
    """A change that gives a source a folder saved by `datasets`, with splits."""

    def change(case: Case) -> None:
        content = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
        datasets.DatasetDict(content).save_to_disk(case.folder / name)
        case.section("data")[source] = name

    return change


def data(*changes: Change, **settings: Any) -> Change:
    """Several changes and settings of the data section."""

    def change(case: Case) -> None:
        for one in changes:
            one(case)
        case.section("data").update(settings)

    return change


CHAT: dict[str, tuple[Change, list[str]]] = {
    "prompt that is empty": (add("prompts", prompt=""), ["prompts.jsonl:9", "is empty", REMEDY]),
    "prompt that is null": (add("prompts", prompt=None), ["prompts.jsonl:9", "is null", REMEDY]),
    "prompt that is a number": (
        add("prompts", prompt=17),
        ["prompts.jsonl:9", "must be a string or a list of chat messages (not 17)", REMEDY],
    ),
    "prompt with half of a character": (
        add("prompts", prompt="see \ud83d"),
        ["prompts.jsonl:9", "half of a character", "'\\ud83d' at 4", REMEDY],
    ),
    "messages without roles": (
        add("prompts", prompt=[{"speaker": "human", "text": "why?"}]),
        ["prompts.jsonl:9", "'speaker': 'human'", "needs messages like {'role': 'user'", REMEDY],
    ),
    "message with an image": (
        add("prompts", prompt=[{"role": "user", "content": [{"type": "image", "url": "x"}]}]),
        ["prompts.jsonl:9", "a part of type image", "'type': 'image'", REMEDY],
    ),
    "messages as their text": (
        add("heldout_prompts", prompt=str([USER])),
        ["heldout.jsonl:9", "store it as a list", "why?", REMEDY],
    ),
    "prompt that ends with an answer": (
        add("prompts", prompt=[USER, answer("so")]),
        ["prompts.jsonl:9", "ends with the assistant", "a column `messages`"],
    ),
    "transcript with two turns of one side": (
        add("prompts", prompt="\n\nHuman: a\n\nHuman: b\n\nAssistant:"),
        ["prompts.jsonl:9", "two turns in a row", "Human", REMEDY],
    ),
    "prompts without their column": (
        add("heldout_prompts", question="why?"),
        ["heldout.jsonl:9", "no column `prompt`", "columns: question"],
    ),
    "demonstration without an answer": (
        add("demonstrations", messages=[USER, USER]),
        ["demonstrations.jsonl:33", "must end with the assistant", "roles: user, user", REMEDY],
    ),
    "demonstration of half a row": (
        add("demonstrations", prompt="why?"),
        ["demonstrations.jsonl:33", "no column `completion`", "columns: prompt"],
    ),
    "pair of equals": (
        add("preferences", prompt="q", chosen="a", rejected="a"),
        ["preferences.jsonl:9", "chosen and rejected are the same", REMEDY],
    ),
    "pair without a shared beginning": (
        add("preferences", chosen="yes", rejected="no"),
        ["preferences.jsonl:9", "share no beginning", "no column `prompt`"],
    ),
    "pair of text and messages": (
        add("preferences", prompt="q", chosen="a", rejected=[answer("b")]),
        ["preferences.jsonl:9", "must both be text or both be chat messages"],
    ),
    "transcripts that part before the answer": (
        add(
            "preferences",
            chosen="\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            rejected="\n\nHuman: a\n\nAssistant: b\n\nHuman: x\n\nAssistant: d",
        ),
        ["preferences.jsonl:9", "differ before an answer of the assistant", REMEDY],
    ),
    "held-out pair that is empty": (
        add("heldout_preferences", prompt="q", chosen="a", rejected=" "),
        ["heldout_preferences.jsonl:5", "rejected is empty", "(data.heldout_preferences)"],
    ),
    "repeated prompt": (
        data(add("prompts", prompt=[USER]), add("prompts", prompt="why?"), duplicates="refuse"),
        ["prompts.jsonl:10: repeats", "prompts.jsonl:9", "set data.duplicates to keep or drop"],
    ),
    "prompt that is too long": (
        data(
            add("prompts", prompt=[{"role": "user", "content": "why? " * 30}]),
            max_prompt_tokens=40,
            long_rows="refuse",
        ),
        ["prompts.jsonl:9", "tokens, more than data.max_prompt_tokens = 40", "long_rows = drop"],
    ),
    "demonstration that is too long": (
        data(
            add("demonstrations", messages=[USER, answer("so. " * 700)]),
            long_rows="refuse",
        ),
        [
            "demonstrations.jsonl:33",
            "more than the 96 positions of policy.scratch",
            "long_rows = drop",
        ],
    ),
    "pairs that are all too long": (
        lambda c: c.settings.update(reward_model={"max_tokens": 5}),
        ["data.preferences: all 8 rows", "reward_model.max_tokens = 5", "Raise it"],
    ),
    "held-out pairs that the reward model would refuse to score": (
        lambda c: c.section("reward").update(sources=[{"kind": "model", "max_tokens": 5}]),
        ["data.heldout_preferences: all 4 rows", "[reward_model].max_tokens = 5", "Raise it"],
    ),
    "every row bad": (
        data(file("prompts", "p.jsonl", '{"prompt": ""}\n{\n'), bad_rows="drop"),
        ["p.jsonl:1", "p.jsonl:2", "That is every row", "data.prompts"],
    ),
    "every training prompt held out": (
        data(file("prompts", "heldout.jsonl", '{"prompt": "why?"}\n'), overlap="drop"),
        ["data.prompts: every prompt is also in data.heldout_prompts"],
    ),
    "system prompt of nothing": (
        data(system_prompt=" "),
        ["data.system_prompt = ' ' is empty", "set it to null"],
    ),
    "column that is not there": (
        data(columns={"prompt": "questoin"}),
        ["data.columns.prompt = 'questoin'", "no such column", "prompt, topic"],
    ),
    "column named twice": (
        data(columns={"prompt": "x", "messages": "x"}),
        ["data.columns.prompt = 'x'", "one name only", "leave one of the two out"],
    ),
    "column named itself": (
        data(columns={"prompt": "prompt"}),
        ["data.columns.prompt = 'prompt' changes nothing"],
    ),
    "word that is no choice": (
        data(bad_rows="skip"),
        ["config.yaml", "data.bad_rows", "'skip'", "'refuse' or 'drop'"],
    ),
}
PLAIN: dict[str, tuple[Change, list[str]]] = {
    "CSV with a cell too many": (
        file("prompts", "p.csv", 'prompt\n"two\nlines"\na,b\n'),
        ["p.csv:4", "wrong number of cells", "2 where the first line names 1", REMEDY],
    ),
    "CSV with an open quote": (
        file("prompts", "p.csv", 'prompt\na\n"b\nc\n'),
        ["p.csv:3", "not valid CSV", 'double each " inside', "data.prompts"],
    ),
    "CSV with two columns of one name": (
        file("prompts", "p.csv", "prompt,id,id\na,b,c\n"),
        ["p.csv:1", "['id'] twice", "name each column once"],
    ),
    "CSV with other commas": (
        file("prompts", "p.csv", "prompt;id\na;b\n"),
        ["p.csv:2", "no column `prompt`", "columns: prompt;id"],
    ),
    "Parquet in name only": (
        file("prompts", "p.parquet", "prompt\nx\n"),
        ["p.parquet", "not a readable Parquet file", "data.prompts"],
    ),
    "JSON that is one object": (
        file("prompts", "p.json", '{"rows": [\n{"prompt": "x"}\n]}'),
        ["p.json", "JSON list of objects", "Write the rows as"],
    ),
    "JSON that breaks off": (
        file("prompts", "p.json", '[{"prompt": "x"},\n{"prompt"'),
        ["p.json:2", "not valid JSON"],
    ),
    "text in another encoding": (
        file("prompts", "p.jsonl", '{"prompt": "x"}\n{"prompt": "é"}\n'.encode("latin-1")),
        ["p.jsonl:2", "not UTF-8 text (byte 0xe9)", "Save the file as UTF-8"],
    ),
    "kind of file that we do not read": (
        file("prompts", "p.xlsx", b"PK"),
        ["p.xlsx", "'.xlsx'", ".jsonl, .json, .csv or .parquet"],
    ),
    "folder of splits": (
        saved("prompts", "both", {"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]}),
        ["both", "['test', 'train']", "both/test"],
    ),
    "folder that is no data set": (
        lambda c: ((c.folder / "empty").mkdir(), c.section("data").update(prompts="empty")),
        ["empty", "not a folder saved by `datasets`", "data.prompts"],
    ),
    "hub id that is not there": (
        data(prompts="owner/nothing:main:train"),
        ["data.prompts", "'owner/nothing:main:train'", "owner/name:config:split"],
    ),
    "system prompt for plain strings": (
        data(system_prompt="Be kind."),
        ["plain_prompts.jsonl:1", "takes no system prompt", "set data.to_chat = always"],
    ),
    "held-out prompt in another form": (
        add("heldout_prompts", prompt="  The cat is"),
        ["plain_heldout.jsonl:9", "plain_prompts.jsonl:1", "data.overlap = drop"],
    ),
}


@pytest.mark.parametrize(
    ("make", "change", "parts"),
    [
        pytest.param(make, *case, id=name)
        for make, cases in ((chat_case, CHAT), (plain_case, PLAIN))
        for name, case in cases.items()
    ],
)
def test_bad_data_is_refused(
    make: Any,
    change: Change,
    parts: list[str],
    tmp_path: Path,
    gpt2_models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    case = make(tmp_path, gpt2_models)
    change(case)
    check_refused(case, parts, monkeypatch, capsys)
