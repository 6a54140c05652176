"""Mistakes in rlhf_ppo/data: rows as token ids, their lengths, sampled responses."""

from __future__ import annotations

TABLES = {
    "data/responses.py": (
        (
            "tokens: with the stop token",
            "for token in ids if token not in special",
            "for token in ids",
        ),
        (
            "text: decoded alone",
            "    inside = inside[len(before) :]\n    if",
            "    inside = alone\n    if",
        ),
        ("text: of the prompt too", "    inside = inside[len(before) :]\n    if", "    if"),
        (
            "text: special tokens of the prompt",
            "str(tokenizer.decode(both, skip_special_tokens=True))",
            "str(tokenizer.decode(both))",
        ),
        (
            "reward model: without the end of the turn",
            "begun + kept + encode_text(tokenizer, frame.after)",
            "begun + kept",
        ),
        (
            "reward model: plain text does not end",
            "begun + kept + end_of_text(tokenizer)",
            "begun + kept",
        ),
    ),
    "data/fitting.py": (
        (
            "long: the limit itself is too long",
            "if length <= fitted.limit.tokens:",
            "if length < fitted.limit.tokens:",
        ),
        (
            "long: the chosen side alone",
            "length = max(len(side.ids) for side in pair)",
            "length = len(pair[0].ids)",
        ),
        (
            "long: the shorter side",
            "length = max(len(side.ids) for side in pair)",
            "length = min(len(side.ids) for side in pair)",
        ),
        (
            "long: kept as well",
            "        fitted.long.append(TooLong(where, length))\n        return\n",
            (
                "        fitted.long.append(TooLong(where, length))\n        "
                "fitted.rows.append(row)\n"
            ),
        ),
        (
            "long: told by the limit",
            "fitted.long.append(TooLong(where, length))",
            "fitted.long.append(TooLong(where, fitted.limit.tokens))",
        ),
        (
            "cut: whether it is wished or not",
            'None if long_rows != "truncate" else cut_answer(example, limit.tokens)',
            "cut_answer(example, limit.tokens)",
        ),
        ("same tokens: kept", "if shown[0].ids == shown[1].ids:", "if shown[0] is shown[1]:"),
    ),
    "data/lengths.py": (
        (
            "limit: longer than the model's positions",
            "self.max_tokens if self.positions is None else min(self.max_tokens, self.positions)",
            "self.max_tokens",
        ),
        (
            "advice: one row too few",
            "math.ceil(share * len(ordered)) - 1",
            "math.ceil(share * len(ordered)) - 2",
        ),
    ),
    "data/encoding.py": (
        (
            "answer: what the template leaves out is not learnt",
            "== begun and complete:",
            "== begun:",
        ),
        (
            "answer: learnt from the first token on",
            "return Example(whole, len(begun), notes)\n    found",
            "return Example(whole, 0, notes)\n    found",
        ),
        (
            "answer: a plain one from its second token on",
            "return Example(whole, len(begun))",
            "return Example(whole, len(begun) + 1)",
        ),
        (
            "answer: without the end of its turn",
            "rest = mark(tokenizer, answer) + frame.after",
            "rest = mark(tokenizer, answer)",
        ),
    ),
}
OWN = {
    "data/responses.py": (
        "tests/unit/test_collect.py",
        "tests/unit/test_text_as_read.py",
    ),
    "data/fitting.py": (
        "tests/unit/test_rows_by_definition.py",
        "tests/unit/test_stages.py",
        "tests/unit/test_limits.py",
    ),
    "data/lengths.py": (
        "tests/unit/test_text_rows.py",
        "tests/unit/test_rows_by_definition.py",
        "tests/unit/test_data_report.py",
        "tests/unit/test_limits.py",
    ),
    "data/encoding.py": (
        "tests/unit/test_stages.py",
        "tests/unit/test_text_as_read.py",
        "tests/unit/test_limits.py",
    ),
}
MORE = (
    "tests/unit/test_text_rows.py",
    "tests/faults/test_bad_data.py",
)
