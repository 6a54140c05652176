"""Mistakes in rlhf_ppo/data: samplers, templates, prompts, pairs."""

from __future__ import annotations

TABLES = {
    "data/sampler.py": (
        (
            "the first step is the second",
            "start = (step - 1) * batch_size",
            "start = step * batch_size",
        ),
        (
            "the end of a pass is dropped",
            "start = (step - 1) * batch_size",
            (
                "start = (step - 1) * batch_size // prompts * prompts + (step - 1) * "
                "batch_size % prompts // batch_size * batch_size"
            ),
        ),
        ("alike in every pass", "(seed * 1_000_003 + epoch)", "(seed * 1_000_003)"),
        ("alike for every seed", "(seed * 1_000_003 + epoch)", "(1_000_003 + epoch)"),
        ("seed 1 of pass 0 is seed 0 of pass 1", "(seed * 1_000_003 + epoch)", "(seed + epoch)"),
        (
            "in the order of the file",
            "torch.randperm(size, generator=generator).tolist()",
            "list(range(size))",
        ),
        (
            "by torch's own state",
            "torch.randperm(size, generator=generator)",
            "torch.randperm(size)",
        ),
    ),
    "data/template.py": (
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
            "encode_text(tokenizer, render(tokenizer, prompt, generation_prompt=True))",
            "encode_text(tokenizer, render(tokenizer, prompt, generation_prompt=False))",
        ),
        (
            "conversation: a second answer begins",
            "encode_text(tokenizer, render(tokenizer, whole, generation_prompt=False))",
            "encode_text(tokenizer, render(tokenizer, whole, generation_prompt=True))",
        ),
        ("conversation: plain text does not end", '("" if end else stop)', '""'),
        (
            "conversation: plain text ends twice",
            "if stop and text.endswith(stop):",
            "if stop and text.startswith(stop):",
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
        (
            "tokens: the tokenizer's own end is left out",
            "return _begun(begin, ids) + end",
            "return _begun(begin, ids)",
        ),
        (
            "tokens: a begin token twice",
            "return ids if ids[: len(begin)] == begin else begin + ids",
            "return begin + ids",
        ),
        ("dates: today's", "_undated(tokenizer.chat_template)", "tokenizer.chat_template"),
    ),
    "data/preferences.py": (
        (
            "demonstration: the prompt alone makes two the same",
            "return canonical(self.prompt), canonical(self.completion)",
            "return canonical(self.prompt), None",
        ),
        (
            "pair: what is better makes no difference",
            "canonical(self.prompt), canonical(self.chosen), canonical(self.rejected)",
            (
                "canonical(self.prompt), frozenset([canonical(self.chosen), "
                "canonical(self.rejected)])"
            ),
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
        (
            "pair: two alike",
            "if canonical(chosen) == canonical(rejected):",
            "if chosen is rejected:",
        ),
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
        ("pair: kind is lost", '"all" if kind is None else str(kind)', '"all"'),
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
    ),
    "data/prompts.py": (
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
            (
                "held = {prompt.key: prompt.where for prompt in heldout}\n    shared = "
                "[prompt for prompt in train if prompt.key in held]"
            ),
            (
                "held = {prompt.key: prompt.where for prompt in heldout if "
                "isinstance(prompt.text, str)}\n    shared = [prompt for prompt in train "
                "if prompt.key in held]"
            ),
        ),
        ("overlap: nothing may be left", "if len(shared) == len(train) > 0:", "if False:"),
        (
            "overlap: not reported",
            (
                '    report.add("data.prompts", "is held out (data.heldout_prompts)", '
                "places, dropped=True)\n"
            ),
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
        (
            "parse: the answer is lost",
            '        columns["completion"] = as_text(answer).strip()\n',
            "",
        ),
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
            (
                'return prompt, row.values | {"chosen": as_text(chosen), "rejected": '
                "as_text(rejected)}"
            ),
            "return prompt, {}",
        ),
    ),
}
OWN = {
    "data/sampler.py": ("tests/unit/test_batches.py",),
    "data/template.py": (
        "tests/unit/test_template.py",
        "tests/unit/test_rows_by_definition.py",
        "tests/unit/test_text_as_read.py",
    ),
    "data/preferences.py": (
        "tests/unit/test_data_rows.py",
        "tests/unit/test_rows_by_definition.py",
        "tests/unit/test_data_report.py",
    ),
    "data/prompts.py": (
        "tests/unit/test_data_rows.py",
        "tests/unit/test_rows_by_definition.py",
        "tests/unit/test_data_report.py",
    ),
}
MORE = (
    "tests/unit/test_text_rows.py",
    "tests/faults/test_bad_data.py",
)
