"""Edges of templates, prompts, pairs and files: each by its definition, one token a byte."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import byte_tokenizer, encoded_prompts, tiny_model, write_jsonl

from rlhf_ppo.config import DataConfig
from rlhf_ppo.data.conversation import BadRow, canonical, read_text, split_answer, to_form
from rlhf_ppo.data.fitting import fit_demonstrations, fit_pairs
from rlhf_ppo.data.lengths import LengthLimit
from rlhf_ppo.data.loading import BrokenRow, Row, fingerprint, hub_parts, read_rows
from rlhf_ppo.data.preferences import Demonstration, Preference, read_demonstrations
from rlhf_ppo.data.prompts import Prompt, check_room, encode_prompts, read_prompts, settle_overlap
from rlhf_ppo.data.report import REPORT_FILE, DataReport, raise_problems
from rlhf_ppo.data.sources import check_columns
from rlhf_ppo.data.template import (
    DEFAULT_TEMPLATE,
    check_template,
    encode_conversation,
    encode_prompt,
    joined,
)
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.limits import limits_of


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


USER = [turn("user", "hi")]
END = "<|endoftext|>"

# ---- templates


def with_begin(begin: str | None) -> Any:
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.bos_token = begin
    tokenizer.chat_template = DEFAULT_TEMPLATE
    return tokenizer


@pytest.mark.parametrize(("begin", "text"), [(None, ""), ("#", "#"), (END, "")])
def test_the_plain_template_begins_with_a_begin_token_unless_it_is_the_end_token(
    begin: str | None, text: str
) -> None:
    """GPT-2 has one token for both: a prompt that began with it would begin with an end."""
    tokenizer = with_begin(begin)
    prompt = tokenizer.decode(encode_prompt(tokenizer, USER))
    assert prompt == f"{text}User:\nhi\n\nAssistant:\n"
    whole = tokenizer.decode(encode_conversation(tokenizer, USER, "ho"))
    assert whole == f"{text}User:\nhi\n\nAssistant:\nho{END}"
    system = [turn("system", "be kind"), *USER]
    assert tokenizer.decode(encode_prompt(tokenizer, system)).startswith(
        f"{text}System:\nbe kind\n\nUser:\nhi"
    )


NO_SYSTEM = (
    "{%- for m in messages -%}{%- if m['role'] == 'system' -%}"
    "{{ raise_exception('no system here') }}{%- endif -%}{{ m['content'] }}{%- endfor -%}"
)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_template_that_refuses_any_order_of_roles_is_found_out(place: int) -> None:
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.chat_template = NO_SYSTEM
    texts: list[Any] = [USER, [*USER, turn("assistant", "a"), *USER], "plain"]
    check_template(tokenizer, texts, "here")
    texts.insert(place, [turn("system", "s"), *USER])
    with pytest.raises(UserError, match="no system here"):
        check_template(tokenizer, texts, "here")


def test_a_template_is_set_for_messages_alone_and_only_where_there_is_none() -> None:
    tokenizer = byte_tokenizer(chat=False)
    check_template(tokenizer, ["plain", "text"], "here")
    assert tokenizer.chat_template is None
    check_template(tokenizer, ["plain", USER], "here")
    assert tokenizer.chat_template == DEFAULT_TEMPLATE
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    check_template(tokenizer, [USER], "here")
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"


def test_plain_text_is_joined_as_it_stands_and_ends_once() -> None:
    tokenizer = byte_tokenizer(chat=False)
    assert joined("a ", "b") == "a b"
    assert joined("a", [turn("assistant", "b"), turn("user", "c")]) == "ab\nc"
    assert joined(USER, "b") == [*USER, turn("assistant", "b")]
    for response in ("yes", f"yes{END}"):
        whole = encode_conversation(tokenizer, "ask: ", response)
        assert tokenizer.decode(whole) == f"ask: yes{END}"


def long_rows(tokenizer: Any, rows: Any, most: int) -> dict[int, int]:
    """Numbers of the rows that are longer than a limit, and their tokens."""
    model = tiny_model("gpt2", len(tokenizer)).config
    limit = LengthLimit("most", most, limits_of(model, "policy.path"))
    found = {}
    for number, row in enumerate(rows):
        (prompt, answer), *others = row
        if others:
            pair = Preference("p:1", prompt, answer, others[0][1], "all")
            long = fit_pairs([pair], tokenizer, limit, "data.preferences", "drop").long
        else:
            one = Demonstration("d:1", prompt, answer)
            long = fit_demonstrations([one], tokenizer, limit, "data.demonstrations", "drop").long
        for item in long:
            found[number] = item.tokens
    return found


# "User:\nhi\n\nAssistant:\n" is 21 tokens, a plain text its bytes; both have an end.
@pytest.mark.parametrize("most", [3, 4, 5, 23, 24, 25])
def test_rows_are_as_long_as_their_longest_conversation_of_whatever_form(most: int) -> None:
    tokenizer = with_begin(None)
    rows: list[Any] = [
        [("ab", "c")],
        [("ab", "cd"), ("ab", "c")],
        [("ab", "c"), ("ab", "cd")],
        [("é", "é")],  # four bytes, two letters
        [(USER, "ab")],
        [(USER, "abc")],
    ]
    lengths = {0: 4, 1: 5, 2: 5, 3: 5, 4: 24, 5: 25}
    for number, row in enumerate(rows):
        measured = [len(encode_conversation(tokenizer, *one)) for one in row]
        assert max(measured) == lengths[number]
    expected = {number: length for number, length in lengths.items() if length > most}
    assert long_rows(tokenizer, rows, most) == expected


def test_what_a_template_adds_is_that_of_each_order_of_roles() -> None:
    """A system turn of one letter costs ten tokens more than its letter."""
    tokenizer = with_begin(None)
    plain, system = [(USER, "a")], [([turn("system", "x"), *USER], "a")]
    sizes = [len(encode_conversation(tokenizer, *row[0])) for row in (plain, system)]
    assert sizes[1] - sizes[0] == len("System:\nx\n\n")
    assert long_rows(tokenizer, [plain, system], sizes[0]) == {1: sizes[1]}


# ---- prompts


def prompts_of(folder: Path, *rows: Any, **settings: Any) -> list[Prompt]:
    source = write_jsonl(folder / "p.jsonl", rows)
    return read_prompts(source, "data.prompts", DataConfig(**settings), DataReport())


def test_a_prompt_as_long_as_the_limit_stays_and_longer_ones_are_named() -> None:
    prompts = [
        Prompt(row, f"d:{row}", "x" * length, {}) for row, length in ((0, 5), (1, 6), (2, 4))
    ]
    tokenizer = byte_tokenizer(chat=False)
    kept, long = encode_prompts(prompts, tokenizer, 5, "data.prompts")
    assert [item.prompt.row for item in kept] == [0, 2]
    assert [(item.where, item.tokens) for item in long] == [("d:1", 6)]
    with pytest.raises(UserError, match="the shortest has 4 tokens"):
        encode_prompts(prompts, tokenizer, 3, "data.prompts")


@pytest.mark.parametrize(("new", "fits"), [(54, True), (55, False), (60, False)])
def test_the_longest_prompt_and_its_response_fill_the_positions_and_no_more(
    new: int, fits: bool
) -> None:
    """64 positions, and a longest prompt of 10 tokens."""
    model = tiny_model("gpt2").config
    prompts = encoded_prompts([[1] * 4, [1] * 10, [1] * 7])
    if fits:
        check_room(prompts, model, new, "policy.path")
        return
    with pytest.raises(UserError, match=r"test:1 has 10 tokens.*64"):
        check_room(prompts, model, new, "policy.path")


def test_held_out_prompts_leave_the_training_set_and_are_reported() -> None:
    train = [Prompt(0, "t:1", "a", {}), Prompt(1, "t:2", USER, {}), Prompt(2, "t:3", "c", {})]
    heldout = [Prompt(0, "h:1", "hi ", {"x": 1}), Prompt(1, "h:2", [turn("user", "c")], {})]
    report = DataReport()
    report.add_source("data.prompts", "t", 3, ["prompt"])
    drop = DataConfig(overlap="drop")
    assert settle_overlap(train, heldout, drop, report) == train[:1]
    (finding,) = report.sources["data.prompts"].findings
    assert finding.dropped and finding.places == ("t:2", "t:3")
    with pytest.raises(UserError, match="every prompt is also in"):
        settle_overlap(train[1:], heldout, drop, report)
    with pytest.raises(UserError, match="h:1 is the same prompt as t:2"):
        settle_overlap(train, heldout, DataConfig(), report)


def test_a_prompt_that_ends_with_an_answer_hands_it_on_as_a_column(tmp_path: Path) -> None:
    rows = [
        {"prompt": "\n\nHuman: one\n\nAssistant: two \n", "n": 1},
        {"messages": [*USER, turn("assistant", " ho ")], "n": 2},
        {"prompt": "plain", "n": 3},
    ]
    found = prompts_of(tmp_path, *rows)
    assert [prompt.text for prompt in found] == [[turn("user", "one")], USER, "plain"]
    assert [prompt.columns for prompt in found] == [
        {"completion": "two", "n": 1},
        {"completion": "ho", "n": 2},
        {"completion": None, "n": 3},
    ]
    with pytest.raises(UserError, match="a column `completion` too"):
        prompts_of(tmp_path, rows[1] | {"completion": "x"})


def test_a_transcript_that_stays_text_ends_with_its_open_turn(tmp_path: Path) -> None:
    """An open "Assistant:" is where the response begins, not an empty answer."""
    text = "\n\nHuman: one\n\nAssistant:"
    (found,) = prompts_of(tmp_path, {"prompt": text}, to_chat="never")
    assert (found.text, found.columns) == (text, {})
    (found,) = prompts_of(tmp_path, {"prompt": text + " two"}, to_chat="never")
    assert (found.text, found.columns) == (text, {"completion": "two"})


def test_a_column_of_theirs_takes_the_place_of_one_that_has_our_name(tmp_path: Path) -> None:
    row = {"prompt": "old", "question": "new", "n": 1}
    (found,) = prompts_of(tmp_path, row, columns={"prompt": "question"})
    assert (found.text, found.columns) == ("new", {"n": 1})


@pytest.mark.parametrize("role", ["assistant", "system"])
def test_a_prompt_ends_where_the_response_begins(role: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"prompt ends with the {role}"):
        prompts_of(tmp_path, {"prompt": [*USER, turn(role, "x")]})


def test_prompts_of_pairs_keep_both_answers_as_columns(tmp_path: Path) -> None:
    (found,) = prompts_of(
        tmp_path, {"chosen": "Why is it so? Because.", "rejected": "Why is it so? No.", "k": 1}
    )
    assert found.text == "Why is it so?"
    assert found.columns == {"chosen": " Because.", "rejected": " No.", "k": 1}


def test_the_row_of_a_prompt_is_its_place_in_the_file_whatever_was_dropped(tmp_path: Path) -> None:
    """The sampling noise hangs on it: dropping a row must not change the others' responses."""
    found = prompts_of(
        tmp_path, {"prompt": ""}, {"prompt": "a"}, {"prompt": " "}, {"prompt": "b"}, bad_rows="drop"
    )
    assert [(prompt.row, prompt.text) for prompt in found] == [(1, "a"), (3, "b")]


