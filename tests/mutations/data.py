"""Mistakes in rlhf_ppo/data."""

from __future__ import annotations

SAMPLER = (
    (
        "the first step is the second",
        "start = (step - 1) * batch_size",
        "start = step * batch_size",
    ),
    (
        "the end of a pass is dropped",
        "start = (step - 1) * batch_size",
        "start = (step - 1) * batch_size // prompts * prompts + (step - 1) * batch_size % prompts // batch_size * batch_size",
    ),
    ("alike in every pass", "(seed * 1_000_003 + epoch)", "(seed * 1_000_003)"),
    ("alike for every seed", "(seed * 1_000_003 + epoch)", "(1_000_003 + epoch)"),
    ("seed 1 of pass 0 is seed 0 of pass 1", "(seed * 1_000_003 + epoch)", "(seed + epoch)"),
    (
        "in the order of the file",
        "torch.randperm(size, generator=generator).tolist()",
        "list(range(size))",
    ),
    ("by torch's own state", "torch.randperm(size, generator=generator)", "torch.randperm(size)"),
)

TEMPLATE = (
    (
        "default: begin token though it is the end token",
        "and bos_token and bos_token != eos_token -",
        "and bos_token -",
    ),
    ("default: no line below the role", "| capitalize ~ ':\\\\n' ~", "| capitalize ~ ': ' ~"),
    (
        "default: answers do not end",
        "{%- elif eos_token is defined and eos_token -%}{{- eos_token -}}",
        "{%- elif eos_token is defined and eos_token -%}",
    ),
    (
        "default: the response does not begin",
        "{%- if add_generation_prompt -%}{{- 'Assistant:\\\\n' -}}{%- endif -%}",
        "",
    ),
    (
        "check: one order of roles stands for all",
        'tuple(message["role"] for message in text): text',
        "0: text",
    ),
    (
        "check: only the first conversation",
        "    for text in orders.values():",
        "    for text in list(orders.values())[:1]:",
    ),
    (
        "check: the user's template gives way",
        "if tokenizer.chat_template is None and any(",
        "if any(",
    ),
    (
        "check: plain text sets a template",
        "any(not isinstance(text, str) for text in texts)",
        "texts",
    ),
    (
        "prompt: without the beginning of the response",
        "_render(tokenizer, prompt, add_generation_prompt=True)",
        "_render(tokenizer, prompt, add_generation_prompt=False)",
    ),
    (
        "conversation: a second answer begins",
        "_render(tokenizer, whole, add_generation_prompt=False)",
        "_render(tokenizer, whole, add_generation_prompt=True)",
    ),
    (
        "conversation: plain text does not end",
        "            whole += tokenizer.eos_token\n",
        "            pass\n",
    ),
    (
        "conversation: plain text ends twice",
        "if tokenizer.eos_token and not whole.endswith(tokenizer.eos_token):",
        "if tokenizer.eos_token:",
    ),
    ("long: in characters", "len(as_text(whole).encode()) + added", "len(as_text(whole)) + added"),
    (
        "long: what the template adds is left out",
        "len(as_text(whole).encode()) + added[order] > most",
        "len(as_text(whole).encode()) > most",
    ),
    (
        "long: the first conversation alone",
        "        for prompt, response in conversations:\n",
        "        for prompt, response in conversations[:1]:\n",
    ),
    ("long: the limit itself is too long", "if max(lengths) > most:", "if max(lengths) >= most:"),
    ("long: the last length", "long[number] = max(lengths)", "long[number] = lengths[-1]"),
    (
        "long: all orders add what the first adds",
        'tuple(turn["role"] for turn in whole)\n            if',
        '("any",)\n            if',
    ),
    (
        "joined: the answer is the user's",
        '[{"role": "assistant", "content": response}] if isinstance',
        '[{"role": "user", "content": response}] if isinstance',
    ),
    (
        "joined: with a space",
        "return prompt + as_text(response)",
        'return prompt + " " + as_text(response)',
    ),
    (
        "text: the last message alone",
        '"\\n".join(message["content"] for message in text)',
        'text[-1]["content"]',
    ),
)

