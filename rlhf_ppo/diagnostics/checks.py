"""Every finding that can be made: when, why there, and what to try. docs/debugging.md shows it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rlhf_ppo.diagnostics import signs
from rlhf_ppo.diagnostics.signs import LONG, SHORT, START, WINDOW, Seen

Severity = Literal["problem", "warning"]
WEAK = 0.6  # accuracy of a reward model below which a finding is made


@dataclass(frozen=True)
class Check:
    """A finding that can be made, and when."""

    name: str
    severity: Severity
    when: str  # it is made, for docs/debugging.md
    why: str  # there and not elsewhere
    remedy: str
    look: Callable[[Seen], str | None] | None  # None: only the evaluation can show it


CHECKS = (
    Check(
        "kl_runaway",
        "problem",
        f"mean `kl/ref` of {SHORT} steps above {signs.KL_A_RESPONSE:.0f} nats a response and "
        f"{signs.KL_A_TOKEN:.0f} nat a token",
        "healthy runs of ours stayed below .4 nats a token; at 1 each token is e times as likely "
        "as under the reference, and the reward model judges texts that it never learnt from",
        "Lower ppo.learning_rate or ppo.epochs, raise kl.beta, or stop such updates by "
        "ppo.target_kl; guard.max_kl ends or rolls back the run.",
        signs.kl_runaway,
    ),
    Check(
        "ratio_not_one",
        "problem",
        f"`policy/ratio_first_error` above {signs.RATIO:g} and above 3 x `policy/sampler_gap`",
        "policy and collection policy are the same then, so only rounding is left: 1e-5 in "
        "float32; in half precision the sampler's gap shows how large it is",
        "This is a fault of the code or of a model that is not the same twice (dropout, a custom "
        "layer with state). Try hardware.mixed_precision: no, and please report it.",
        signs.ratio,
    ),
    Check(
        "sampler_mismatch",
        "problem",
        f"`policy/sampler_gap` above {signs.SAMPLER_GAP:g} nats",
        "rounding is 1e-5 in float32 and about .1 in bf16; half a nat means that other "
        "probabilities were sampled from than are trained",
        "Try hardware.mixed_precision: no and policy.dtype: float32; if the gap stays, the model's "
        "cached generation differs from its full forward pass, please report it.",
        signs.sampler,
    ),
    Check(
        "entropy_collapse",
        "warning",
        f"mean `policy/entropy` of {SHORT} steps below {signs.ENTROPY_LEFT:.0%} of the first "
        f"{START} steps'",
        "healthy runs of ours kept .47 or more; below that all samples look alike and "
        "nothing new is tried. Expected where every prompt has one right answer",
        "Raise kl.beta or ppo.entropy_coefficient, lower ppo.learning_rate, or set "
        "ppo.clip_range_high above ppo.clip_range.",
        signs.entropy_collapse,
    ),
    Check(
        "entropy_rise",
        "warning",
        f"mean `policy/entropy` of {SHORT} steps above {signs.ENTROPY_RISE:g} x the first {START} "
        "steps', by at least .1 nats",
        "tuning narrows a policy; in our runs a rise meant that the value loss was breaking a "
        "shared trunk, or that the updates were too large",
        "Lower value.coefficient (or set value.model: policy), ppo.learning_rate or "
        "ppo.entropy_coefficient.",
        signs.entropy_rise,
    ),
    Check(
        "values_not_learnt",
        "warning",
        f"mean `value/explained_variance` of {LONG} steps below {signs.EXPLAINED:g}, from step "
        f"{signs.EXPLAINED_FROM} on",
        "a value model of its own had .08 by then and .21 at the end, the embedded default's "
        "shared head 0; PPO works without it, as the embedded default does, but learns slower on "
        "long responses",
        "Set value.model: policy (or adapter, with lora), raise value.learning_rate, or "
        "ppo.value_warmup_steps. If the score rises well all the same, advantage.kind: "
        "reinforce_pp saves the value function.",
        signs.values,
    ),
    Check(
        "clip_fraction_high",
        "warning",
        f"mean `policy/clip_fraction` of {SHORT} steps above {signs.CLIPPED:g}",
        "healthy runs of ours had .001 to .03; what is clipped learns nothing more from this "
        "rollout",
        "Lower ppo.learning_rate, ppo.epochs or ppo.minibatches, or set ppo.target_kl.",
        signs.clip_high,
    ),
    Check(
        "clip_fraction_zero",
        "warning",
        f"`policy/clip_fraction` 0 in {WINDOW} steps with several optimizer steps each",
        "the ratio never leaves the clip range: the updates are tiny, and the run could go faster",
        "Raise ppo.learning_rate, ppo.epochs or ppo.minibatches.",
        signs.clip_zero,
    ),
    Check(
        "length_drift",
        "warning",
        f"mean `response/length` of {SHORT} steps beyond a factor {signs.LENGTH:g} of the first "
        f"{START} steps'",
        "reward models often prefer long answers; healthy runs of ours moved by a factor 1.5 at "
        "most",
        "Look at the samples. If length is what pays, set reward.length_penalty or repair the "
        "reward; if responses break off, reward.missing_stop_penalty.",
        signs.length,
    ),
    Check(
        "never_stops",
        "warning",
        f"mean `response/stopped` of {SHORT} steps below {signs.STOPPED:g}",
        "a cut response is judged for an end that the policy did not choose",
        "Raise rollout.max_new_tokens, check rollout.stop_tokens against the chat template, or "
        "set reward.missing_stop_penalty.",
        signs.stops,
    ),
    Check(
        "identical_samples",
        "warning",
        f"mean `group/identical` of {SHORT} steps above {signs.IDENTICAL:g}",
        "samples that are all alike cannot be compared, and cost as much as others",
        "Raise rollout.temperature or kl.beta, or take fewer rollout.samples_per_prompt.",
        signs.identical,
    ),
    Check(
        "equal_scores",
        "warning",
        f"mean `group/equal_scores` of {SHORT} steps above {signs.IDENTICAL:g}, texts differing",
        "rloo and grpo learn from differences within a group only",
        "Take prompts of medium difficulty, raise rollout.samples_per_prompt, or give a reward "
        "with more levels.",
        signs.equal_scores,
    ),
    Check(
        "skipped_updates",
        "warning",
        "`update/skipped` above 0",
        "every skip has a cause; fp16 alone has a few at its start, while its loss scale adapts",
        "See failures/ in the run's folder; lower ppo.learning_rate, or use bf16 or float32 "
        "(hardware.mixed_precision).",
        signs.skipped,
    ),
    Check(
        "dropped_rewards",
        "warning",
        "`reward/dropped` above 0",
        "what is left out is seldom left out by chance: the longest responses, or the oddest",
        "`reward/NAME/failed` says which source; see docs/rewards.md for its limits (max_tokens, "
        "timeout, retries).",
        signs.dropped,
    ),
    Check(
        "gradient_explosion",
        "warning",
        f"`grad_norm` above {signs.SPIKE:.0f} x the median of the steps before ({WINDOW} to 49)",
        "healthy runs of ours stayed below 4 x; ppo.max_grad_norm scales such a step down, but its "
        "direction is noise",
        "Lower ppo.learning_rate or value.coefficient, keep ppo.max_grad_norm, set value.clip_range"
        " or reward.clip_range.",
        signs.gradient,
    ),
    Check(
        "reward_hacking",
        "problem",
        f"mean `gold/mean` of {WINDOW} steps below the best such mean by more than "
        f"{signs.ERRORS:.0f} standard errors and {signs.GOLD_FALL:.0%} of what had been gained, "
        "`score/mean` not below its then; or, at the end, the paired changes from the reference: "
        "score significantly up, gold significantly down",
        "the policy is paid for what the reward says, and gold is what was meant",
        "Raise kl.beta, take checkpoint.save: best or fewer ppo.steps, or train the reward model "
        "on the policy's own answers; evaluation/samples.jsonl shows what is exploited.",
        signs.hacking,
    ),
    Check(
        "score_fell",
        "problem",
        f"mean `score/mean` of {WINDOW} steps below the best such mean by {signs.SCORE_FALL:g} "
        "x `score/std` there",
        "PPO climbs; healthy runs of ours never lost more than .2 of a deviation",
        "Lower ppo.learning_rate or value.coefficient; guard.max_score_drop ends or rolls back "
        "the run, checkpoint.save: best keeps the best policy.",
        signs.score_fell,
    ),
    Check(
        "reward_model_coin",
        "problem",
        "when the reward model is trained and at the end: the interval of its accuracy on "
        "held-out pairs reaches .5 or less",
        "PPO makes likelier what the reward model prefers; of one that may be guessing nothing "
        "follows, however much the score rises",
        "Train the reward model on more or cleaner pairs, from a better reward_model.init_from, or "
        "longer; with few data.heldout_preferences give more of them, the interval is wide.",
        None,
    ),
    Check(
        "reward_model_weak",
        "warning",
        f"as before: the accuracy is below {WEAK:g}, but not a coin's",
        "people agree with one another on about .7 of such pairs (Ouyang et al. 2022: .73), "
        "and reward models with them about as often",
        "Read the pairs that it gets wrong: wrong labels, or too little data. Take a larger "
        "reward_model.init_from, more epochs, and hold the policy closer by kl.beta.",
        None,
    ),
    Check(
        "reward_model_wrong_way",
        "warning",
        "as before: for a kind of error its accuracy is below .5, by the exact sign test at 5 % "
        "over all kinds together",
        "the policy is paid for this very error",
        "Add pairs that differ in this alone, look for labels that disagree, or add a reward "
        "source that sees it (docs/guide.md, reward model).",
        None,
    ),
    Check(
        "no_gain",
        "warning",
        "at the end: the interval of `win_rate.score` reaches .5 or less",
        "the policy cannot be told from the reference by what it was trained on",
        "Take more ppo.steps or a higher ppo.learning_rate, lower kl.beta, and see that "
        "`score/mean` rises in training.",
        None,
    ),
    Check(
        "parts_exploited",
        "warning",
        "at the end: `exploited` of the summary names parts of the gold score that got "
        "significantly worse while the score rose",
        "a mean can rise while something in it is given up",
        "Look at these answers in evaluation/samples.jsonl; raise kl.beta, or add preferences or "
        "a reward source that sees this part.",
        None,
    ),
)