# ---- conversations and pairs


def test_what_makes_two_rows_the_same() -> None:
    """The prompt, every answer and their order; roles count, spaces around a text do not."""
    pair = Preference("a", "q", "x", "y", "all")
    assert pair.key == Preference("b", " q\n", "x ", "y", "facts").key
    assert pair.key != Preference("a", "q", "y", "x", "all").key
    assert pair.key != Preference("a", "p", "x", "y", "all").key
    assert pair.conversations == [("q", "x"), ("q", "y")]
    one = Demonstration("a", "q", "x")
    assert one.key == Demonstration("b", [turn("user", "q ")], "x").key
    assert one.key != Demonstration("a", "q", "y").key
    assert canonical(USER) != canonical([turn("system", "hi")])
    assert canonical([*USER, turn("assistant", "a"), *USER]) != canonical(USER)
    assert canonical("\n\nHuman: hi") == canonical(USER)


@pytest.mark.parametrize(
    ("text", "role"),
    [("Human: hi\n\nAssistant: ho", "user"), ("\n\nHuman: hi", "user"), ("Human: hi", None)],
)
def test_a_transcript_has_an_answer_or_its_empty_lines(text: str, role: str | None) -> None:
    """A text that only begins with "Human:" may be a quotation."""
    found = read_text(text, "prompt", DataConfig())
    assert (found[0]["role"] if isinstance(found, list) else None) == role
    assert read_text(text, "prompt", DataConfig(to_chat="never")) == text


