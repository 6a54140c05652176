"""Mistakes in rlhf_ppo/diagnostics: diagnostics."""

from __future__ import annotations

TABLES = {
    "diagnostics/signs.py": (
        ("seen: the oldest values", "list(self.lines)[-count:]", "list(self.lines)[:count]"),
        ("seen: fewer are enough", "if len(values) == count and all(", "if values and all("),
        ("seen: NaN is a number", "and all(map(math.isfinite, values)) else []", "else []"),
        (
            "seen: the start is the last steps",
            "if len(self.first) < START:",
            "if len(self.first) < 10 * START:",
        ),
        ("seen: the best is the last", "fmean(values) > _mean(best, key)", "True"),
        ("seen: the worst", "fmean(values) > _mean(best, key)", "fmean(values) < _mean(best, key)"),
        (
            "kl: a response alone",
            "if kl > KL_A_RESPONSE and a_token > KL_A_TOKEN:",
            "if kl > KL_A_RESPONSE:",
        ),
        (
            "kl: a token alone",
            "if kl > KL_A_RESPONSE and a_token > KL_A_TOKEN:",
            "if a_token > KL_A_TOKEN:",
        ),
        (
            "kl: of a token is that of a response",
            "fmean(kls) / max(fmean(lengths), 1.0)",
            "fmean(kls)",
        ),
        ("ratio: rounding of half precision", "max(RATIO, 3 * gap) if", "RATIO if"),
        (
            "ratio: a sampler that is wrong excuses it",
            "and gap < SAMPLER_GAP else RATIO",
            "else RATIO",
        ),
        ("sampler: the other way round", "if gap > SAMPLER_GAP:", "if gap < -SAMPLER_GAP:"),
        ("entropy: below the start", "fmean(last) < ENTROPY_LEFT * start", "fmean(last) < start"),
        ("entropy: a rise that is next to nothing", " and fmean(last) > start + 0.1:", ":"),
        (
            "values: from the first step on",
            'last and seen.now("step") >= EXPLAINED_FROM and',
            "last and",
        ),
        ("values: what is explained well", "fmean(last) < EXPLAINED:", "fmean(last) > EXPLAINED:"),
        (
            "clip: one step",
            'last = seen.last(SHORT, "policy/clip_fraction")',
            'last = seen.last(1, "policy/clip_fraction")',
        ),
        (
            "clip: a single optimizer step",
            "all(count > 1 for count in",
            "all(count >= 1 for count in",
        ),
        ("clip: though nothing moved", " and min(abs(kl) for kl in kls) > 0:", ":"),
        ("clip: most of them", "max(last) == 0", "min(last) == 0"),
        (
            "length: shorter is fine",
            "not start / LENGTH <= fmean(last) <= start * LENGTH",
            "not fmean(last) <= start * LENGTH",
        ),
        (
            "length: longer is fine",
            "not start / LENGTH <= fmean(last) <= start * LENGTH",
            "not start / LENGTH <= fmean(last)",
        ),
        ("stops: those that ended", "fmean(last) < STOPPED:", "fmean(last) > STOPPED:"),
        (
            "identical: equal scores",
            'last = seen.last(SHORT, "group/identical")\n',
            'last = seen.last(SHORT, "group/equal_scores")\n',
        ),
        ("equal scores: of equal texts", " and fmean(same) <= IDENTICAL:", ":"),
        (
            "skipped: of any step",
            'if seen.now("update/skipped") > 0:',
            'if seen.now("update/skipped") >= 0:',
        ),
        ("gradient: itself among those before", "list(seen.lines)[:-1]]\n", "list(seen.lines)]\n"),
        (
            "gradient: the largest before",
            "0 < SPIKE * median(before) < norm",
            "0 < SPIKE * max(before) < norm",
        ),
        ("gradient: after a few steps", "len(before) >= WINDOW and", "before and"),
        ("hacking: the score may fall as well", " and score >= then:", ":"),
        ("hacking: noise of a single step", "/ WINDOW)\n", ")\n"),
        ("hacking: however little of the gain", " and fall > GOLD_FALL * abs(rise) and", " and"),
        ("fell: in reward units", 'SCORE_FALL * _mean(seen.best_score, "score/std")', "SCORE_FALL"),
        (
            "fell: from the start",
            'best = _mean(seen.best_score, "score/mean")\n    if',
            'best = seen.start("score/mean")\n    if',
        ),
    ),
    "diagnostics/findings.py": (
        (
            "told again and again",
            "if message is not None and check.name not in known:",
            "if message is not None:",
        ),
        (
            "step: of the last line for all",
            'step = int(line.get("step", 0))',
            "step = len(self.seen.lines)",
        ),
        ("the newest alone are kept", "self.findings += new", "self.findings = new"),
        ("gain: the mean decides", 'rate["low"] <= 0.5', 'rate["mean"] <= 0.5'),
        ("gain: surely worse", 'rate["low"] <= 0.5', 'rate["high"] <= 0.5'),
        (
            "hacking: the score need not rise",
            'change["score"]["low"] > 0 > change["gold"]["high"]',
            '0 > change["gold"]["high"]',
        ),
        ("hacking: means of gold", '0 > change["gold"]["high"]', '0 > change["gold"]["mean"]'),
        ("hacking: gold that rose", '0 > change["gold"]["high"]', '0 < change["gold"]["low"]'),
        (
            "metrics: half a line ends the run",
            "except ValueError:\n            continue",
            "except ValueError:\n            break",
        ),
        (
            "summary: at step 0",
            'last = int(metrics[-1].get("step", 0)) if metrics else 0',
            "last = 0",
        ),
        (
            "reward model: a coin by its mean",
            'if accuracy["low"] <= 0.5:',
            'if accuracy["accuracy"] <= 0.5:',
        ),
        (
            "reward model: kinds tested each on its own",
            'kind["p"] * len(kinds) < 0.05',
            'kind["p"] < 0.05',
        ),
    ),
}
OWN = {
    "diagnostics/signs.py": (
        "tests/unit/test_diagnostics.py",
        "tests/unit/test_signs.py",
    ),
    "diagnostics/findings.py": (
        "tests/unit/test_diagnostics.py",
        "tests/unit/test_signs.py",
        "tests/unit/test_reward_accuracy.py",
        "tests/exact/test_verdicts.py",
    ),
}
MORE = ("tests/unit/test_docs.py",)
