"""The mistakes that `mutants.py` plants in rlhf_ppo/algorithm: each would pass a quick review.

`old` stands exactly once in its file. None of them is equivalent to the code it replaces.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One mistake: replace `old` by `new` in rlhf_ppo/algorithm/<file>.py."""

    file: str
    name: str
    old: str
    new: str


ADVANTAGES = (
    ("discounted sum: factor missing", "x[:, t] + factor * following", "x[:, t] + following"),
    ("discounted sum: forward in time", "reversed(range(x.shape[1]))", "range(x.shape[1])"),
    ("discounted sum: padding counts", "    x = zero_padding(x, mask)\n", ""),
    ("td: padding's V counts", "    values = zero_padding(values, mask)\n", ""),
    ("td: V after the end is the last V", "torch.zeros_like(values[:, :1])", "values[:, -1:]"),
    ("td: V not shifted", "rewards + gamma * next_values -", "rewards + gamma * values -"),
    ("td: discount missing", "rewards + gamma * next_values -", "rewards + next_values -"),
    ("td: sign of V", "rewards + gamma * next_values -", "rewards + gamma * next_values +"),
    (
        "td: mask dropped",
        "zero_padding(rewards + gamma * next_values - values, mask)",
        "rewards + gamma * next_values - values",
    ),
    (
        "reward to go: discount missing",
        "discounted_sum(rewards, mask, gamma",
        "discounted_sum(rewards, mask, 1.0",
    ),
    ("monte carlo: sign", "zero_padding(returns - values", "zero_padding(values - returns"),
    ("monte carlo: mask dropped", "zero_padding(returns - values, mask)", "returns - values"),
    (
        "one step: returns without V",
        "gamma)\n    return advantages, zero_padding(advantages + values, mask)",
        "gamma)\n    return advantages, advantages",
    ),
    ("n step: one step too many", "range(min(n, width))", "range(min(n + 1, width))"),
    ("n step: one step too few", "range(min(n, width))", "range(min(n - 1, width))"),
    ("n step: discount missing", "gamma**k * delta[:, k:]", "delta[:, k:]"),
    ("n step: discount one too high", "gamma**k * delta[:, k:]", "gamma ** (k + 1) * delta[:, k:]"),
    (
        "n step: looks back",
        ": width - k] += gamma**k * delta[:, k:",
        "k:] += gamma**k * delta[:, : width - k",
    ),
    ("gae: gamma missing in the sum", "mask, gamma * lam)", "mask, lam)"),
    ("gae: lambda missing", "mask, gamma * lam)", "mask, gamma)"),
    ("gae: sums rewards, not TD errors", "discounted_sum(delta", "discounted_sum(rewards"),
    (
        "gae: returns without V",
        "lam)\n    return advantages, zero_padding(advantages + values, mask)",
        "lam)\n    return advantages, advantages",
    ),
    ("decoupled: advantages by the returns' lambda", ", gamma, lam", ", gamma, value_lam"),
    ("decoupled: returns by the advantages' lambda", ", gamma, value_lam", ", gamma, lam"),
    ("lambda by length: alpha upside down", "1 / (alpha * lengths)", "alpha / lengths"),
    (
        "lambda by length: may be negative",
        "(1 - 1 / (alpha * lengths)).clamp(min=0",
        "1 - 1 / (alpha * lengths",
    ),
    ("lambda by length: padded width", "mask.sum(dim=1", "torch.ones_like(mask).sum(dim=1"),
    ("rloo: mean over the whole group", "/ (group_size - 1)", "/ group_size"),
    (
        "rloo: own score among the others",
        "(groups.sum(dim=1, keepdim=True) - groups",
        "groups.sum(dim=1, keepdim=True",
    ),
    ("rloo: sign", "(groups - others)", "(others - groups)"),
    ("grpo: biased deviation", "std(dim=1, keepdim=True", "std(dim=1, keepdim=True, correction=0"),
    ("grpo: deviation of the batch", "groups.std(dim=1, keepdim=True)", "groups.std()"),
    ("grpo: mean of the batch", "groups.mean(dim=1, keepdim=True)", "groups.mean()"),
    ("grpo: floor of the deviation missing", "keepdim=True) + 1e-6)", "keepdim=True))"),
    (
        "grpo: rounding of equal scores is an opinion",
        "    centred = torch.where(equal, torch.zeros_like(centred), centred)\n",
        "",
    ),
    ("grpo: two equals are enough", " == groups[:, :1]).all", "[:, 1:] == groups[:, :1]).any"),
    ("grpo: scale turned round", "if scale:", "if not scale:"),
    ("reinforce++: no baseline", "returns - means.reshape(-1, 1)", "returns"),
    ("reinforce++: baseline added", "returns - means.reshape(", "returns + means.reshape("),
    ("reinforce++: groups of two ignored", "if group_size > 1:", "if group_size > 2:"),
    (
        "reinforce++: padding in the baseline",
        "zero_padding(rewards, mask).sum(dim=1), ",
        "rewards.sum(dim=1), ",
    ),
    ("reinforce++: mean over prompts", "totals.mean(dim=1, keepdim", "totals.mean(dim=0, keepdim"),
    ("reinforce++: not whitened", "whiten(returns, mask)", "zero_padding(returns, mask)"),
    (
        "estimate: padding in the totals",
        "zero_padding(rewards, mask).sum(dim=1)\n    match",
        "rewards.sum(dim=1)\n    match",
    ),
    ("estimate: lambda by length only for the policy", "value_lam = lam", "value_lam = s.lam"),
    ("estimate: a value lambda of 0 is none", "if s.value_lam is None", "if not s.value_lam"),
    ("estimate: grpo is always scaled", ", s.group_size, s.scale_groups", ", s.group_size"),
    (
        "groups: neighbours torn apart",
        "scores.view(-1, group_size)",
        "scores.view(group_size, -1).T",
    ),
    ("groups: of one are let through", "group_size < 2 or", "group_size < 1 or"),
    ("each token: shared out by length", ".expand(mask.shape", " / mask.sum(dim=1, keepdim=True"),
    (
        "each token: padding too",
        "zero_padding(advantages[:, None].expand(mask.shape), mask",
        "advantages[:, None].expand(mask.shape",
    ),
)