def test_the_last_answer_of_a_transcript_is_cut_after_its_word() -> None:
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"
    assert split_answer(text, "chosen") == (text[:-2], " d")
    chat: Any = [*USER, turn("assistant", "a"), *USER, turn("assistant", "b")]
    assert split_answer(chat, "messages") == (chat[:3], chat[3:])
    for bad in ([turn("assistant", "a")], USER):
        with pytest.raises(BadRow, match="must end with the assistant"):
            split_answer(bad, "messages")


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_conversation_has_one_system_message(role: str) -> None:
    rules = DataConfig(system_prompt="be kind")
    own = [turn(role, "be strict"), *USER]
    assert to_form(own, [], rules) == [own]
    assert to_form(USER, [], rules) == [[turn("system", "be kind"), *USER]]


def test_answers_take_the_form_of_their_prompt() -> None:
    rules = DataConfig(to_chat="always")
    assert to_form("hi", [" ho "], rules) == [USER, [turn("assistant", "ho")]]
    assert to_form("hi", [" ho "], DataConfig()) == ["hi", " ho "]
    with pytest.raises(BadRow, match="both must be one"):
        to_form("hi", [[turn("assistant", "ho")]], DataConfig())
    with pytest.raises(BadRow, match="begins with the prompt again"):
        to_form(USER, [[*USER, turn("assistant", "ho")]], DataConfig())
    with pytest.raises(BadRow, match="must end with the assistant"):
        to_form(USER, [[turn("assistant", "ho"), *USER]], DataConfig())
    with pytest.raises(BadRow, match="takes no system prompt"):
        to_form("hi", [], DataConfig(system_prompt="x"))


