"""Mistakes in rlhf_ppo/rewards: services and reward models."""

from __future__ import annotations

TABLES = {
    "rewards/service.py": (
        (
            "batches: prompts of the first",
            "prompts[part], responses[part])",
            "prompts[: len(responses[part])], responses[part])",
        ),
        (
            "batches: the last one is left out",
            "range(0, len(responses), size)",
            "range(0, len(responses) - size + 1, size)",
        ),
        ("batches: a failed one costs one score", "* len(responses[part])", "* 1"),
        (
            "batches: never tried again",
            "with_retries(ask, self.source.retries)",
            "with_retries(ask, 0)",
        ),
        ("columns: those of any prompt", "set.intersection(*(set", "set.union(*(set"),
        (
            "count: more scores than responses",
            "if len(scores) != count:",
            "if len(scores) < count:",
        ),
        (
            "count: tried again",
            'for {count} responses", again=False)',
            'for {count} responses", again=True)',
        ),
        ("reasons: whatever their number", "or len(reasons) != count:", "or not reasons:"),
        (
            "reasons: a score with a reason is none",
            "if score is None and reason else",
            "if reason else",
        ),
        ("timeout: none", "question, self.source.timeout)", "question, 3600.0)"),
    ),
    "rewards/post.py": (
        ("again: after 4xx", "error.code >= 500 or error.code in (408, 429)", "error.code >= 400"),
        ("again: never after 429", "error.code in (408, 429)", "error.code == 408"),
        ("again: never after 5xx", "error.code >= 500 or error", "error.code > 599 or error"),
        (
            "again: not after a timeout",
            "raise ServiceError(reason, again=True)",
            "raise ServiceError(reason, again=False)",
        ),
        (
            "again: not when nobody listens",
            '"reason", error)), again=True)',
            '"reason", error)), again=False)',
        ),
        ("again: though it does not help", "if not error.again:", "if error.again and tried:"),
        (
            "retries: one too few",
            "for tried in range(retries):",
            "for tried in range(retries - 1):",
        ),
        ("retries: evenly", "2.0**tried", "1.0"),
        ("retries: no longest wait", "min(2.0**tried, LONGEST_WAIT)", "2.0**tried"),
        ("headers: left out", ", **(headers or {})}", "}"),
    ),
    "rewards/classifier.py": (
        (
            "long: cut instead of missing",
            "if len(ids) > limit.tokens:",
            "if len(ids) > limit.tokens + 1:",
        ),
        (
            "long: one token shorter than allowed",
            "if len(ids) > limit.tokens:",
            "if len(ids) >= limit.tokens:",
        ),
        (
            "rows: by their place among the short",
            "rows = [short[place] for place in group.tolist()]",
            "rows = group.tolist()",
        ),
        ("output: always the first", "[:, self.output]", "[:, 0]"),
        (
            "output: by the label's place",
            "for number, name in names.items():\n        if source.label in (number, name):",
            (
                "for number, name in enumerate(sorted(names.values())):\n        if "
                "source.label in (number, name):"
            ),
        ),
        ("packed: pooled at the last token", "if token != self.pad]", "if token >= 0]"),
        ("packed: pooled at the first token", "words[-1] if words", "words[0] if words"),
        (
            "packed: places without what comes before",
            "places.append(start + (words",
            "places.append(0 * start + (words",
        ),
        ("padded: the padding is read", "mask[row, : len(tokens)] = 1", "mask[row, :] = 1"),
        (
            "padded: with 0",
            "torch.full((len(encoded), width), pad)",
            "torch.zeros((len(encoded), width), dtype=torch.int64)",
        ),
        (
            "pad: the tokenizer's",
            "int | None = self.model.config.pad_token_id",
            "int | None = tokenizer.pad_token_id",
        ),
        (
            "template: the response alone",
            "encode_conversation(self.tokenizer, prompt, response)",
            (
                "encode_conversation(self.tokenizer, prompt if not isinstance(prompt, "
                'str) else "", response)'
            ),
        ),
        (
            "ways: each by itself alone",
            '[*(way for way in ways if self._says_the_same(rows, way, expected)), "alone"]',
            '["alone"]',
        ),
        (
            "ways: untried",
            "way for way in ways if self._says_the_same(rows, way, expected)",
            "way for way in ways",
        ),
    ),
    "rewards/accuracy.py": (
        (
            "accuracy: ties are lost",
            "sum(m > 0 for m in margins), sum(m == 0 for m in margins)",
            "sum(m > 0 for m in margins), 0",
        ),
        (
            "accuracy: ties are won",
            "sum(m > 0 for m in margins), sum(m == 0 for m in margins)",
            "sum(m >= 0 for m in margins), 0",
        ),
        ("accuracy: margin of a sum", "sum(margins) / len(margins)}", "sum(margins)}"),
        (
            "all kinds: those that are right alone",
            "if right + wrong + ties else None",
            "if right else None",
        ),
        ("older files: right pairs lose their ties", "(halves - ties) // 2", "halves // 2 - ties"),
        (
            "kinds: without intervals",
            "dict(probe) | _probe(*_counts(probe)) for",
            "dict(probe) for",
        ),
    ),
}
OWN = {
    "rewards/service.py": (
        "tests/unit/test_reward_service.py",
        "tests/unit/test_reward_calls.py",
    ),
    "rewards/post.py": (
        "tests/unit/test_reward_service.py",
        "tests/unit/test_reward_calls.py",
    ),
    "rewards/classifier.py": ("tests/unit/test_reward_source.py",),
    "rewards/accuracy.py": (
        "tests/unit/test_reward_accuracy.py",
        "tests/unit/test_stages.py",
    ),
}
MORE = (
    "tests/unit/test_gold.py",
    "tests/unit/test_judge.py",
    "tests/unit/test_reward_source.py",
)
