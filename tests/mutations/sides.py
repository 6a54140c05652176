"""Mistakes in rlhf_ppo/evaluation: sides, gold, best-of-n, summaries."""

from __future__ import annotations

TABLES = {
    "evaluation/best_of_n.py": (
        (
            "weights: subsets of one less",
            "math.comb(k, n) / math.comb(count, n)",
            "math.comb(k, n - 1) / math.comb(count, n - 1)",
        ),
        (
            "weights: the worst of n",
            "scores[:, None, :] < scores[:, :, None]",
            "scores[:, None, :] > scores[:, :, None]",
        ),
        (
            "weights: ties are not shared",
            "(share[up_to] - share[smaller]) / (up_to - smaller)",
            "share[up_to] - share[smaller]",
        ),
        (
            "weights: ties are lost",
            "share[up_to] - share[smaller]",
            "share[smaller + 1] - share[smaller]",
        ),
        (
            "values: of the score that chooses",
            "best_of_weights(scores, n) * values",
            "best_of_weights(scores, n) * scores",
        ),
        ("kl: its second term", "math.log(n) - (n - 1) / n", "math.log(n) - 1 / n"),
        ("kl: in bits", "math.log(n) - (n", "math.log2(n) - (n"),
        ("sizes: the largest twice", "if 2**power < most]", "if 2**power <= most]"),
        ("sizes: without the largest", "return [*powers, most]", "return powers or [most]"),
    ),
    "evaluation/frontier.py": (
        (
            "best-of-n: prompts with a missing score",
            "scores.isfinite().all(dim=1)\n    scores = scores[whole]",
            "scores.isfinite().any(dim=1)\n    scores = scores[whole]",
        ),
        (
            "best-of-n: copies of all prompts together",
            "side.scores.view(-1, copies)",
            "side.scores.view(copies, -1).T",
        ),
        (
            "best-of-n: gold of other prompts",
            "side.gold_scores.view(-1, copies)[whole]",
            "side.gold_scores.view(-1, copies)[: int(whole.sum())]",
        ),
        (
            "best-of-n: gold is the score",
            "best_of(scores, values, n) for n",
            "best_of(scores, scores, n) for n",
        ),
        (
            "ppo: without the reference",
            'len(history) < 2 or history[0]["step"] != 0',
            "len(history) < 2",
        ),
        ("ppo: one evaluation is a path", "if len(history) < 2 or", "if len(history) < 1 or"),
        (
            "ppo: prompts of the longest evaluation",
            'min(len(entry["score"]) for entry in history)',
            'len(history[0]["score"])',
        ),
        (
            "ppo: a missing score is 0",
            '[float("nan") if value is None else value',
            "[0.0 if value is None else value",
        ),
        ("ppo: gold of all prompts", 'table("gold")[whole] if all', 'table("gold") if all'),
        (
            "ppo: gold of some evaluations",
            'all("gold" in entry for entry in history)',
            '"gold" in history[-1]',
        ),
        ("ppo: kl of all prompts", 'Path(table("kl")[whole], score', 'Path(table("kl"), score'),
        (
            "point: of the reference",
            "_estimate(path.score[:, place], samples",
            "_estimate(path.score[:, 0], samples",
        ),
        (
            "point: gold is the score",
            "_estimate(path.gold[:, place]",
            "_estimate(path.score[:, place]",
        ),
        ("history: a missing file ends it", "    if not file.is_file():\n        return []\n", ""),
    ),
    "evaluation/sides.py": (
        (
            "greedy: with a KL",
            "name=name, sampling=sampling, log_ratios=None)",
            "name=name, sampling=sampling)",
        ),
        (
            "greedy: at the run's temperature",
            "replace(self.sampling, temperature=0.0)",
            "replace(self.sampling, temperature=1.0)",
        ),
        ("first: the last", "prompts=self.prompts[:count]", "prompts=self.prompts[-count:]"),
        (
            "copies: not neighbours",
            "[item for item in candidate.prompts for _ in range(copies)]",
            "[item for _ in range(copies) for item in candidate.prompts]",
        ),
        ("noise: of the run's step 1", "purpose, 0, rows, limit)", "purpose, 1, rows, limit)"),
        (
            "noise: by the model",
            "sampling_noise(self.config.seed, purpose,",
            "sampling_noise(self.config.seed, purpose + str(candidate.log_ratios is None),",
        ),
        (
            "kl: of a token",
            "ratios: list[float] = difference.sum(dim=1)",
            "ratios: list[float] = difference.mean(dim=1)",
        ),
        (
            "kl: the other way round",
            "outputs.logprobs - ref_logprobs, 0.0",
            "ref_logprobs - outputs.logprobs, 0.0",
        ),
        (
            "kl of another: rows by length",
            "ratios[rows] = (logprobs - others)",
            "ratios[: len(rows)] = (logprobs - others)",
        ),
        (
            "kl of another: to the policy",
            "(logprobs - others).float()",
            "(others - logprobs).float()",
        ),
        (
            "stop: the policy's for another model",
            "replace(self.sampling, stop_ids=stop_ids)",
            "replace(self.sampling)",
        ),
        ("moments: learnt from the evaluation", "learn=False", "learn=True"),
        (
            "scores: of one source",
            "scores=weighed.scores.double()",
            "scores=next(iter(weighed.parts.values())).double()",
        ),
    ),
    "evaluation/gold.py": (
        ("mean: a sum", "/ len(results)\n", "/ 1\n"),
        (
            "score: may be infinite",
            "math.isfinite(v) for v in parts.values()",
            "not math.isnan(v) for v in parts.values()",
        ),
        (
            "score: parts may be anything",
            "all(math.isfinite(v) for v in parts.values())",
            'math.isfinite(parts["score"])',
        ),
        ("score: may be missing", '"score" not in parts or not all', "not all"),
        ("check: not tried", '        self.score(prompts[:1], [""])\n', ""),
        ("check: columns are not looked for", "        self.function.check(prompts)\n", ""),
    ),
    "evaluation/summary.py": (
        (
            "against: prompts that one side did not score",
            "side.scores.isfinite() & reference.scores.isfinite()",
            "side.scores.isfinite()",
        ),
        (
            "against: lengths of other prompts",
            "reference.scores[both], longer[both])",
            "reference.scores[both], longer[: int(both.sum())])",
        ),
        (
            "against: gold by the score",
            'pairs["gold"] = (side.gold_scores, reference.gold_scores, longer)',
            'pairs["gold"] = (side.scores, reference.scores, longer)',
        ),
        (
            "side: missing scores count",
            "scores[scores.isfinite()].tolist()",
            "scores.nan_to_num().tolist()",
        ),
        ("side: failures are not told", "    if failed:\n", "    if failed > len(side.scores):\n"),
        ("side: parts of a single source", "if len(side.parts) > 1:", "if len(side.parts) > 2:"),
        (
            "side: distinct words for pairs",
            "distinct_n(side.texts, 2)",
            "distinct_n(side.texts, 1)",
        ),
        (
            "side: length is what stopped",
            "estimate_share(side.stopped, samples, seed)",
            "estimate(side.lengths)",
        ),
        (
            "side: gold parts of the first answer",
            "estimate_share([parts[name] for parts in side.gold], samples",
            "estimate_share([side.gold[0][name] for parts in side.gold], samples",
        ),
        (
            "greedy: against the sampled reference",
            "_against(config, answers.greedy_policy, answers.greedy_reference)",
            "_against(config, answers.greedy_policy, reference)",
        ),
        (
            "greedy: the sampled policy",
            '"policy": _side_summary(answers.greedy_policy,',
            '"policy": _side_summary(policy,',
        ),
        (
            "models: greedy against sampled",
            "_against(config, side, against[how])",
            "_against(config, side, reference)",
        ),
        (
            "models: one path for all",
            "config.evaluation.models[name]}",
            "next(iter(config.evaluation.models.values()))}",
        ),
        (
            "samples: all of the first prompt",
            '"policy": sample_of(answers.policy, index),',
            '"policy": sample_of(answers.policy, 0),',
        ),
        (
            "samples: sides change places",
            '"reference": sample_of(answers.reference, index),',
            '"reference": sample_of(answers.policy, index),',
        ),
        (
            "samples: NaN in JSON",
            '"score": number(side.scores[index])',
            '"score": float(side.scores[index])',
        ),
        (
            "samples: stopped is a length",
            '"stopped": bool(side.stopped[index])',
            '"stopped": bool(side.lengths[index])',
        ),
        ("samples: letters as codes", "ensure_ascii=False", "ensure_ascii=True"),
        (
            "seed: that of the run",
            'seed = derive_seed(config.seed, "bootstrap")\n    policy, reference',
            "seed = config.seed\n    policy, reference",
        ),
        (
            "change: from policy to reference",
            "name: paired_change(ours, theirs, samples, seed)\n",
            "name: paired_change(theirs, ours, samples, seed)\n",
        ),
        (
            "change: parts without a score count",
            "known = rows.isfinite().all(dim=0)",
            "known = rows.isfinite().any(dim=0)",
        ),
        (
            "change: gold parts change places",
            "changes[group] = paired_changes(ours, theirs,",
            "changes[group] = paired_changes(theirs, ours,",
        ),
    ),
}
OWN = {
    "evaluation/best_of_n.py": ("tests/unit/test_best_of_n.py",),
    "evaluation/frontier.py": ("tests/unit/test_best_of_n.py",),
    "evaluation/sides.py": ("tests/unit/test_sides.py",),
    "evaluation/gold.py": ("tests/unit/test_gold.py",),
    "evaluation/summary.py": ("tests/unit/test_summary.py",),
}
MORE = (
    "tests/unit/test_frontier.py",
    "tests/unit/test_statistics.py",
    "tests/unit/test_intervals.py",
)