KL = (
    (
        "ratio: upside down",
        "new_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).",
        "logprobs - new_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).",
    ),
    ("ratio: may overflow", "logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).", "logprobs)."),
    ("estimate: reference - policy", "logprobs - ref_logprobs", "ref_logprobs - logprobs"),
    ("k2: half missing", "log_ratio**2 / 2", "log_ratio**2"),
    ("k3: sign", "negative.expm1() - negative", "negative.expm1() + negative"),
    ("k3: of the other direction", "(-log_ratio).clamp", "log_ratio.clamp"),
    ("k3: digits lost", "negative.expm1() - negative", "negative.exp() - 1 - negative"),
    ("k3: may overflow", "(-log_ratio).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)", "(-log_ratio)"),
    ("kl of update: rho missing", ".exp() * log_ratio - log_ratio.expm1", " - log_ratio.expm1"),
    ("kl of update: sign", "log_ratio - log_ratio.expm1(", "log_ratio + log_ratio.expm1("),
    ("kl of update: k3", ".exp() * log_ratio - log_ratio.expm1()", ".expm1() - log_ratio"),
    (
        "kl of update: may overflow",
        "= (new_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)",
        "= new_logprobs - logprobs",
    ),
    ("kl loss: k2 through rho too", "ratio = ratio.detach()", "pass"),
    ("kl loss: no gradient through any rho", 'if estimator == "k2":', "if estimator:"),
    ("kl loss: rho missing", "ratio * estimate_kl(new_logprobs", "estimate_kl(new_logprobs"),
    ("kl loss: of the old policy", "* estimate_kl(new_logprobs", "* estimate_kl(logprobs"),
    ("best of n: sign", "math.log(n) - (n - 1) / n", "math.log(n) + (n - 1) / n"),
    ("penalty: wrong way", "return penalty / 2", "return penalty * 2"),
    ("penalty: no dead zone below", "kl < target / 1.5", "kl < target"),
    ("penalty: no dead zone above", "kl > target * 1.5", "kl > target"),
    ("adaptive: wrong way", "kl / self.target - 1, -0.2", "1 - kl / self.target, -0.2"),
    (
        "adaptive: upper clip missing",
        "min(max(kl / self.target - 1, -0.2), 0",
        "max(kl / self.target - 1, -0",
    ),
    ("adaptive: lower clip missing", "max(kl / self.target - 1, -0.2)", "kl / self.target - 1"),
    ("adaptive: episodes missing", "1 + error * episodes / self.", "1 + error / self."),
    ("target: wrong way", "change = error * episodes", "change = -error * episodes"),
    ("target: damping turned round", "(error - self.error)", "(self.error - error)"),
    ("target: answers the error, not its change", "(error - self.error)", "error"),
    ("target: gain missing", "self.gain * (error", "(error"),
    ("target: forgets its error", "math.exp(change), error=error", "math.exp(change)"),
    ("target: upper clip missing", "        error = min(error, 1.0)\n", ""),
    ("target: lower clip at e^-2", "math.exp(-1.0)))", "math.exp(-2.0)))"),
    ("target: linear, not exponential", "self.beta * math.exp(change)", "self.beta * (1 + change)"),
)

