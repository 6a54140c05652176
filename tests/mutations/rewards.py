"""Mistakes in rlhf_ppo/rewards: what is made of scores, and functions of users."""

from __future__ import annotations

TABLES = {
    "rewards/combine.py": (
        (
            "sum: weights missing",
            "source.weight * normalized(source, source.name)",
            "normalized(source, source.name)",
        ),
        (
            "sum: of absolute weights",
            "source.weight * normalized",
            "abs(source.weight) * normalized",
        ),
        ("sum: the last source", "total = total + source.weight", "total = source.weight"),
        (
            "parts: as they are normalised",
            "        return normalize_scores(scores, after[name], source.normalization)",
            (
                "        parts[name] = normalize_scores(scores, after[name], "
                "source.normalization)\n        return parts[name]"
            ),
        ),
        (
            "moments: learnt in evaluation",
            "so_far.add(scores) if learn else so_far",
            "so_far.add(scores)",
        ),
        (
            "moments: of these scores alone",
            "so_far.add(scores) if learn",
            "Moments().add(scores) if learn",
        ),
        (
            "moments: of the scores before these",
            "normalize_scores(scores, after[name], source",
            "normalize_scores(scores, so_far, source",
        ),
        ("moments: those of the caller change", "after = dict(moments)", "after = moments"),
        (
            "moments: members share theirs",
            'f"{source.name}/{m.name}") for m in source.members]',
            'source.name + "/") for m in source.members]',
        ),
        (
            "ensemble: members are not normalised",
            'normalized(m, f"{source.name}/{m.name}") for',
            'parts[f"{source.name}/{m.name}"] for',
        ),
        (
            "ensemble: not normalised itself",
            "source.weight * normalized(source, source.name)",
            "source.weight * parts[source.name]",
        ),
        ("minimum: the maximum", "scores.min(dim=1).values", "scores.max(dim=1).values"),
        (
            "minimum: of what is there",
            "scores.min(dim=1).values",
            "scores.nan_to_num(float('inf')).min(dim=1).values",
        ),
        ("mean: of what is there", "return scores.mean(dim=1)\n", "return scores.nanmean(dim=1)\n"),
        ("lower: deviation of a sample", "scores.std(dim=1, unbiased=False)", "scores.std(dim=1)"),
        (
            "lower: the upper",
            "scores.mean(dim=1) - (ensemble.k",
            "scores.mean(dim=1) + (ensemble.k",
        ),
        ("lower: k missing", "(ensemble.k or 0.0) * spread", "spread"),
        ("names: without members", " + leaves(reward.sources)\n    return", "\n    return"),
        (
            "names: of the others",
            'if source.normalization != "none"]',
            'if source.normalization == "none"]',
        ),
    ),
    "rewards/failures.py": (
        (
            "rows: one source is enough",
            "table.isfinite().all(dim=1)\n    whole",
            "table.isfinite().any(dim=1)\n    whole",
        ),
        (
            "rows: a group stays if one is scored",
            "scored.view(-1, group_size).all(dim=1)",
            "scored.view(-1, group_size).any(dim=1)",
        ),
        (
            "rows: groups are not neighbours",
            "whole.repeat_interleave(group_size)",
            "whole.repeat(group_size)",
        ),
        (
            "allowed: the share itself is too much",
            "if failed <= allowed * len(table):",
            "if failed < allowed * len(table):",
        ),
        (
            "allowed: of all scores",
            "failed <= allowed * len(table)",
            "failed <= allowed * table.numel()",
        ),
        (
            "allowed: scores are counted",
            "(~table.isfinite()).any(dim=1).sum()",
            "(~table.isfinite()).sum()",
        ),
        (
            "allowed: all must be missing",
            "(~table.isfinite()).any(dim=1)",
            "(~table.isfinite()).all(dim=1)",
        ),
        ("enough: for one process", "if kept < minibatches * processes:", "if kept < minibatches:"),
        (
            "enough: one is too few",
            "if kept < minibatches * processes:",
            "if kept <= minibatches * processes:",
        ),
    ),
    "rewards/judgement.py": (
        ("words are numbers", "if isinstance(value, str | bytes):", "if isinstance(value, bytes):"),
        (
            "infinity is a score",
            "number if math.isfinite(number) else",
            "number if not math.isnan(number) else",
        ),
        ("None is 0", 'return Missing("no score (None)")', "return 0.0"),
        (
            "overflow ends the run",
            "(TypeError, ValueError, OverflowError)",
            "(TypeError, ValueError)",
        ),
        ("the whole response in one line", "self.response[:200]!r", "self.response!r"),
    ),
    "rewards/sources.py": (
        (
            "table: starts at 0",
            "torch.full((len(responses), len(self.named)), torch.nan)",
            "torch.zeros((len(responses), len(self.named)))",
        ),
        (
            "table: the last source in all columns",
            "table[row, place] = score",
            "table[row, :] = score",
        ),
        (
            "failures: of the first prompt",
            "prompts[row].where, responses[row]",
            "prompts[0].where, responses[row]",
        ),
        ("first model: the last", "models[0] if models", "models[-1] if models"),
    ),
    "rewards/function.py": (
        (
            "one by one: with the first prompt",
            "self.score([prompt], [response])[0]",
            "self.score(prompts[:1], [response])[0]",
        ),
        (
            "one by one: none is asked again",
            "            if len(responses) == 1:\n",
            "            if responses:\n",
        ),
        ("one failure is a 0", "return [Missing(str(error))]", "return [0.0]"),
        (
            "timeout: asked again one by one",
            "for _ in responses]\n        except UserCodeError as error:",
            "for _ in responses[:1]]\n        except UserCodeError as error:",
        ),
        ("timeout: counted in ms", "thread.join(seconds)", "thread.join(seconds / 1000)"),
        ("timeout: errors are nothing", "    if error is not None:\n        raise error\n", ""),
        ("timeout: holds up the end of the run", "daemon=True", "daemon=False"),
        ("check: columns are not looked for", "        self.function.check(prompts)\n", ""),
        ("check: not tried", 'self.function.call(prompts[:1], [""])', "None"),
        (
            "check: tried on all prompts",
            'self.function.call(prompts[:1], [""])',
            'self.function.call(prompts, [""])',
        ),
    ),
    "rewards/user_function.py": (
        ("columns: those of any prompt", "set.intersection(*(set", "set.union(*(set"),
        (
            "columns: named like the prompts",
            "for prompt in prompts)) - self.refused",
            "for prompt in prompts))",
        ),
        ("columns: more than it takes", "names &= self.taken", "names |= self.taken & names"),
        (
            "columns: of the first prompt for all",
            "[prompt.columns[name] for prompt in prompts] for name in sorted(names)",
            "[prompts[0].columns[name] for prompt in prompts] for name in sorted(names)",
        ),
        (
            "columns: a default makes it needed",
            "if p.default is p.empty]",
            "if p.default is not p.empty]",
        ),
        (
            "columns: keyword-only ones are not taken",
            "by_place[2:] + [p for p in parameters if p.kind is p.KEYWORD_ONLY]",
            "by_place[2:]",
        ),
        (
            "columns: every function takes any",
            "return needed, refused, {p.name for p in named}",
            "return needed, refused, None",
        ),
        (
            "check: the first row alone",
            "for prompt in prompts:\n                if name not in",
            "for prompt in prompts[:1]:\n                if name not in",
        ),
        (
            "results: too many are cut",
            "if len(results) != len(responses):",
            "if len(results) < len(responses):",
        ),
        (
            "results: a dict is a list of its keys",
            "isinstance(found, str | bytes | dict)",
            "isinstance(found, str | bytes)",
        ),
        (
            "results: sys.exit ends the run",
            "        except (Exception, SystemExit) as error:\n            raise UserCodeError",
            "        except Exception as error:\n            raise UserCodeError",
        ),
        ("target: cut at the first colon", 'target.rpartition(":")', 'target.partition(":")'),
        (
            "signature: one argument is enough",
            "len(by_place) < 2 and not any_place",
            "len(by_place) < 1 and not any_place",
        ),
        ("signature: a coroutine is a function", " or inspect.iscoroutinefunction(function)", ""),
        (
            "signature: *args are not enough",
            "len(by_place) < 2 and not any_place",
            "len(by_place) < 2",
        ),
        (
            "tell: the first line of the user's file",
            "frame = (theirs or outside)[-1]",
            "frame = (theirs or outside)[0]",
        ),
        (
            "tell: the library's line",
            "frame = (theirs or outside)[-1]",
            "frame = (outside or theirs)[-1]",
        ),
        (
            "load: two files of one name are one",
            "{path.stem}_{abs(hash(str(path.resolve())))}",
            "{path.stem}",
        ),
    ),
}
OWN = {
    "rewards/combine.py": ("tests/unit/test_weighing.py",),
    "rewards/failures.py": ("tests/unit/test_weighing.py",),
    "rewards/judgement.py": (
        "tests/unit/test_reward_function.py",
        "tests/unit/test_reward_calls.py",
    ),
    "rewards/sources.py": ("tests/unit/test_reward_calls.py",),
    "rewards/function.py": (
        "tests/unit/test_reward_function.py",
        "tests/unit/test_reward_calls.py",
    ),
    "rewards/user_function.py": (
        "tests/unit/test_reward_function.py",
        "tests/unit/test_reward_calls.py",
    ),
}
MORE = ("tests/unit/test_gold.py", "tests/unit/test_judge.py", "tests/unit/test_reward_source.py")
