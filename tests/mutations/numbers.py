"""Mistakes in rlhf_ppo/training: metrics, the guard, text rows, kept failures."""

from __future__ import annotations

TABLES = {
    "training/metrics.py": (
        ("kl: of a token", "zero).sum(dim=1)", "zero).mean(dim=1)"),
        (
            "kl: the other way round",
            "rollout.logprobs - rollout.ref_logprobs",
            "rollout.ref_logprobs - rollout.logprobs",
        ),
        (
            "kl: padding counts",
            "torch.where(mask, rollout.logprobs - rollout.ref_logprobs, zero)",
            "(rollout.logprobs - rollout.ref_logprobs)",
        ),
        ("gap: the mean", "float(gap.abs().max())", "float(gap.abs().mean())"),
        ("gap: upwards alone", "float(gap.abs().max())", "float(gap.max())"),
        (
            "gap: padding counts",
            "torch.where(mask, rollout.logprobs - responses.sampling_logprobs, zero)",
            "rollout.logprobs - responses.sampling_logprobs",
        ),
        ("score: as it is paid", "float(weighed.scores.mean())", "float(scores.mean())"),
        (
            "score: deviation of a sample",
            "weighed.scores.std(unbiased=False)",
            "weighed.scores.std()",
        ),
        (
            "shaped: as it was said",
            '"score/shaped": float(scores.mean())',
            '"score/shaped": float(weighed.scores.mean())',
        ),
        (
            "length: of the longest",
            "mask.sum(dim=1).float().mean()",
            "mask.sum(dim=1).float().max()",
        ),
        (
            "stopped: those that were cut",
            "float(responses.stopped.float().mean())",
            "1 - float(responses.stopped.float().mean())",
        ),
        (
            "explained: values by returns",
            "explained_variance(batch.values, batch.returns",
            "explained_variance(batch.returns, batch.values",
        ),
        ("explained: of values that nobody learns", "if with_values:", "if True:"),
        (
            "sources: failures of all",
            "sum(failure.source == name for failure in failures)",
            "len(failures)",
        ),
        (
            "sources: sum in place of the mean",
            "float(scores.mean())\n        metrics[f",
            "float(scores.sum())\n        metrics[f",
        ),
        ("groups: singles count", "if len(group) > 1", "if len(group) >= 1"),
        (
            "groups: two alike are enough for the text",
            "for place in group}) == 1",
            "for place in group}) < len(group)",
        ),
        (
            "groups: one equal score is enough",
            "== scores[group[0]]).all())",
            "== scores[group[0]]).any())",
        ),
        ("groups: share of the responses", "same_text / len(groups)", "same_text / len(rows)"),
        (
            "groups: equal scores over the responses",
            "same_score / len(groups)",
            "same_score / len(rows)",
        ),
        ("throughput: of the longest phase", "sum(seconds.values())", "max(seconds.values())"),
        (
            "throughput: of the whole in each phase",
            "tokens / max(value, 1e-9)",
            "tokens / max(sum(seconds.values()), 1e-9)",
        ),
        ("update: KL to the reference", '"kl/update": stats.kl', '"kl/update": stats.ref_kl'),
        (
            "update: KL of the update in the loss",
            'metrics["kl/loss"] = stats.ref_kl',
            'metrics["kl/loss"] = stats.kl',
        ),
        (
            "update: policy's loss as the values'",
            'metrics["value/loss"] = stats.value_loss',
            'metrics["value/loss"] = stats.policy_loss',
        ),
        (
            "update: policy's clips as the values'",
            "stats.value_clip_fraction",
            "stats.policy_clip_fraction",
        ),
        ("update: clips of every objective", 'if loss.objective == "clipped":', "if True:"),
        (
            "update: penalty of every objective",
            'if loss.objective == "kl_penalty":',
            "if loss.penalty:",
        ),
        ("update: KL that is not in the loss", "if loss.kl_coefficient:", "if loss.kl_estimator:"),
        ("update: text though there is none", "if with_text:", "if True:"),
        (
            "update: skips in a row",
            '"update/skipped": stats.skipped,',
            '"update/skipped": stats.skipped_in_row,',
        ),
        ("memory: units change places", "2**30 if sys", "2**20 if not sys"),
        ("append: over what is there", 'file.open("a"', 'file.open("w"'),
        ("cut: the last step too", "step <= last_step", "step < last_step"),
        (
            "cut: what is removed is kept",
            "(kept if step <= last_step else cut).append",
            "kept.append",
        ),
        ("cut: a half line ends it", "continue  # the half line", "break  # the half line"),
        (
            "cut: removed lines go nowhere",
            "if removed is not None and cut:",
            "if removed is not None and not cut:",
        ),
        (
            "cut: kept lines are moved",
            'removed.write_text("".join(cut)',
            'removed.write_text("".join(kept)',
        ),
    ),
    "training/guard.py": (
        ("running score: hardly remembers", "SCORE_DECAY = 0.8", "SCORE_DECAY = 0.2"),
        (
            "running score: weights change places",
            "SCORE_DECAY * running + (1 - SCORE_DECAY) * score",
            "(1 - SCORE_DECAY) * running + SCORE_DECAY * score",
        ),
        ("best: of single steps", "max(best, running)", "max(best, score)"),
        ("best: the last", "running if best is None else max(best, running)", "running"),
        ("kl: NaN is kept", "watch.kl if math.isnan(kl) else kl", "kl"),
        (
            "kl: infinity is passed over",
            "watch.kl if math.isnan(kl)",
            "watch.kl if not math.isfinite(kl)",
        ),
        ("deviation: the last", "max(watch.deviation, deviation) if math", "deviation if math"),
        (
            "deviation: NaN or infinity is kept",
            " if math.isfinite(deviation) else watch.deviation",
            "",
        ),
        ("score: infinity is a score", "if math.isfinite(score):", "if not math.isnan(score):"),
        ("rollbacks forgotten", "rollbacks=watch.rollbacks", "rollbacks=0"),
        (
            "skips: one more than allowed",
            "watch.skipped >= guard.max_skipped",
            "watch.skipped > guard.max_skipped",
        ),
        ("skips: added up", "skipped=skipped,", "skipped=watch.skipped + skipped,"),
        ("kl: the limit itself is too much", "watch.kl > guard.max_kl", "watch.kl >= guard.max_kl"),
        ("drop: in reward units", "guard.max_score_drop * watch.deviation", "guard.max_score_drop"),
        (
            "drop: of the last best",
            "watch.best_score - watch.score",
            "watch.score - watch.best_score",
        ),
        (
            "drop: the limit itself is too much",
            "drop > guard.max_score_drop * watch.deviation",
            "drop >= guard.max_score_drop * watch.deviation",
        ),
    ),
    "training/ptx.py": (
        ("rows: the first token is learnt from nothing", "max(1, row.start)", "row.start"),
        (
            "rows: a row with nothing to learn is kept",
            "if row.start < len(row.ids)]",
            "if row.start <= len(row.ids)]",
        ),
        (
            "rows: one token shorter than allowed",
            '"ptx.max_tokens", max_tokens, limits)',
            '"ptx.max_tokens", max_tokens - 1, limits)',
        ),
        (
            "rows: kept ones are counted",
            "return rows, len(items) - len(rows)",
            "return rows, len(rows)",
        ),
        (
            "rows: the completion's first token is context",
            "max(1, row.start)) for",
            "max(1, row.start + 1)) for",
        ),
        ("draw: context loses a token", "row.ids[: row.start]", "row.ids[1 : row.start]"),
        ("draw: context is learnt too", "row.ids[row.start :]", "row.ids[row.start - 1 :]"),
        (
            "draw: a padding token is learnt",
            "response_ids.shape[1]) < lengths",
            "response_ids.shape[1]) <= lengths",
        ),
        (
            "draw: always the first rows",
            "step_rows(len(rows), count, number, seed)",
            "range(count)",
        ),
        ("draw: alike for every seed", "count, number, seed)]", "count, number, 0)]"),
    ),
    "training/failures.py": (
        ("one more than allowed", ">= MOST", "> MOST"),
        ("a second one of the step takes its place", "if file.exists() or len", "if len"),
        ("text left out", "if text is not None:", "if text is None and False:"),
        ("text over the minibatch's own", '_flatten(text, "ptx.")', '_flatten(text, "batch.")'),
        (
            "names of nested records lose their prefix",
            'f"{prefix}{field.name}."',
            'f"{field.name}."',
        ),
        ("names of tensors lose their prefix", "found[prefix + field.name]", "found[field.name]"),
    ),
}
OWN = {
    "training/metrics.py": (
        "tests/unit/test_metrics.py",
        "tests/unit/test_files.py",
    ),
    "training/guard.py": ("tests/unit/test_guard.py",),
    "training/ptx.py": ("tests/unit/test_text_rows.py",),
    "training/failures.py": ("tests/unit/test_metrics.py",),
}
MORE = (
    "tests/unit/test_restore.py",
    "tests/invariance/test_update.py",
    "tests/invariance/test_ptx.py",
    "tests/invariance/test_ten_invariants.py",
)