LOSSES = (
    ("policy gradient: sign", "-new_logprobs * advantages", "new_logprobs * advantages"),
    ("surrogate: sign", "return -probability_ratio(", "return probability_ratio("),
    (
        "surrogate: ratio upside down",
        "-probability_ratio(new_logprobs, logprobs",
        "-probability_ratio(logprobs, new_logprobs",
    ),
    ("kl penalty: of the other direction", "logprobs, new_logprobs", "new_logprobs, logprobs"),
    ("kl penalty: by k1", 'logprobs, new_logprobs, "k3")', 'logprobs, new_logprobs, "k1")'),
    ("kl penalty: sign", "+ penalty * moved", "- penalty * moved"),
    ("kl penalty: weight missing", "+ penalty * moved", "+ moved"),
    ("clip: sides swapped", "1 - clip_range, 1 + high", "1 - high, 1 + clip_range"),
    ("clip: lower side missing", "clamp(1 - clip_range, 1 + high)", "clamp(max=1 + high)"),
    ("clip: upper side missing", "clamp(1 - clip_range, 1 + high", "clamp(min=1 - clip_range"),
    ("clip: clip-higher ignored", " if clip_range_high is None else clip_range_high", ""),
    ("clip: optimistic", "torch.maximum(-ratio", "torch.minimum(-ratio"),
    (
        "clip: always clipped",
        "torch.maximum(-ratio * advantages, -clipped * advantages)",
        "-clipped * advantages",
    ),
    ("clip: ratio detached", ", logprobs)\n    high", ", logprobs).detach()\n    high"),
    ("dual clip: of good tokens", "advantages < 0, ", "advantages > 0, "),
    ("dual clip: a floor", "torch.minimum(loss, -dual_clip", "torch.maximum(loss, -dual_clip"),
    ("dual clip: at a ratio of 1", "-dual_clip * advantages)", "-advantages)"),
    ("value: half missing", "plain = 0.5 * (", "plain = ("),
    ("value: half missing in the clipped one", "0.5 * (near - returns)", "(near - returns)"),
    ("value: smaller of the two", "torch.maximum(plain", "torch.minimum(plain"),
    (
        "value: clipped about the returns",
        "clamp(values - clip_range, values + clip_range)",
        "clamp(returns - clip_range, returns + clip_range)",
    ),
    ("value: clipped on one side", "clamp(values - clip_range, values", "clamp(None, values"),
    (
        "value: clipped by a rounded difference",
        "new_values.clamp(values - clip_range, values + clip_range)",
        "values + (new_values - values).clamp(-clip_range, clip_range)",
    ),
    ("value: old and target swapped", "new_values, values, returns", "new_values, returns, values"),
    ("weights: token by rows", "lengths.sum().clamp(min=1)", "len(mask)"),
    ("weights: token by padded size", "lengths.sum().clamp(min=1)", "mask.numel()"),
    ("weights: sequence not over rows", ".clamp(min=1) / len(mask)", ".clamp(min=1)"),
    ("weights: fixed by padded width", "len(mask) * fixed_length", "len(mask) * mask.shape[1]"),
    ("weights: fixed not over rows", "(len(mask) * fixed_length)", "fixed_length"),
    ("loss: padding of the new logprobs", "kept(outputs.logprobs), kept", "outputs.logprobs, kept"),
    ("loss: padding of the new values", "kept(outputs.values)\n", "outputs.values\n"),
    ("loss: padding of the advantages", "kept(batch.advantages)", "batch.advantages"),
    ("loss: padding of the returns", "kept(batch.returns)", "batch.returns"),
    ("loss: padding of the reference", "kept(batch.ref_logprobs)", "batch.ref_logprobs"),
    ("loss: padding of the entropy", "kept(outputs.entropy)", "outputs.entropy"),
    ("loss: value coefficient missing", "settings.value_coefficient * value", "value"),
    ("loss: value sign", "+ settings.value_coefficient", "- settings.value_coefficient"),
    ("loss: policy detached", "loss = policy + settings", "loss = policy.detach() + settings"),
    ("loss: value detached", "value_coefficient * value", "value_coefficient * value.detach()"),
    ("loss: entropy sign", "- settings.entropy_coefficient", "+ settings.entropy_coefficient"),
    ("loss: entropy coefficient missing", "settings.entropy_coefficient * kept", "kept"),
    ("loss: entropy detached", "kept(outputs.entropy)", "kept(outputs.entropy.detach())"),
    ("loss: kl sign", "loss + settings.kl_coefficient", "loss - settings.kl_coefficient"),
    ("loss: kl coefficient missing", "settings.kl_coefficient * kl", "kl"),
    ("loss: kl of the old policy", "new_logprobs, logprobs, kept", "logprobs, logprobs, kept"),
    ("loss: kl to the old policy", "kept(batch.ref_logprobs)", "logprobs"),
    ("flags: only what the first clip raised", "(policy != unclipped)", "(policy > unclipped)"),
    ("flags: of every objective", " & mask & clips", " & mask"),
    ("flags: of every value", "value > 0.5 *", "value >= 0.5 *"),
    ("flags: with gradient", "with torch.no_grad():", "if True:"),
)