def test_empty_fields_of_messages_are_left_out_and_empty_texts_refused() -> None:
    message = turn("user", "hi") | {"name": None, "tool_calls": None}
    assert read_text([message], "prompt", DataConfig()) == USER
    for bad in ("  ", [], [turn("user", " ")], None, 3, [{"role": "user"}], ["hi"]):
        with pytest.raises(BadRow):
            read_text(bad, "prompt", DataConfig())
    with pytest.raises(BadRow, match="text of a list of messages"):
        read_text(json.dumps(USER), "prompt", DataConfig())


def test_a_text_to_imitate_must_hold_something(tmp_path: Path) -> None:
    for bad in ("", "  \n", 3):
        source = write_jsonl(tmp_path / "d.jsonl", [{"text": bad}])
        with pytest.raises(UserError, match="text must be a string that is not empty"):
            read_demonstrations(source, "data.demonstrations", DataConfig(), DataReport())


# ---- files


def test_places_count_every_line_and_a_broken_one_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"n": 1}\n\n{"n": 2\n{"n": "a\u2028b"}\r\n[1, 2]\n3\n{"n": 5}'.encode())
    rows = read_rows(str(path), "data.prompts")
    assert [row.where.rpartition(":")[2] for row in rows] == ["1", "3", "4", "5", "6", "7"]
    assert [row.values["n"] for row in rows if isinstance(row, Row)] == [1, "a\u2028b", 5]
    assert [row.reason for row in rows if isinstance(row, BrokenRow)] == [
        "not valid JSON",
        "must be a JSON object",
        "must be a JSON object",
    ]


def test_places_in_a_list_are_counted_from_0(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"n": 1}, [2], {"n": 3}]', encoding="utf-8")
    rows = read_rows(str(path), "data.prompts")
    assert [row.where for row in rows] == [f"{path}[{n}]" for n in range(3)]
    assert [isinstance(row, Row) for row in rows] == [True, False, True]
    path.write_text('{"n": 1}\n{"n": 2}\n', encoding="utf-8")
    assert [row.values for row in read_rows(str(path), "x") if isinstance(row, Row)] == [
        {"n": 1},
        {"n": 2},
    ]


