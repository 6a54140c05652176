"""Mistakes in rlhf_ppo/evaluation: intervals, length control, over-optimisation, exploitation."""

from __future__ import annotations

TABLES = {
    "evaluation/statistics.py": (
        (
            "wins: ties are lost",
            "(policy > reference).double() + 0.5 * (policy == reference).double()",
            "(policy > reference).double()",
        ),
        ("wins: ties are won", "+ 0.5 * (policy == reference)", "+ 1.0 * (policy == reference)"),
        (
            "win rate: ties are wins",
            '"ties": float(ties.mean())',
            '"ties": float(wins(policy, reference).mean())',
        ),
        (
            "resamples: means of a sum",
            "torch.cat(parts) / len(data)",
            "torch.cat(parts) / len(parts)",
        ),
        (
            "resamples: each draws one fewer",
            "(chunk, count), generator",
            "(chunk, count - 1), generator",
        ),
        (
            "resamples: alike for every seed",
            ".manual_seed(seed)\n    for start",
            ".manual_seed(0)\n    for start",
        ),
        ("resamples: more than were asked for", "min(1000, samples - start)", "1000"),
        (
            "interval: normal in place of Student's",
            "z = student_quantile(count - 1) * (count / (count - 1)) ** 0.5",
            "z = NORMAL",
        ),
        (
            "interval: percentiles alone",
            "shifted / (1 - skew * shifted).clamp(min=1e-9)",
            "shifted",
        ),
        (
            "interval: bias the other way",
            "below.mean().clamp(edge, 1 - edge)",
            "(1 - below.mean()).clamp(edge, 1 - edge)",
        ),
        (
            "interval: skew the other way",
            "skew = influence.pow(3).sum()",
            "skew = -influence.pow(3).sum()",
        ),
        (
            "interval: of 90 %",
            "torch.tensor([-z, z], dtype=torch.float64)",
            "torch.tensor([-z, z], dtype=torch.float64) * 0.84",
        ),
        (
            "interval: ties of the replicates",
            "0.5 * (replicates == value).double()",
            "1.0 * (replicates == value).double()",
        ),
        ("quantile: one degree of freedom off", "STUDENT[freedom - 1]", "STUDENT[freedom - 2]"),
        (
            "quantile: the expansion's first term alone",
            " + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)",
            "",
        ),
        ("quantile: the normal's", "return z + (z**3 + z) / (4 * freedom) +", "return z +"),
        (
            "t: of the population",
            "float(data.std()) / len(values) ** 0.5",
            "float(data.std(unbiased=False)) / len(values) ** 0.5",
        ),
        ("t: of a single value", "float(data.std()) / len(values) ** 0.5", "float(data.std())"),
        (
            "t: degrees of freedom",
            "student_quantile(len(values) - 1) * float",
            "student_quantile(len(values)) * float",
        ),
        (
            "flip: each part on its own",
            ".abs().amax(dim=1) for signs",
            ".abs().amin(dim=1) for signs",
        ),
        (
            "flip: one-sided",
            "observed = (data.sum(dim=0) / size).abs()",
            "observed = data.sum(dim=0) / size",
        ),
        ("flip: drawn p may be 0", "(1 + reached) / (1 + len(most))", "reached / len(most)"),
        (
            "reaching: the exact test is not asked",
            "if p >= LEVEL:\n        found = found",
            "if p > 1:\n        found = found",
        ),
        (
            "change: from after to before",
            "difference = after.double() - before.double()",
            "difference = before.double() - after.double()",
        ),
        (
            "changes: from after to before",
            "after[name].double() - before[name].double()",
            "before[name].double() - after[name].double()",
        ),
        (
            "share: resampled where all are 0 or 1",
            "if all(value in (0, 1) for value in values):",
            "if not values:",
        ),
        (
            "share: change of half the size",
            "{name: 2 * rate[name] - 1 for",
            "{name: rate[name] - 0.5 for",
        ),
        (
            "worth: exact test against 0",
            "flip_test((worths - 0.5)[:, None], seed)",
            "flip_test(worths[:, None], seed)",
        ),
    ),
    "evaluation/length_control.py": (
        ("slope: prior is missing", "+ found[:, 1] / PRIOR**2", "+ 0 * found[:, 1]"),
        ("slope: hardly held", "PRIOR = 2.5", "PRIOR = 25.0"),
        ("pair of equal length is missing", "error.sum(dim=1) + middle - 0.5", "error.sum(dim=1)"),
        ("lengths: not scaled", "torch.tanh(longer / deviation)", "torch.tanh(longer)"),
        ("lengths: not bounded", "torch.tanh(longer / deviation)", "longer / deviation"),
        (
            "lengths: about their mean",
            "torch.tanh(longer / deviation)",
            "torch.tanh((longer - longer.mean()) / deviation)",
        ),
        (
            "result: the slope",
            "_fit(counts, wins, x, fitted.expand(len(counts), 2))[:, 0]",
            "_fit(counts, wins, x, fitted.expand(len(counts), 2))[:, 1]",
        ),
        ("newton: one step", "STEPS = 50", "STEPS = 1"),
        (
            "influence: without the errors",
            "torch.stack([wins - odds, (wins - odds) * x])",
            "torch.stack([wins - 0.5, (wins - odds) * x])",
        ),
    ),
    "evaluation/over_optimisation.py": (
        (
            "forms change places",
            '{"best_of_n": "d(alpha - beta d)", "ppo": "d(alpha - beta log d)"}',
            '{"best_of_n": "d(alpha - beta log d)", "ppo": "d(alpha - beta d)"}',
        ),
        (
            "points: one fewer is enough",
            "if points - 1 < FEWEST or",
            "if points - 1 < FEWEST - 1 or",
        ),
        ("band: of the last contrast", ".amax(1).quantile(0.95)", "[:, -1].quantile(0.95)"),
        ("band: of 50 %", ".amax(1).quantile(0.95)", ".amax(1).quantile(0.5)"),
        ("rose: the end alone", "bool(rises.any()) or bool(above[-1])", "bool(above[-1])"),
        (
            "peak: counted from the first inner point",
            "1 + int(inner[0].argmax())",
            "int(inner[0].argmax())",
        ),
        (
            "change: to the best",
            "_percentiles(self.means[:, -1] - self.means[:, 0])",
            "_percentiles(self.means.amax(dim=1) - self.means[:, 0])",
        ),
        (
            "fall: from the reference",
            "float(self.means[0, self.peak] - self.means[0, -1])",
            "float(self.means[0, 0] - self.means[0, -1])",
        ),
        (
            "back: never",
            "if steps is None or float(kl[-1]) >= HELD * float(kl[largest]):",
            "if steps is None or float(kl[-1]) >= 0:",
        ),
        ("curve: d is the KL", ".clamp(min=SMALLEST).sqrt()", ".clamp(min=SMALLEST)"),
        (
            "curve: gain of the values",
            "means[:, count + 1 :] - self.start[:, None]",
            "means[:, count + 1 :]",
        ),
        (
            "curve: weighed by the variance",
            "self.weights = 1 / variance.clamp",
            "self.weights = variance.clamp",
        ),
        ("curve: peak of the parabola", "top = ratio / 2 if", "top = ratio if"),
        (
            "curve: peak of the logarithm",
            "(ratio - 1).clamp(max=50).exp()",
            "ratio.clamp(max=50).exp()",
        ),
        ("curve: slope of the parabola", "inner = 2 * d if", "inner = d if"),
        ("curve: slope of the logarithm", "else d.log() + 1", "else d.log()"),
        ("curve: KL at the peak is d", "_percentiles(self.top.square())", "_percentiles(self.top)"),
        (
            "curve: value without the start",
            "_percentiles(self.start + self._at(self.top))",
            "_percentiles(self._at(self.top))",
        ),
        (
            "step: of the evaluation before",
            "when[after - 1] + share * (when[after] - when[after - 1])",
            "when[after - 1]",
        ),
        ("percentiles: of 90 %", "[0.025, 0.975]", "[0.05, 0.95]"),
        ("percentiles: the estimate is one of them", "rows[1:].quantile(", "rows[:-1].quantile("),
        (
            "rose: the exact test is not asked",
            "        above &= flip_test(_contrasts(data), seed) < LEVEL\n",
            "",
        ),
    ),
    "evaluation/exploitation.py": (
        ("score: need not rise", '["low"] <= 0:', '["high"] <= 0:'),
        (
            "score: missing ones",
            "both = policy.scores.isfinite() & reference",
            "both = policy.scores.isfinite() | reference",
        ),
        (
            "worse: errors that fell",
            'signs[place] < 0 < change["low"]',
            'signs[place] < 0 and change["high"] < 0',
        ),
        (
            "worse: virtues that rose",
            'change["high"] < 0 < signs[place]',
            '0 < signs[place] and 0 < change["low"]',
        ),
        (
            "order: the smallest first",
            'key=lambda item: -abs(item["change"]["mean"])',
            'key=lambda item: abs(item["change"]["mean"])',
        ),
        (
            "order: by sign",
            'key=lambda item: -abs(item["change"]["mean"])',
            'key=lambda item: -item["change"]["mean"]',
        ),
        ("signs: by correlation", "(torch.linalg.pinv(x, rtol=1e-9) @ y)", "(x.T @ y)"),
        (
            "signs: about 0",
            "x, y = parts - parts.mean(dim=0), totals - totals.mean()",
            "x, y = parts, totals",
        ),
        (
            "signs: however little it moves",
            "moved.abs() > MATTERS * y.std(unbiased=False)",
            "moved.abs() >= 0",
        ),
        (
            "table: before and after change places",
            "for side in (policy, reference))\n    signs",
            "for side in (reference, policy))\n    signs",
        ),
    ),
}
OWN = {
    "evaluation/statistics.py": (
        "tests/unit/test_resampling.py",
        "tests/unit/test_statistics.py",
        "tests/exact/test_verdicts.py",
    ),
    "evaluation/length_control.py": ("tests/unit/test_resampling.py",),
    "evaluation/over_optimisation.py": (
        "tests/unit/test_best_of_n.py",
        "tests/unit/test_frontier.py",
        "tests/exact/test_verdicts.py",
    ),
    "evaluation/exploitation.py": (
        "tests/unit/test_summary.py",
        "tests/unit/test_exploitation.py",
    ),
}
MORE = (
    "tests/unit/test_frontier.py",
    "tests/unit/test_intervals.py",
    "tests/unit/test_summary.py",
    "tests/unit/test_judge.py",
)
