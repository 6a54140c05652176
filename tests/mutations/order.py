"""Mistakes in rlhf_ppo/training: checkpoints, the order of the steps, the other stages."""

from __future__ import annotations

TABLES = {
    "training/loop.py": (
        (
            "due: one step late",
            "return every > 0 and step % every == 0",
            "return every > 0 and step % every == 1",
        ),
        ("checkpoint: none at the end", "(finished or step % every == 0)", "(step % every == 0)"),
        ("checkpoint: at the end alone", "(finished or step % every == 0)", "finished"),
        (
            "checkpoint: of the start of a resumed run",
            "if progress != saved and _check",
            "if _check",
        ),
        (
            "best: a negative score is none",
            "progress.best_step == 0 or score > progress.best_score",
            "score > progress.best_score",
        ),
        ("best: the worst", "or score > progress.best_score", "or score < progress.best_score"),
        (
            "best: a later one as good",
            "or score > progress.best_score",
            "or score >= progress.best_score",
        ),
        ("best: a sick policy", "if not (better and healthy):", "if not better:"),
        (
            "best: its score is not kept",
            "best_step=progress.step, best_score=score)",
            "best_step=progress.step)",
        ),
        (
            "best: the last stays",
            "load_weights(best_folder(run.checkpoints, progress.best_step), run.roles.policy)",
            "best_folder(run.checkpoints, progress.best_step)",
        ),
        (
            "rollback: to a checkpoint that holds the trouble",
            "progress.step - 2)",
            "progress.step - 1)",
        ),
        ("rollback: to the oldest", "path, then = good[-1]", "path, then = good[0]"),
        (
            "rollback: to one in trouble",
            "if then.step <= newest and trouble(guard, then.watch) is None",
            "if then.step <= newest",
        ),
        ("rollback: one too few", "count > guard.max_rollbacks:", "count >= guard.max_rollbacks:"),
        (
            "rollback: later ones stay",
            "if other.step > then.step]",
            "if other.step > progress.step]",
        ),
        (
            "rollback: weights stay",
            (
                "    load_checkpoint(path, run.roles.policy, run.optimizer)\n    if "
                "run.processes.is_main:\n        factor"
            ),
            "    if run.processes.is_main:\n        factor",
        ),
        (
            "rollback: held-out numbers stay",
            '((run.metrics_file, "rollback"), (run.heldout_file, "heldout-rollback"))',
            '((run.metrics_file, "rollback"),)',
        ),
        (
            "resume: held-out numbers stay",
            "for file in (run.metrics_file, run.heldout_file):",
            "for file in (run.metrics_file,):",
        ),
        (
            "resume: from the oldest",
            "progress = read_progress(found[-1])",
            "progress = read_progress(found[0])",
        ),
        (
            "resume: weights of the start",
            "        load_checkpoint(found[-1], run.roles.policy, run.optimizer)\n",
            "",
        ),
        ("start: penalty of the default", "penalty=config.ppo.penalty)", "penalty=1.0)"),
        (
            "start: evaluated on every resume",
            "run.config.evaluation.every > 0 and progress.step == 0",
            "run.config.evaluation.every > 0",
        ),
        (
            "evaluation: after the last step too",
            "_due(config.evaluation.every, step) and not last)",
            "_due(config.evaluation.every, step))",
        ),
        ("evaluation: the last step is not judged", "(wants_best and last) or ", ""),
    ),
    "training/checkpoint.py": (
        ("list: half-written ones too", " if (path / STATE).is_file()]", "]"),
        (
            "list: by name",
            'key=lambda path: int(path.name.removeprefix("step-"))',
            "key=lambda path: path.name",
        ),
        (
            "list: newest first",
            'int(path.name.removeprefix("step-"))',
            '-int(path.name.removeprefix("step-"))',
        ),
        ("keep: one too few", "[:-keep] if keep", "[: 1 - keep or None] if keep"),
        (
            "keep: the oldest",
            "list_checkpoints(folder)[:-keep] if keep",
            "list_checkpoints(folder)[keep:] if keep",
        ),
        (
            "keep: never removes",
            "        shutil.rmtree(old)\n    _prune_best(folder, progress.best_step)",
            "        old.exists()\n    _prune_best(folder, progress.best_step)",
        ),
        ("best: kept for ever", "\n    _prune_best(folder, progress.best_step)", ""),
        ("best: those that a checkpoint names go", "{step, *named}", "{step}"),
        ("best: the newest goes", "{step, *named}", "{*named}"),
        (
            "best: the older ones stay",
            "partial / WEIGHTS))\n    _prune_best(folder, step)",
            "partial / WEIGHTS))",
        ),
        (
            "progress: moments of the sources are lost",
            'name: Moments(**found) for name, found in state["sources"].items()',
            'name: Moments() for name in state["sources"]',
        ),
        ("progress: the watch is lost", '"watch": Watch(**state["watch"])', '"watch": Watch()'),
        (
            "progress: moments of the scores are lost",
            '"scores": Moments(**state["scores"])',
            '"scores": Moments()',
        ),
        ("load: the optimizer starts anew", "    optimizer.load_state_dict(state)\n", ""),
        (
            "load: more weights than the model has",
            "saved.keys() == trained.keys() and",
            "saved.keys() >= trained.keys() and",
        ),
        (
            "load: shapes are not compared",
            "saved[name].shape == trained[name].shape for name in saved",
            "saved[name].dim() == trained[name].dim() for name in saved",
        ),
        (
            "load: weights stay as they are",
            "parameter.copy_(saved[name])",
            "parameter.add_(0 * saved[name])",
        ),
        (
            "load: missing weights are not looked for",
            '"missing" if not file.is_file() else',
            '"missing" if not file.name else',
        ),
        ("save: frozen weights too", "        if parameter.requires_grad\n    }", "    }"),
        (
            "put: remains of a half-written one",
            "    shutil.rmtree(partial, ignore_errors=True)\n",
            "",
        ),
        ("put: the same step twice", "        shutil.rmtree(target)\n", "        return\n"),
        (
            "put: written in place",
            'target.with_name(f".partial-{target.name}")',
            'target.with_name(f"{target.name}-partial")',
        ),
    ),
    "training/roles.py": (
        (
            "optimizer: the policy's rate for the values",
            "config.value.learning_rate or ppo.learning_rate",
            "ppo.learning_rate",
        ),
        (
            "optimizer: first decay in place of the second",
            "(0.9, ppo.adam_beta2)",
            "(ppo.adam_beta2, 0.999)",
        ),
        ("optimizer: no weight decay", '"weight_decay": ppo.weight_decay', '"weight_decay": 0.0'),
        ("optimizer: epsilon of the default", '"eps": ppo.adam_epsilon', '"eps": 1e-8'),
        (
            "optimizer: frozen parameters too",
            "for p in part.values() if p.requires_grad]",
            "for p in part.values()]",
        ),
    ),
    "training/sft.py": (
        ("mask: the prompt is learnt", "[0] * row.start + [1]", "[1] * row.start + [1]"),
        (
            "mask: the completion is not",
            "[1] * (len(row.ids) - row.start)",
            "[0] * (len(row.ids) - row.start)",
        ),
    ),
    "training/reward_model.py": (
        ("probe: margin of the rejected", "append(better - worse)", "append(worse - better)"),
        ("probe: kinds thrown together", "margins[kind].append", 'margins["all"].append'),
        (
            "probe: only the chosen may be missing",
            "if isinstance(better, Missing) or isinstance(worse, Missing):",
            "if isinstance(better, Missing):",
        ),
        (
            "pairs: length of the chosen",
            "max(len(chosen.ids), len(rejected.ids))",
            "len(chosen.ids)",
        ),
        ("pairs: sides change places", '"chosen_ids": chosen.ids,', '"chosen_ids": rejected.ids,'),
        ("order: the whole file is shuffled", "50 * batch_size):\n", "len(pairs)):\n"),
        (
            "order: lengths are mixed",
            '        stretch.sort(key=lambda pair: int(pair["length"]))\n',
            "",
        ),
        ("order: short batches come first", "        order.shuffle(batches)", "        batches"),
        (
            "order: a short batch in the middle",
            "for batch in batches + last",
            "for batch in last + batches",
        ),
        ("order: alike for every seed", "random.Random(seed)", "random.Random(0)"),
    ),
}
OWN = {
    "training/loop.py": ("tests/unit/test_loop.py",),
    "training/checkpoint.py": (
        "tests/unit/test_files.py",
        "tests/unit/test_checkpoints.py",
    ),
    "training/roles.py": ("tests/unit/test_stages.py",),
    "training/sft.py": ("tests/unit/test_stages.py",),
    "training/reward_model.py": (
        "tests/unit/test_reward_model.py",
        "tests/unit/test_stages.py",
    ),
}
MORE = (
    "tests/unit/test_restore.py",
    "tests/invariance/test_update.py",
)