MASKED = (
    ("padding multiplied away", "torch.where(mask, x, torch.zeros_like(x))", "x * mask"),
    ("padding kept", "torch.where(mask, x, torch.zeros_like(x))", "torch.where(mask, x, x)"),
    ("sum without mask", "zero_padding(x, mask).sum()", "x.sum()"),
    ("mean over the padding", "mask.sum().clamp(min=1)", "mask.numel()"),
    ("mean of nothing", "mask.sum().clamp(min=1)", "mask.sum()"),
    ("variance about 0", "(x - masked_mean(x, mask)) ** 2", "x**2"),
    ("whiten: root missing", ".rsqrt(masked_variance(wide,", ".reciprocal(masked_variance(wide,"),
    ("whiten: floor missing", "masked_variance(wide, mask) + 1e-8", "masked_variance(wide, mask)"),
    (
        "whiten: floor outside the root",
        "torch.rsqrt(masked_variance(wide, mask) + 1e-8",
        "(masked_variance(wide, mask).sqrt() + 1e-8).reciprocal(",
    ),
    ("whiten: mean not taken off", "scaled = (wide - mean)", "scaled = wide"),
    ("whiten: mean never given back", "scaled if shift_mean else scaled + mean", "scaled"),
    ("whiten: mean kept by default", "shift_mean: bool = True", "shift_mean: bool = False"),
    (
        "whiten: padding whitened too",
        "zero_padding(scaled if shift_mean else scaled + mean, mask)",
        "scaled if shift_mean else scaled + mean",
    ),
    ("explained: of the values", "masked_variance(returns - values", "masked_variance(values"),
    ("explained: unexplained", "1 - residual / variance", "residual / variance"),
    ("last token: the first", "mask.flip(1).cumsum(dim=1).flip(1)", "mask.cumsum(dim=1)"),
    ("last token: the one before", "reversed_count == 1", "reversed_count == 2"),
)