PREFERENCES = (
    (
        "demonstration: the prompt alone makes two the same",
        "return canonical(self.prompt), canonical(self.completion)",
        "return canonical(self.prompt), None",
    ),
    (
        "pair: what is better makes no difference",
        "canonical(self.prompt), canonical(self.chosen), canonical(self.rejected)",
        "canonical(self.prompt), frozenset([canonical(self.chosen), canonical(self.rejected)])",
    ),
    (
        "pair: the longer side counts",
        "[(self.prompt, self.chosen), (self.prompt, self.rejected)]",
        "[(self.prompt, self.chosen)]",
    ),
    (
        "pair: one text and one conversation",
        "if isinstance(chosen, str) != isinstance(rejected, str):",
        "if False:",
    ),
    ("pair: two alike", "if canonical(chosen) == canonical(rejected):", "if chosen is rejected:"),
    (
        "pair: its own prompt is passed over",
        'if "prompt" in row.values and not _whole(chosen):',
        "if False:",
    ),
    (
        "pair: a whole conversation is an answer",
        'if "prompt" in row.values and not _whole(chosen):',
        'if "prompt" in row.values:',
    ),
    (
        "pair: sides change places",
        "return Preference(row.where, prompt, chosen, rejected, kind)",
        "return Preference(row.where, prompt, rejected, chosen, kind)",
    ),
    ("pair: kind is lost", 'row.values.get("kind", "all")', '"all"'),
    (
        "pair: the rejected may be missing",
        'for name in ("chosen", "rejected") if name not in row.values]',
        'for name in ("chosen",) if name not in row.values]',
    ),
    (
        "demonstration: an empty text",
        "if not isinstance(text, str) or not text.strip():",
        "if not isinstance(text, str):",
    ),
    (
        "whole: a conversation is never whole",
        'return completion[0]["role"] != "assistant"',
        'return completion[-1]["role"] != "assistant"',
    ),
)

PROMPTS = (
    (
        "columns: a row's own alone",
        "name: p.columns.get(name) for name in names",
        "name: p.columns.get(name) for name in p.columns",
    ),
    (
        "columns: the prompt is one of them",
        "for key, value in values.items() if key != name}",
        "for key, value in values.items()}",
    ),
    (
        "row: by its place among the good ones",
        "return Prompt(number, row.where, to_form",
        "return Prompt(0, row.where, to_form",
    ),
    (
        "form: the system prompt is left out",
        "to_form(text, [], rules)[0], columns)",
        "text, columns)",
    ),
    (
        "overlap: held-out ones are dropped from nowhere",
        "[prompt for prompt in train if prompt.key not in held]",
        "list(train)",
    ),
    (
        "overlap: compared as they stand",
        "held = {prompt.key: prompt.where for prompt in heldout}\n    shared = [prompt for prompt in train if prompt.key in held]",
        "held = {prompt.key: prompt.where for prompt in heldout if isinstance(prompt.text, str)}\n    shared = [prompt for prompt in train if prompt.key in held]",
    ),
    ("overlap: nothing may be left", "if len(shared) == len(train) > 0:", "if False:"),
    (
        "overlap: not reported",
        '    report.add("data.prompts", "is held out (data.heldout_prompts)", places, dropped=True)\n',
        "",
    ),
    (
        "long: the limit itself is too long",
        "if len(item.ids) <= max_tokens]",
        "if len(item.ids) < max_tokens]",
    ),
    ("long: not reported", "if len(p.ids) > max_tokens]", "if len(p.ids) > 2 * max_tokens]"),
    (
        "room: of the shortest prompt",
        "max(prompts, key=lambda item: len(item.ids))",
        "min(prompts, key=lambda item: len(item.ids))",
    ),
    (
        "room: without the response",
        "len(longest.ids) + max_new_tokens > positions",
        "len(longest.ids) > positions",
    ),
    (
        "room: the last position is lost",
        "len(longest.ids) + max_new_tokens > positions",
        "len(longest.ids) + max_new_tokens >= positions",
    ),
    (
        "parse: a prompt keeps its answer",
        "    if whole and ends_with_answer(text):",
        "    if False:",
    ),
    ("parse: the answer is lost", '        columns["completion"] = as_text(answer).strip()\n', ""),
    (
        "parse: two answers",
        '        if "completion" in columns:\n            raise',
        '        if "completions" in columns:\n            raise',
    ),
    (
        "parse: a prompt that ends with the system",
        '["role"] in ("assistant", "system"):',
        '["role"] == "assistant":',
    ),
    (
        "pair: answers are no columns",
        'return prompt, row.values | {"chosen": as_text(chosen), "rejected": as_text(rejected)}',
        "return prompt, {}",
    ),
)

