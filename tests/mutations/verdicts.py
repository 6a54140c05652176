"""Mistakes in what several folders share: seeds, exact tests; and in runs side by side."""

from __future__ import annotations

TABLES = {
    "seeds.py": (
        (
            "seed: parts run together",
            '"/".join(str(part) for part in parts)',
            '"".join(str(part) for part in parts)',
        ),
        (
            "seed: another one in each process",
            "hashlib.blake2b(text.encode(), digest_size=8).digest()",
            "hash(text).to_bytes(8, 'big', signed=True)",
        ),
        ("seed: of 64 bits", '"big") >> 1', '"big")'),
        ("seed: of 32 bits", '"big") >> 1', '"big") >> 32'),
    ),
    "report/compare.py": (
        (
            "name: cut at the first dash",
            'stem, dash, seed = run.name.rpartition("-")',
            'stem, dash, seed = run.name.partition("-")',
        ),
        ("run: given twice", "if places.count(place) > 1:", "if places.count(place) > 2:"),
        (
            "columns: those of any run",
            "        if all(estimate(lookup",
            "        if any(estimate(lookup",
        ),
        ("interval: of one seed", "if len(values) < 2:", "if len(values) < 1:"),
        ("mean: the lower end", "return found.mean", "return found.low"),
        (
            "methods: one seed twice is two seeds",
            "in seeds:\n            key",
            "in seeds and not key:\n            key",
        ),
    ),
    "evaluation/paired_runs.py": (
        ("holm: all tests for each", "(len(ps) - rank) * ps[place]", "len(ps) * ps[place]"),
        ("holm: none", "(len(ps) - rank) * ps[place]", "ps[place]"),
        ("holm: a later p may be smaller", "most = max(most, min(", "most = max(0.0, min("),
        ("prompts: the first of two counts for both", "seen[key] += 1", "seen[key] = 1"),
        (
            "prompts: by their place",
            "for key in tables[0]\n        if",
            "for key in tables[0]\n        if key[1] == 1 and",
        ),
        (
            "units: whatever they are",
            "if unit and unit == other.units.get(by) else",
            "if unit else",
        ),
        ("wins: ties are wins", "won, lost = sum(a > b for", "won, lost = sum(a >= b for"),
        ("verdict: always the first", "if self.rate > 0.5 else", "if self.rate >= 0 else"),
    ),
    "proportions.py": (
        ("sign test: one-sided", "min(1.0, 2 * tail)", "min(1.0, tail)"),
        (
            "sign test: of the wins",
            "pairs, most = wins + losses, max(wins, losses)",
            "pairs, most = wins + losses, wins",
        ),
        ("sign test: mid-p", "    tail = 0.0\n", "    tail = -term / 2\n"),
        (
            "share: about the share itself",
            "middle = (share + extra / 2) / (1 + extra)",
            "middle = share",
        ),
        (
            "share: no width at 0",
            "math.sqrt(share * (1 - share) / count + extra / (4 * count))",
            "math.sqrt(share * (1 - share) / count)",
        ),
        (
            "pairs: the exact test is not asked",
            "    if p >= LEVEL:\n        low",
            "    if p > 1:\n        low",
        ),
        ("pairs: ties are lost", "(wins + ties / 2) / count", "wins / count"),
        (
            "difference: variance of independent shares",
            "count * (2 * q + d * (1 - d))",
            "count * 2 * (q + d * (1 - d))",
        ),
        ("difference: of 90 %", "Z = 1.959963984540054", "Z = 1.6448536269514722"),
    ),
}
OWN = {
    "seeds.py": ("tests/unit/test_sampling.py",),
    "report/compare.py": (
        "tests/unit/test_summary.py",
        "tests/unit/test_comparison.py",
    ),
    "evaluation/paired_runs.py": ("tests/unit/test_comparison.py",),
    "proportions.py": ("tests/exact/test_verdicts.py",),
}
MORE = (
    "tests/unit/test_summary.py",
    "tests/unit/test_stages.py",
    "tests/exact/test_verdicts.py",
)
