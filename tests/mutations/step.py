"""Mistakes in rlhf_ppo/training: one PPO step and its batch."""

from __future__ import annotations

TABLES = {
    "training/ppo.py": (
        (
            "step: copies of a prompt are no neighbours",
            "for row in rows for _ in range(config.rollout.samples_per_prompt)]",
            "for _ in range(config.rollout.samples_per_prompt) for row in rows]",
        ),
        (
            "step: prompts of the step before",
            "batch_size, step, config.seed)",
            "batch_size, step - 1 or 1, config.seed)",
        ),
        ("step: moments of the sources never learnt", "learn=True", "learn=False"),
        (
            "step: moments of the sources forgotten",
            "sources=weighed.moments",
            "sources=progress.sources",
        ),
        (
            "step: moments of the scores forgotten",
            "weighed.scores, rollout, progress.scores)",
            "weighed.scores, rollout, Moments())",
        ),
        (
            "step: beta of the start",
            "make_train_batch(config, rollout, scores, progress.beta)",
            "make_train_batch(config, rollout, scores, config.kl.beta)",
        ),
        (
            "step: loss by the beta of the start",
            "loss_settings(config, progress.beta, progress.penalty)",
            "loss_settings(config, config.kl.beta, progress.penalty)",
        ),
        (
            "step: penalty of the start",
            "loss_settings(config, progress.beta, progress.penalty)",
            "loss_settings(config, progress.beta, config.ppo.penalty)",
        ),
        (
            "step: dropped responses count as episodes",
            "episodes=progress.episodes + len(prompts)",
            "episodes=progress.episodes + len(asked)",
        ),
        ("step: tokens of this step alone", "tokens=progress.tokens + tokens", "tokens=tokens"),
        (
            "step: failures instead of dropped responses",
            "failures, len(asked) - len(prompts))",
            "failures, len(failures))",
        ),
        ("step: the next beta is shown", '"kl/beta": progress.beta', '"kl/beta": after.beta'),
        (
            "step: prompts of responses that were dropped",
            "for row in kept.tolist()]",
            "for row in range(len(kept))]",
        ),
        (
            "step: learning rate of the peak is shown",
            "config.ppo.learning_rate * factor",
            "config.ppo.learning_rate",
        ),
        (
            "rate: warm-up ends one step late",
            "if step <= ppo.warmup_steps",
            "if step <= ppo.warmup_steps + 1",
        ),
        (
            "rate: warm-up ends one step early",
            "if step <= ppo.warmup_steps",
            "if step < ppo.warmup_steps",
        ),
        (
            "rate: the first step learns nothing",
            "return step / ppo.warmup_steps",
            "return (step - 1) / ppo.warmup_steps",
        ),
        ("rate: 0 in the last step", "(ppo.steps - step + 1)", "(ppo.steps - step)"),
        ("rate: falls as if there were no warm-up", "ppo.steps - ppo.warmup_steps)", "ppo.steps)"),
        (
            "rate: lowered once for all rollbacks",
            "config.guard.learning_rate_factor**again",
            "config.guard.learning_rate_factor ** bool(again)",
        ),
        (
            "rate: compounds from step to step",
            'group["lr"] = group["peak"] * factor',
            'group["lr"] = group["lr"] * factor',
        ),
        ("carry on: a KL that is not finite steers", "if math.isfinite(kl):", "if True:"),
        (
            "carry on: moments that are not finite are kept",
            "scores=moments if math.isfinite(score) else progress.scores",
            "scores=moments",
        ),
        (
            "carry on: error of the controller forgotten",
            "kl_error=controller.error",
            "kl_error=progress.kl_error",
        ),
        (
            "carry on: beta of the start",
            "config.kl, progress.beta, progress",
            "config.kl, config.kl.beta, progress",
        ),
        (
            "carry on: so many responses as prompts",
            "controller.update(kl, responses)",
            "controller.update(kl, config.rollout.batch_size)",
        ),
        (
            "carry on: the guard sees skips of the update alone",
            "deviation, stats.skipped_in_row)",
            "deviation, stats.skipped)",
        ),
        (
            "warm-up: one step too long",
            "step > config.ppo.value_warmup_steps or",
            "step > config.ppo.value_warmup_steps + 1 or",
        ),
        (
            "warm-up: one step too short",
            "step > config.ppo.value_warmup_steps or",
            "step >= config.ppo.value_warmup_steps or",
        ),
        ("warm-up: of values that nobody learns", " or not learns_values(config),", ","),
        (
            "skips: those before the step forgotten",
            "skipped_in_row=progress.watch.skipped",
            "skipped_in_row=0",
        ),
        (
            "noise: of this process's prompts alone",
            "        [item.prompt.row for item in prompts],\n        config.rollout",
            "        [item.prompt.row for item in mine] * 9,\n        config.rollout",
        ),
        ("noise: the first process's share", "mine, noise[share]", "mine, noise[: len(mine)]"),
        ("noise: alike after a rollback", '_purpose("rollout", again)', '_purpose("rollout", 0)'),
        (
            "shuffle: alike in every step",
            '_purpose("minibatches", again), step)',
            '_purpose("minibatches", again))',
        ),
        ("shuffle: alike after a rollback", '_purpose("minibatches", again)', '"minibatches"'),
        (
            "text: minibatches left out of the count",
            "(step - 1) * config.ppo.epochs * config.ppo.minibatches",
            "(step - 1) * config.ppo.epochs",
        ),
        ("text: alike after a rollback", '_purpose("ptx", again)', '"ptx"'),
        (
            "penalty: adapted from the start's",
            "adapt_penalty(penalty, kl",
            "adapt_penalty(run.config.ppo.penalty, kl",
        ),
        ("groups: singles are compared", "samples_per_prompt > 1:", "samples_per_prompt > 2:"),
        (
            "clock: phases add up",
            "self.laps[name] = now - self.last\n        self.last = now",
            "self.laps[name] = now - self.last",
        ),
    ),
    "training/train_batch.py": (
        ("scores: first moments never taken", "moments.count == 0 or reward", "reward"),
        ("scores: moments always run", 'or reward.normalization_from == "running"', "or True"),
        (
            "scores: normalised by what came before",
            (
                "        moments = moments.add(scores)\n    scores = "
                "normalize_scores(scores, moments,"
            ),
            (
                "        scores, moments = normalize_scores(scores, moments, "
                "reward.normalization), moments.add(scores)\n    scores = "
                "normalize_scores(scores, moments,"
            ),
        ),
        (
            "scores: clipped first",
            (
                "normalize_scores(scores, moments, reward.normalization)\n    scores = "
                "clip_scores(scores, reward.clip_range)"
            ),
            (
                "normalize_scores(clip_scores(scores, reward.clip_range), moments, "
                "reward.normalization)"
            ),
        ),
        ("scores: never clipped", "    scores = clip_scores(scores, reward.clip_range)\n", ""),
        ("scores: what is cut keeps its score", "reward.missing_stop_score,\n", "None,\n"),
        ("scores: no fine for what is cut", "reward.missing_stop_penalty,\n", "0.0,\n"),
        (
            "scores: free tokens are paid for",
            "reward.length_penalty, reward.length_free_tokens",
            "reward.length_penalty, 0",
        ),
        ("batch: KL in reward and loss", 'beta if config.kl.place == "reward" else 0.0', "beta"),
        (
            "batch: KL of the sampler",
            "scores, rollout.logprobs, rollout.ref_logprobs, mask",
            "scores, rollout.responses.sampling_logprobs, rollout.ref_logprobs, mask",
        ),
        ("batch: always by k1", "in_reward, config.kl.estimator", 'in_reward, "k1"'),
        ("batch: whitened rewards lose their mean", "shift_mean=False", "shift_mean=True"),
        ("batch: rewards are never whitened", "if config.reward.whiten:", "if False:"),
        ("batch: groups are whitened", "settings.kind not in GROUPED", "True"),
        (
            "batch: whitened though told not to",
            "wanted or (wanted is None and",
            "wanted or (True and",
        ),
        (
            "batch: never whitened unless told",
            "wanted or (wanted is None and settings.kind not in GROUPED)",
            "wanted",
        ),
        (
            "batch: returns of whitened advantages",
            "returns=returns",
            "returns=advantages + rollout.values",
        ),
        (
            "batch: old policy is the sampler",
            "logprobs=rollout.logprobs,",
            "logprobs=rollout.responses.sampling_logprobs,",
        ),
        (
            "batch: reference is the policy",
            "ref_logprobs=rollout.ref_logprobs",
            "ref_logprobs=rollout.logprobs",
        ),
        (
            "advantages: gamma and lambda change places",
            "gamma=advantage.gamma,",
            "gamma=advantage.lam,",
        ),
        (
            "advantages: group of all",
            "group_size=config.rollout.samples_per_prompt",
            "group_size=config.rollout.batch_size",
        ),
        (
            "loss: beta of the start",
            'beta if config.kl.place == "loss" else 0.0',
            'config.kl.beta if config.kl.place == "loss" else 0.0',
        ),
        ("loss: KL left out", 'beta if config.kl.place == "loss" else 0.0', "0.0"),
        ("loss: penalty of the start", "penalty=penalty", "penalty=ppo.penalty"),
        (
            "loss: values that nobody needs",
            "config.value.coefficient if learns_values(config) else 0.0",
            "config.value.coefficient",
        ),
        ("values: the other way round", "kind not in WITHOUT_VALUES", "kind in WITHOUT_VALUES"),
        ("groups: reinforce_pp stands alone", '(*GROUPED, "reinforce_pp")', "GROUPED"),
        ("groups: every kind is compared", " if config.advantage.kind in compares else 1", ""),
        (
            "controller: adaptive is never used",
            (
                'case "adaptive":\n            return AdaptiveController(beta, kl.target, '
                "kl.horizon, error)"
            ),
            'case "adaptive":\n            return FixedController(beta, error)',
        ),
        (
            "controller: beta of the start",
            "AdaptiveController(beta,",
            "AdaptiveController(kl.beta,",
        ),
        ("controller: error of the step before forgotten", "kl.gain, error)", "kl.gain)"),
    ),
}
OWN = {
    "training/ppo.py": (
        "tests/unit/test_plan.py",
        "tests/unit/test_ppo_step.py",
    ),
    "training/train_batch.py": (
        "tests/unit/test_train_batch.py",
        "tests/unit/test_plan.py",
    ),
}
MORE = (
    "tests/invariance/test_ptx.py",
    "tests/invariance/test_ten_invariants.py",
)