LOADING = (
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
        '            yield BrokenRow(where, "not valid JSON", f"{error.msg}: {_shorten(line)}")\n            continue',
        '            yield BrokenRow(where, "not valid JSON", f"{error.msg}: {_shorten(line)}")\n            return',
    ),
    ("text: a byte order mark is text", '"utf-8-sig"', '"utf-8"'),
    (
        "text: line of a bad byte",
        'raw[: error.start].count(b"\\n") + 1',
        'raw[: error.start].count(b"\\n")',
    ),
    (
        "json: a list of lists",
        "if isinstance(values, dict):\n        return Row",
        "if values:\n        return Row",
    ),
    (
        "json: places from 1",
        'f"{path}[{index}]", item) for index, item in enumerate(content)]\n\n\ndef _object',
        'f"{path}[{index}]", item) for index, item in enumerate(content, 1)]\n\n\ndef _object',
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
    ("csv: messages stay text", 'if text.lstrip().startswith("[{"):', 'if text.startswith("{"):'),
    (
        "csv: cells of 131,072 characters",
        "csv.field_size_limit(LONGEST_CELL)",
        "csv.field_size_limit()",
    ),
    ("csv: the limit stays for others", "        csv.field_size_limit(before)\n", "        pass\n"),
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
)

CONVERSATION = (
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
    ("pair: part at a question", '["role"]} != {"assistant"}:', '["role"]} == {"user"} and False:'),
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
    ("form: answers keep the space before them", '"content": text.strip()}]', '"content": text}]'),
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
    ("words: the space belongs to the prompt", "return len(shared.rstrip())", "return len(shared)"),
)

SOURCES = (
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
        "        report.add(setting, reason, found, dropped=True)\n",
        "        pass\n",
    ),
    (
        "bad rows: all of one reason",
        "places[row.reason].append(row.where)",
        "places[bad[0].reason].append(row.where)",
    ),
    (
        "slip: one source that lacks it is enough",
        "not any(theirs in item.columns for item in asked.values())",
        "not all(theirs in item.columns for item in asked.values())",
    ),
    ("slip: sources that do not ask for it", "if takes(key, ours)}", "}"),
)

REPORT = (
    (
        "used: kept rows are not",
        "for item in self.findings if item.dropped)",
        "for item in self.findings)",
    ),
    ("used: one row a finding", "sum(len(item.places) for item in", "sum(1 for item in"),
    (
        "nothing found is a finding",
        "        if places:\n            self.sources",
        "        if True:\n            self.sources",
    ),
    (
        "long: refused though they are to be dropped",
        "        if refuse:\n            raise_problems(",
        "        if True:\n            raise_problems(",
    ),
    (
        "long: kept",
        'f"longer than {limit}", [row.where for row in long], dropped=True)',
        'f"longer than {limit}", [row.where for row in long], dropped=False)',
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
)

TABLES = {
    "data/sampler.py": SAMPLER,
    "data/template.py": TEMPLATE,
    "data/preferences.py": PREFERENCES,
    "data/prompts.py": PROMPTS,
    "data/loading.py": LOADING,
    "data/conversation.py": CONVERSATION,
    "data/sources.py": SOURCES,
    "data/report.py": REPORT,
}
_ROWS = (
    "tests/unit/test_data_rows.py",
    "tests/unit/test_rows_by_definition.py",
    "tests/unit/test_data_report.py",
)
OWN = {
    "data/sampler.py": ("tests/unit/test_batches.py",),
    "data/template.py": ("tests/unit/test_template.py", "tests/unit/test_rows_by_definition.py"),
    "data/preferences.py": _ROWS,
    "data/prompts.py": _ROWS,
    "data/loading.py": ("tests/unit/test_data_loading.py", "tests/unit/test_rows_by_definition.py"),
    "data/conversation.py": _ROWS,
    "data/sources.py": _ROWS,
    "data/report.py": ("tests/unit/test_data_report.py",),
}
MORE = ("tests/unit/test_text_rows.py", "tests/faults/test_bad_data.py")
