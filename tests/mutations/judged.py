"""Mistakes in rlhf_ppo/evaluation: judges, diversity, comparisons, tables."""

from __future__ import annotations

TABLES = {
    "evaluation/judge.py": (
        (
            "order: the same twice",
            "partial(_ask, judge, key, prompt, theirs, ours)",
            "partial(_ask, judge, key, prompt, ours, theirs)",
        ),
        (
            "order: second worth is the reference's",
            "return Verdict(first, 1 - second)",
            "return Verdict(first, second)",
        ),
        ("worth: a tie is a loss", '"C": 0.5}', '"C": 0.0}'),
        ("worth: sides change places", '{"A": 1.0, "B": 0.0,', '{"A": 0.0, "B": 1.0,'),
        ("verdict: the first of several", "if len(found) != 1:", "if not found:"),
        (
            "verdict: said twice is several",
            "set(VERDICT.findall(text))",
            "list(VERDICT.findall(text))",
        ),
        (
            "failures: never given up",
            "if failures.total() > allowed:",
            "if failures.total() > 10**9:",
        ),
        (
            "failures: given up one too early",
            "if failures.total() > allowed:",
            "if failures.total() >= allowed:",
        ),
        ("failures: kinds are counted", "failures.total() > allowed", "len(failures) > allowed"),
        (
            "failures: those without a verdict count as losses",
            "good = [verdict for verdict in verdicts if not verdict.reason]",
            "good = list(verdicts)",
        ),
        (
            "failures: the share itself is too much",
            "if failed > judge.max_failed * len(verdicts):",
            "if failed >= judge.max_failed * len(verdicts):",
        ),
        (
            "summary: the first order alone",
            "means, first = (ours + theirs) / 2,",
            "means, first = ours,",
        ),
        ("summary: first shown is the policy's", "(ours + 1 - theirs) / 2", "(ours + theirs) / 2"),
        (
            "summary: ties are no opinion at all",
            "(means == 0.5).double().mean()",
            "(ours == 0.5).double().mean()",
        ),
        (
            "summary: any difference is opposite",
            "abs(v.policy_first - v.reference_first) == 1",
            "abs(v.policy_first - v.reference_first) > 0",
        ),
        ("summary: opposite of all prompts", "opposite / len(good)", "opposite / len(verdicts)"),
        (
            "question: places in answers are filled",
            "lambda m: places[m[1]], judge.template or TEMPLATE",
            'lambda m: places[m[1]].replace("{answer_b}", second), judge.template or TEMPLATE',
        ),
        ("question: the template is not used", "judge.template or TEMPLATE", "TEMPLATE"),
        ("question: options above the model", "judge.options | body", "body | judge.options"),
        (
            "question: the last turn alone",
            "for turn in prompt.text)",
            "for turn in prompt.text[-1:])",
        ),
        ("url: two slashes", 'judge.url.rstrip("/") +', "judge.url +"),
        ("key: an empty one", "    if not key:\n", "    if key is None:\n"),
        ("retries: none", "ours, theirs), judge.retries)", "ours, theirs), 0)"),
    ),
    "evaluation/diversity.py": (
        (
            "distinct: within each text",
            "different = sum(len(items) for items in grams), len(occurrences)",
            (
                "different = sum(len(items) for items in grams), sum(len(set(items)) for "
                "items in grams)"
            ),
        ),
        ("distinct: letters of different size differ", "text.lower().split()", "text.split()"),
        ("distinct: characters", "text.lower().split()", "list(text.lower())"),
        (
            "distinct: occurrences by text and place",
            "Counter(gram for items in grams for gram in set(items))",
            "Counter(gram for items in grams for gram in items)",
        ),
        ("interval: standard error of a mean", "(count - 1) / count * sum(", "1 / count * sum("),
        (
            "interval: one-sided quantile",
            "return 1.96 * float(error)",
            "return 1.64 * float(error)",
        ),
        ("interval: beyond 1", "min(1.0, ratio + error)", "ratio + error"),
        (
            "repetition: what is new",
            "return 1 - len(set(grams)) / len(grams)",
            "return len(set(grams)) / len(grams)",
        ),
        ("grams: the last is left out", "range(len(words) - n + 1)", "range(len(words) - n)"),
        ("nothing: 1", "return 0.0, [0.0 for _ in texts]", "return 1.0, [1.0 for _ in texts]"),
        (
            "change: errors of both sides are added",
            "[a - b for a, b in zip(our_rest",
            "[a + b for a, b in zip(our_rest",
        ),
        ("change: from after to before", "change = ours - theirs", "change = theirs - ours"),
    ),
    "evaluation/heldout.py": (
        (
            "score: missing ones count",
            "float(side.scores.nanmean())",
            "float(side.scores.nan_to_num().mean())",
        ),
        ("kl: of the lengths", "_mean(side.kl)", "_mean(side.lengths)"),
        ("gold: the score", "float(side.gold_scores.mean())", "float(side.scores.nanmean())"),
        ("rows: NaN in JSON", "float(score) if bool(score.isfinite()) else None", "float(score)"),
        (
            "rows: infinity in JSON",
            "if bool(score.isfinite()) else None",
            "if not bool(score.isnan()) else None",
        ),
        ("parts: the score is one", 'if name != "score"]', "]"),
        (
            "rows: gold is left out",
            '        rows["gold"] = side.gold_scores.tolist()\n',
            "        pass\n",
        ),
    ),
    "evaluation/table.py": (
        ("interval: two digits always", '1 if abs(estimate["mean"]) >= 10 else 2', "2"),
        ("line: up is down", '"down" if change < 0 else "up"', '"up" if change < 0 else "down"'),
        (
            "line: from policy to reference",
            "{_short(item['reference'])} -> {_short(item['policy'])}",
            "{_short(item['policy'])} -> {_short(item['reference'])}",
        ),
        (
            "samples: the first ones",
            "number * len(prompts) // count for number",
            "number for number",
        ),
        (
            "samples: sides change places",
            '_show_answer("before", "dim", reference, index)',
            '_show_answer("before", "dim", policy, index)',
        ),
        ("samples: more than there are", "    count = min(count, len(prompts))\n", ""),
    ),
}
OWN = {
    "evaluation/judge.py": ("tests/unit/test_judge.py",),
    "evaluation/diversity.py": ("tests/unit/test_diversity.py",),
    "evaluation/heldout.py": ("tests/unit/test_summary.py",),
    "evaluation/table.py": (
        "tests/unit/test_summary.py",
        "tests/unit/test_exploitation.py",
    ),
}
MORE = (
    "tests/unit/test_frontier.py",
    "tests/unit/test_statistics.py",
    "tests/unit/test_intervals.py",
)