def test_a_bad_byte_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n{"n": "\xff"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:3: not UTF-8 text \(byte 0xff\)"):
        read_rows(str(path), "data.prompts")


class FieldLimit:
    """As the csv module's function: it sets the limit and returns the one before."""

    def __init__(self) -> None:
        self.now, self.real = 131_072, csv.field_size_limit

    def __call__(self, limit: int) -> int:
        before, self.now = self.now, limit
        self.real(limit)
        return before


def test_cells_of_a_table_are_as_many_as_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    monkeypatch.setattr(csv, "field_size_limit", limit := FieldLimit())
    long = "x" * 200_000
    path.write_text(
        f'prompt,n\n"two\nlines",1\nshort\n{long},2\none,2,3\n"[{{""role"": ""user""}}]",4\n',
        encoding="utf-8",
    )
    rows = read_rows(str(path), "data.prompts")
    assert [(row.where.rpartition(":")[2], isinstance(row, Row)) for row in rows] == [
        ("2", True),
        ("4", False),
        ("5", True),
        ("6", False),
        ("7", True),
    ]
    kept = [row.values for row in rows if isinstance(row, Row)]
    assert kept[0] == {"prompt": "two\nlines", "n": "1"} and kept[1]["prompt"] == long
    assert kept[2]["prompt"] == [{"role": "user"}]
    assert limit.now == 131_072  # other readers of the program keep their own


@pytest.mark.parametrize("header", ["a,b,a", "a,,b", "a, ,b"])
def test_every_column_of_a_table_has_one_name(header: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n1,2,3\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.csv:1: the first line"):
        read_rows(str(path), "data.prompts")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("o/n", ("o/n", None, "train")),
        ("o/n:test", ("o/n", None, "test")),
        ("o/n:main:test", ("o/n", "main", "test")),
        ("o/n:main:", ("o/n", "main", "train")),
        ("o/n::test", ("o/n", None, "test")),
        ("o/n:train[:100]", ("o/n", None, "train[:100]")),
        ("o/n:train[10:20]", ("o/n", None, "train[10:20]")),
        ("o/n:main:train[:5]", ("o/n", "main", "train[:5]")),
    ],
)
def test_a_hub_id_has_a_name_perhaps_a_config_and_a_split(source: str, parts: Any) -> None:
    assert hub_parts(source) == parts


def test_a_folder_is_another_when_any_end_of_any_file_is(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    (folder / "sub").mkdir(parents=True)
    contents = {"a": b"x" * 3_000_000, "sub/b": b"y" * 10}
    seen = set()
    for change in (None, ("a", 0), ("a", -1), ("sub/b", 5)):
        for name, content in contents.items():
            changed = bytearray(content)
            if change is not None and change[0] == name:
                changed[change[1]] = 0
            (folder / name).write_bytes(bytes(changed))
        seen.add(fingerprint(str(folder)))
    (folder / "sub" / "b").rename(folder / "sub" / "c")
    seen.add(fingerprint(str(folder)))
    assert len(seen) == 5
    assert fingerprint("owner/name") == "owner/name"


def test_a_source_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n", encoding="utf-8")
    with pytest.raises(UserError, match="holds no rows"):
        read_rows(str(tmp_path / "a.jsonl"), "data.prompts")


# ---- the report


def test_rows_that_are_used_are_those_that_nothing_dropped(tmp_path: Path) -> None:
    report = DataReport()
    report.add_source("data.prompts", "p", 10, ["prompt"])
    report.add("data.prompts", "bad", [f"p:{n}" for n in range(6)], dropped=True)
    report.add("data.prompts", "odd", ["p:8"], dropped=False)
    report.add("data.prompts", "none", [], dropped=True)
    assert report.sources["data.prompts"].used == 4
    assert len(report.sources["data.prompts"].findings) == 2
    (tmp_path / REPORT_FILE).write_text('{"data.preferences": {"rows": 4}}', encoding="utf-8")
    report.write(tmp_path)
    found = json.loads((tmp_path / REPORT_FILE).read_text(encoding="utf-8"))
    assert found["data.preferences"] == {"rows": 4}
    assert found["data.prompts"]["used"] == 4
    first, second = found["data.prompts"]["findings"]
    assert (first["rows"], first["places"]) == (6, [f"p:{n}" for n in range(6)])  # every one
    assert (second["rows"], second["dropped"]) == (1, False)


def test_a_renamed_column_is_a_slip_only_where_no_source_that_looks_for_it_has_it() -> None:
    report = DataReport()
    report.add_source("data.prompts", "p", 1, ["question"])
    report.add_source("data.demonstrations", "d", 1, ["prompt", "completion"])
    report.add_source("data.preferences", "r", 1, ["chosen", "rejected", "answer"])
    assert check_columns(DataConfig(columns={"prompt": "question"}), report) == []
    # `completion` is looked for in demonstrations alone, which have no such column.
    (problem,) = check_columns(DataConfig(columns={"completion": "answer"}), report)
    assert "data.columns.completion = 'answer'" in problem and "data.preferences" not in problem


def test_many_problems_are_counted_and_none_is_no_error() -> None:
    raise_problems([], "Mend them.")
    with pytest.raises(UserError) as caught:
        raise_problems([f"p:{n}" for n in range(12)], "Mend them.")
    assert "12 bad row(s)" in str(caught.value) and "... and 2 more" in str(caught.value)
    assert "p:9" in str(caught.value) and "p:10" not in str(caught.value)
    with pytest.raises(UserError) as caught:
        raise_problems([f"p:{n}" for n in range(10)], "Mend them.")
    assert "more" not in str(caught.value)