REWARDS = (
    ("moments: unbiased", "max(self.count, 1)", "max(self.count - 1, 1)"),
    (
        "moments: root missing",
        "math.sqrt(self.squares / max(self.count, 1)",
        "self.squares / max(self.count, 1",
    ),
    ("moments: in float32", "scores = scores.double()", "scores = scores.float()"),
    ("moments: mean of the last part", "mean=self.mean + distance * share", "mean=mean"),
    ("moments: parts alike", "len(scores) / count", "0.5"),
    ("moments: distance of the means missing", " + distance**2 * self.count * share", ""),
    ("moments: past forgotten", "squares=self.squares + squares", "squares=squares"),
    ("normalize: centre added", "return scores - moments.mean", "return scores + moments.mean"),
    (
        "normalize: standardize does not centre",
        "(scores - moments.mean) / deviation",
        "scores / deviation",
    ),
    (
        "normalize: scale centres",
        "return scores / deviation",
        "return (scores - moments.mean) / deviation",
    ),
    (
        "normalize: floor missing",
        "deviation = moments.deviation if moments.deviation > 1e-6 else 1.0",
        "deviation = moments.deviation",
    ),
    ("clip: one side", "scores.clamp(-clip_range, clip_range)", "scores.clamp(max=clip_range)"),
    ("unstopped: rewarded", "unstopped = scores - penalty", "unstopped = scores + penalty"),
    ("unstopped: a fixed score of 0 is none", "if fixed_score is not None", "if fixed_score"),
    ("unstopped: the stopped pay", "stopped, scores, unstopped", "stopped, unstopped, scores"),
    ("length: rewarded", "return scores - penalty * (mask", "return scores + penalty * (mask"),
    ("length: short ones rewarded", "1) - free_tokens).clamp(min=0)", "1) - free_tokens)"),
    ("length: nothing is free", "(mask.sum(dim=1) - free_tokens)", "mask.sum(dim=1)"),
    ("length: padding is paid for", "mask.sum(dim=1)", "torch.ones_like(mask).sum(dim=1)"),
    ("shape: KL rewarded", "penalty = -beta *", "penalty = beta *"),
    ("shape: beta missing", "penalty = -beta * estimate_kl(", "penalty = -estimate_kl("),
    ("shape: always k1", "logprobs, ref_logprobs, estimator", 'logprobs, ref_logprobs, "k1"'),
    ("shape: score on every token", "(penalty), last_token(mask))", "(penalty), mask)"),
    (
        "shape: score on the last column",
        "last_token(mask)",
        "torch.arange(mask.shape[1]) == mask.shape[1] - 1",
    ),
    (
        "shape: last token has no KL",
        "penalty + score",
        "torch.where(last_token(mask), score, penalty)",
    ),
    ("shape: padding keeps its KL", "zero_padding(penalty + score, mask)", "penalty + score"),
)

BATCH = (
    ("select: order lost", "tensor[rows]", "tensor[rows.sort().values]"),
    ("map: nested records left out", "value._map(function) if isinstance", "value if isinstance"),
    ("to: stays", "tensor.to(device)", "tensor"),
    ("lengths: prompt left out", "prompt_lengths + self.response_mask.", "response_mask."),
    ("lengths: padded width", "self.response_mask.sum(dim=1)", "self.response_mask.shape[1]"),
    ("pad: on the left", "(0, width - tensor.shape[1])", "(width - tensor.shape[1], 0)"),
    ("concatenate: to the narrowest", "max(tensor.shape[-1]", "min(tensor.shape[-1]"),
    ("concatenate: first nested record alone", "= concatenate(column)", "= column[0]"),
)

TABLES = {
    "advantages": ADVANTAGES,
    "kl": KL,
    "losses": LOSSES,
    "masked": MASKED,
    "rewards": REWARDS,
    "batch": BATCH,
}
MUTATIONS = [Mutation(file, *row) for file, table in TABLES.items() for row in table]
