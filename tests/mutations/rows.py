"""Mistakes in rlhf_ppo/data: files and rows."""

from __future__ import annotations

TABLES = {
    "data/loading.py": (
        ("hub: a slice is a config", 'if not colon or "[" in config:', "if not colon:"),
        (
            "hub: the config is the split",
            'return name, config or None, split or "train"',
            'return name, split or None, config or "train"',
        ),
        (
            "hub: the test split by default",
            'return name, None, rest or "train"',
            'return name, None, rest or "test"',
        ),
        ("fingerprint: names and sizes alone", "                digest.update(_ends(file))\n", ""),
        ("fingerprint: the beginning alone", "return first + stream.read(size)", "return first"),
        (
            "fingerprint: the order of the disk",
            'sorted(path.rglob("*"))',
            'sorted(path.rglob("*"), key=lambda p: p.stat().st_size)[:1]',
        ),
        (
            "empty: a source without rows",
            '    if not rows:\n        raise UserError(f"{source}',
            '    if rows is None:\n        raise UserError(f"{source}',
        ),
    ),
    "data/conversation.py": (
        ("text: empty", "        if not value.strip():\n", "        if not value:\n"),
        (
            "text: messages as text",
            'if value.lstrip().startswith("[{") and',
            'if value.startswith("[[") and',
        ),
        (
            "text: a transcript stays text",
            'rules.to_chat != "never" and is_transcript(value)',
            'rules.to_chat == "always" and is_transcript(value)',
        ),
        (
            "text: never is not heard",
            'rules.to_chat != "never" and is_transcript(value)',
            "is_transcript(value)",
        ),
        (
            "messages: the last may be empty",
            'if not messages[-1]["content"].strip():',
            'if not messages[-1]["content"]:',
        ),
        (
            "transcript: a quotation is one",
            'begins and (text.startswith("\\n\\n") or LAST_TURN in text)',
            "begins",
        ),
        (
            "transcript: only with its empty lines",
            'begins and (text.startswith("\\n\\n") or LAST_TURN in text)',
            'begins and text.startswith("\\n\\n")',
        ),
        (
            "transcript: an open turn is a turn",
            'if turns[-1] == ("Assistant", ""):',
            'if turns[-1] == ("Human", ""):',
        ),
        (
            "transcript: words keep their spaces",
            "(part.strip() for part in parts[1::2])",
            "(part for part in parts[1::2])",
        ),
        ("transcript: two turns in a row", "if side == following:", "if False:"),
        (
            "transcript: roles change places",
            '{"Human": "user", "Assistant": "assistant"}',
            '{"Human": "assistant", "Assistant": "user"}',
        ),
        ("answer: an open turn is one", "and bool(turns[-1].strip())", ""),
        (
            "answer: cut at the first",
            "text.rfind(LAST_TURN) + len(LAST_TURN)",
            "text.find(LAST_TURN) + len(LAST_TURN)",
        ),
        (
            "answer: cut before the turn",
            "text.rfind(LAST_TURN) + len(LAST_TURN)",
            "text.rfind(LAST_TURN)",
        ),
        (
            "answer: a single message is one",
            "if len(text) < 2 or not ends_with_answer(text):",
            "if not ends_with_answer(text):",
        ),
        (
            "pair: differ before the last answer",
            "            if prompt != other:\n",
            "            if not prompt:\n",
        ),
        (
            "pair: cut inside a word",
            "cut = _shared_words(chosen, rejected)",
            "cut = _shared(chosen, rejected)",
        ),
        (
            "pair: one begins the other",
            "if same == min(len(chosen), len(rejected)):",
            "if same == len(chosen) == len(rejected):",
        ),
        (
            "pair: part at a question",
            '["role"]} != {"assistant"}:',
            '["role"]} == {"user"} and False:',
        ),
        (
            "form: a second system message",
            'prompt[0]["role"] not in ("system", "developer"):',
            'prompt[0]["role"] != "developer":',
        ),
        (
            "form: text with a system prompt",
            "        if rules.system_prompt is not None:\n            raise",
            "        if rules.system_prompt == prompt:\n            raise",
        ),
        (
            "form: answers keep the space before them",
            '"content": text.strip()}]',
            '"content": text}]',
        ),
        ("form: the prompt twice", "if text[: len(prompt)] == prompt:", "if text == prompt:"),
        (
            "form: a completion may end with the user",
            'if text[-1]["role"] != "assistant":',
            'if text[0]["role"] != "assistant":',
        ),
        (
            "form: strings stay strings",
            'if isinstance(prompt, str) and rules.to_chat == "always":',
            'if isinstance(prompt, str) and rules.to_chat == "transcripts" and False:',
        ),
        (
            "canonical: spaces make another prompt",
            'return (("user", text.strip()),)',
            'return (("user", text),)',
        ),
        (
            "canonical: roles make no difference",
            '(message["role"], message["content"].strip()) for message',
            '("user", message["content"].strip()) for message',
        ),
        (
            "canonical: the first message alone",
            'message["content"].strip()) for message in text)',
            'message["content"].strip()) for message in text[:1])',
        ),
        ("message: empty fields stay", "if value is not None}", "}"),
        (
            "words: the space belongs to the prompt",
            "return len(shared.rstrip())",
            "return len(shared)",
        ),
    ),
    "data/sources.py": (
        (
            "columns: theirs stay beside ours",
            "if name not in mapped and name not in mapped.values()",
            "if name not in mapped",
        ),
        (
            "columns: ours stay beside theirs",
            "if name not in mapped and name not in mapped.values()",
            "if name not in mapped.values()",
        ),
        (
            "columns: renamed in every source",
            "if theirs in values and takes(setting, ours)",
            "if theirs in values",
        ),
        (
            "rows: numbered among the good ones",
            "found = _try(number, row,",
            "found = _try(len(items), row,",
        ),
        (
            "repeats: the last one stays",
            "first.setdefault(item.key, item) is not item:",
            "first.setdefault(item.key, item) is item:",
        ),
        (
            "repeats: kept though they are to go",
            "return list(first.values()) if drop else items",
            "return items",
        ),
        (
            "repeats: gone though they are to stay",
            "return list(first.values()) if drop else items",
            "return list(first.values())",
        ),
        (
            "bad rows: dropped in silence",
            (
                "        report.add(setting, reason, places, dropped=True, "
                "example=_example(rows[0]))\n"
            ),
            "        pass\n",
        ),
        (
            "bad rows: all of one reason",
            "grouped[row.reason].append(row)",
            "grouped[bad[0].reason].append(row)",
        ),
        (
            "slip: one source that lacks it is enough",
            "not any(theirs in item.columns for item in asked.values())",
            "not all(theirs in item.columns for item in asked.values())",
        ),
        ("slip: sources that do not ask for it", "if takes(key, ours)}", "}"),
    ),
    "data/report.py": (
        (
            "used: kept rows are not",
            "for item in self.findings if item.dropped)",
            "for item in self.findings)",
        ),
        ("used: one row a finding", "sum(len(item.places) for item in", "sum(1 for item in"),
        (
            "nothing found is a finding",
            "        if places:\n            finding = Finding(reason",
            "        if True:\n            finding = Finding(reason",
        ),
        (
            "long: refused though they are to be dropped",
            "        if refuse:\n            longest",
            "        if True:\n            longest",
        ),
        (
            "long: kept",
            'Finding(f"longer than {limit}", True, places',
            'Finding(f"longer than {limit}", False, places',
        ),
        (
            "write: the first places alone",
            '"places": list(finding.places)',
            '"places": list(finding.places[:SHOWN_PLACES])',
        ),
        (
            "write: of others nothing is kept",
            'content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))',
            "content: dict[str, Any] = {}",
        ),
        (
            "problems: more of them by one",
            "more = len(problems) - SHOWN_PROBLEMS",
            "more = len(problems) - SHOWN_PROBLEMS + 1",
        ),
        ("problems: none raise too", "    if not problems:\n        return\n", ""),
    ),
    "data/files.py": (
        (
            "place: lines from 0",
            'enumerate(text.split("\\n"), start=1)',
            'enumerate(text.split("\\n"))',
        ),
        (
            "place: blank lines are not counted",
            'enumerate(text.split("\\n"), start=1)',
            'enumerate([s for s in text.split("\\n") if s.strip()], start=1)',
        ),
        ("lines: cut at every kind of line end", 'text.split("\\n")', "text.splitlines()"),
        (
            "lines: a broken one ends the file",
            "str(error), _cut(line))\n            continue",
            "str(error), _cut(line))\n            return",
        ),
        ("text: a byte order mark is text", '"utf-8-sig"', '"utf-8"'),
        (
            "text: line of a bad byte",
            'raw[: error.start].count(b"\\n") + 1',
            'raw[: error.start].count(b"\\n")',
        ),
        (
            "json: a list of lists",
            "if not isinstance(values, dict):\n        return BrokenRow",
            "if not values:\n        return BrokenRow",
        ),
        (
            "json: places from 1",
            'f"{path}[{index}]", item) for index, item in enumerate(content)]',
            'f"{path}[{index}]", item) for index, item in enumerate(content, 1)]',
        ),
        (
            "json: one object a line is refused",
            "if lines and isinstance(lines[0], Row):",
            "if lines and isinstance(lines[0], BrokenRow):",
        ),
        (
            "csv: line of the end of a row",
            'where, line = f"{path}:{line}", reader.line_num + 1',
            'where, line = f"{path}:{reader.line_num}", reader.line_num + 1',
        ),
        (
            "csv: a short row is a row",
            "elif len(cells) != len(header):",
            "elif len(cells) > len(header):",
        ),
        (
            "csv: a long row is a row",
            "elif len(cells) != len(header):",
            "elif len(cells) < len(header):",
        ),
        ("csv: a name twice", "if header.count(name) > 1}", "if header.count(name) > 2}"),
        (
            "csv: a column without a name",
            "or not all(name.strip() for name in header)",
            "or not all(header[:1])",
        ),
        (
            "csv: messages stay text",
            'if text.lstrip().startswith("[{"):',
            'if text.startswith("{"):',
        ),
        (
            "csv: cells of 131,072 characters",
            "csv.field_size_limit(LONGEST_CELL)",
            "csv.field_size_limit()",
        ),
        (
            "csv: the limit stays for others",
            "        csv.field_size_limit(before)\n",
            "        pass\n",
        ),
        ("table: places in its thousand", 'f"{where}[{start + more}]"', 'f"{where}[{more}]"'),
    ),
    "data/strict_json.py": (
        ("key twice: the last one counts", "if len(made) == len(pairs):", "if made or not pairs:"),
        (
            "number: infinite",
            "if math.isinf(number) else number",
            "if math.isnan(number) else number",
        ),
        (
            "half of a character: is a text",
            (
                "            except UnicodeEncodeError as error:\n                return "
                'Unusable("half of a character", f"{item[error.start]!r} at '
                '{error.start}")'
            ),
            "            except UnicodeEncodeError:\n                continue",
        ),
        ("fault: in keys alone", "[*item, *item.values()]", "[*item]"),
    ),
}
OWN = {
    "data/loading.py": (
        "tests/unit/test_data_loading.py",
        "tests/unit/test_rows_by_definition.py",
    ),
    "data/conversation.py": (
        "tests/unit/test_data_rows.py",
        "tests/unit/test_rows_by_definition.py",
        "tests/unit/test_data_report.py",
    ),
    "data/sources.py": (
        "tests/unit/test_data_rows.py",
        "tests/unit/test_rows_by_definition.py",
        "tests/unit/test_data_report.py",
    ),
    "data/report.py": (
        "tests/unit/test_rows_by_definition.py",
        "tests/unit/test_data_report.py",
    ),
    "data/files.py": (
        "tests/unit/test_data_loading.py",
        "tests/unit/test_rows_by_definition.py",
    ),
    "data/strict_json.py": (
        "tests/unit/test_data_loading.py",
        "tests/faults/test_bad_data.py",
    ),
}
MORE = (
    "tests/unit/test_text_rows.py",
    "tests/faults/test_bad_data.py",
)
