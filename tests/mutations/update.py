"""Mistakes in rlhf_ppo/training: the update."""

from __future__ import annotations

TABLES = {
    "training/update.py": (
        ("early stop: never", "tally.minibatch_kl() > ppo.target_kl", "not ppo.target_kl"),
        (
            "early stop: the gradient stays",
            "optimizer.zero_grad()\n                tally.keep_minibatch()",
            "tally.keep_minibatch()",
        ),
        (
            "early stop: the last minibatch does not count",
            "optimizer.zero_grad()\n                tally.keep_minibatch()",
            "optimizer.zero_grad()",
        ),
        (
            "early stop: of the epoch alone",
            "tally.keep_minibatch()\n                return tally.finish()",
            "tally.keep_minibatch()\n                break",
        ),
        (
            "early stop: only the minibatch is left out",
            "tally.keep_minibatch()\n                return tally.finish()",
            "tally.keep_minibatch()\n                continue",
        ),
        (
            "early stop: KL of all minibatches so far",
            'self.minibatch_sums[SUMS.index("kl")]',
            'self.sums[SUMS.index("kl")]',
        ),
        ("early stop: KL to the reference", 'SUMS.index("kl")', 'SUMS.index("ref_kl")'),
        ("early stop: KL of a response", "/ self.minibatch_tokens", "/ 1"),
        ("early stop: KL of this process", "float(self.processes.sum(mine)) /", "float(mine) /"),
        (
            "early stop: tokens of the padded width",
            "int(minibatch.batch.tokens.response_mask.sum())",
            "minibatch.batch.tokens.response_mask.numel()",
        ),
        (
            "minibatch: sums of the one before",
            (
                "self.minibatch_tokens = tokens\n        self.minibatch_sums = "
                "torch.zeros_like(self.sums)\n"
            ),
            "self.minibatch_tokens = tokens\n",
        ),
        (
            "minibatch: text loss of the one before",
            "self.minibatch_loss = self.minibatch_text_loss = 0.0",
            "self.minibatch_loss = 0.0",
        ),
        (
            "minibatch: loss of the one before",
            "self.minibatch_loss = self.minibatch_text_loss = 0.0",
            "self.minibatch_text_loss = 0.0",
        ),
        (
            "minibatch: loss of the last micro-batch",
            "self.minibatch_loss += float(loss)",
            "self.minibatch_loss = float(loss)",
        ),
        (
            "minibatch: text loss of the last micro-batch",
            "self.minibatch_text_loss += float(loss.detach())",
            "self.minibatch_text_loss = float(loss.detach())",
        ),
        (
            "minibatch: sums of the last micro-batch",
            "self.minibatch_sums += torch.stack",
            "self.minibatch_sums = torch.stack",
        ),
        ("minibatch: number stays 1", "self.minibatches += 1", "self.minibatches = 1"),
        (
            "skips: in a row though one was made between",
            "self.grad_norms.append(grad_norm)\n        self.skipped_in_row = 0",
            "self.grad_norms.append(grad_norm)",
        ),
        (
            "skips: never more than 1 in a row",
            "self.skipped_in_row += 1",
            "self.skipped_in_row = 1",
        ),
        ("skips: never more than 1", "self.skipped += 1", "self.skipped = 1"),
        (
            "skips: one more than allowed",
            "tally.skipped_in_row >= config.guard.max_skipped",
            "tally.skipped_in_row > config.guard.max_skipped",
        ),
        (
            "skips: all of the update count as in a row",
            "tally.skipped_in_row >= config.guard.max_skipped",
            "tally.skipped >= config.guard.max_skipped",
        ),
        (
            "skips: those of the update before forgotten",
            "_Tally(processes, skipped_in_row)",
            "_Tally(processes)",
        ),
        (
            "skips: the first of the update is kept alone",
            "tally.skipped_in_row == 1",
            "tally.skipped == 1",
        ),
        (
            "skips: each is kept",
            "keep_failure is not None and tally",
            "keep_failure is not None or tally",
        ),
        (
            "skips: the minibatch counts",
            "self.skipped += 1\n",
            "self.keep_minibatch()\n        self.skipped += 1\n",
        ),
        ("skips: the scaler is not told", "processes.skip_step()", "pass"),
        (
            "skips: the gradient stays for the next step",
            "            optimizer.zero_grad()\n            if tally.skipped_in_row",
            "            if tally.skipped_in_row",
        ),
        ("skips: reported as all of the update", "row=self.skipped_in_row", "row=self.skipped"),
        (
            "finite: the loss is not looked at",
            "math.isfinite(grad_norm) and math.isfinite(float(self.processes.sum(mine)))",
            "math.isfinite(grad_norm)",
        ),
        (
            "finite: the gradient is not looked at",
            "math.isfinite(grad_norm) and math.isfinite(float(self.processes.sum(mine)))",
            "math.isfinite(float(self.processes.sum(mine)))",
        ),
        (
            "finite: loss of this process",
            "math.isfinite(float(self.processes.sum(mine)))",
            "math.isfinite(float(mine))",
        ),
        (
            "finite: the text loss is not looked at",
            "torch.tensor(self.minibatch_loss + self.minibatch_text_loss)",
            "torch.tensor(self.minibatch_loss)",
        ),
        ("warm-up: the policy is trained", "if not train_policy:", "if train_policy:"),
        (
            "warm-up: on text after all",
            "if draw_text and train_policy else None",
            "if draw_text else None",
        ),
        (
            "warm-up: the value function forgets",
            "policy.policy_parameters().values()",
            "policy.value_parameters().values()",
        ),
        ("text: the first minibatch's again", "draw_text(tally.minibatches)", "draw_text(0)"),
        (
            "minibatches: never shuffled",
            "torch.randperm(rows, generator=shuffle)",
            "torch.arange(rows)",
        ),
        ("minibatches: own shuffle on each process", "(rows, generator=shuffle)", "(rows)"),
        ("minibatches: of so many rows", ".tensor_split(minibatches)", ".split(minibatches)"),
        ("epochs: one too few", "range(ppo.epochs)", "range(max(1, ppo.epochs - 1))"),
        (
            "share: every process all of it",
            "[processes.rank :: processes.world]",
            "[processes.rank * 0 :: 1]",
        ),
        ("weights: always by token", "config.ppo.loss_aggregation, ", '"token", '),
        ("weights: left out of the loss", "terms.loss * weights", "terms.loss"),
        (
            "gradients: processes never brought together",
            "skip=number + 1 < len(groups)",
            "skip=number < len(groups)",
        ),
        (
            "gradients: processes brought together at the first",
            "skip=number + 1 < len(groups)",
            "skip=number > 0",
        ),
        (
            "forward: at temperature 1",
            "layout, config.rollout.temperature, loss.entropy",
            "layout, 1.0, loss.entropy",
        ),
        ("ptx: coefficient missing", "backward(config.ptx.coefficient * loss)", "backward(loss)"),
        (
            "ptx: mean of micro-batch means",
            "-logprobs.sum() / tokens",
            "-logprobs.sum() / len(group)",
        ),
        ("ptx: sign", "loss = -logprobs.sum()", "loss = logprobs.sum()"),
        ("ptx: padding divides too", "int(text.response_mask.sum())", "text.response_mask.numel()"),
        (
            "ptx: at the sampler's temperature",
            "layout.targets, temperature=1.0)",
            "layout.targets, temperature=config.rollout.temperature)",
        ),
        ("ptx: loss reported as a sum", "text_loss / max(len(self.text_losses), 1)", "text_loss"),
        (
            "ptx: loss of this process",
            "float(self.processes.sum(torch.tensor(sum(self.text_losses))))",
            "sum(self.text_losses)",
        ),
        (
            "KL after the update: by k1",
            'estimate_kl(micro.logprobs, outputs.logprobs, "k3")',
            'estimate_kl(micro.logprobs, outputs.logprobs, "k1")',
        ),
        (
            "KL after the update: the other way round",
            "estimate_kl(micro.logprobs, outputs.logprobs",
            "estimate_kl(outputs.logprobs, micro.logprobs",
        ),
        (
            "KL after the update: of a response",
            "/ int(batch.tokens.response_mask.sum())\n\n\ndef minibatch_rows",
            "/ len(batch.logprobs)\n\n\ndef minibatch_rows",
        ),
        (
            "KL after the update: of this process's tokens",
            "/ int(batch.tokens.response_mask.sum())\n\n\ndef minibatch_rows",
            "/ int(mine.tokens.response_mask.sum())\n\n\ndef minibatch_rows",
        ),
        (
            "KL after the update: of this process",
            "float(processes.sum(torch.tensor(total)))",
            "total",
        ),
        (
            "KL of the update: the other way round",
            "kl_of_update(outputs.logprobs, micro.logprobs)",
            "kl_of_update(micro.logprobs, outputs.logprobs)",
        ),
        (
            "ratio: 0 in the padding",
            "torch.ones_like(terms.ratio)",
            "torch.zeros_like(terms.ratio)",
        ),
        (
            "ratio: largest of the last micro-batch",
            "self.ratio_max = max(self.ratio_max, float(ratio.max()))",
            "self.ratio_max = float(ratio.max())",
        ),
        ("ratio: first error before every step", "if not self.grad_norms:", "if True:"),
        (
            "ratio: first error of the first minibatch",
            "if not self.grad_norms:",
            "if self.minibatches == 1:",
        ),
        ("ratio: first error upwards alone", "(ratio - 1).abs().max()", "(ratio - 1).max()"),
        (
            "ratio: first error of the last micro-batch",
            "self.ratio_first_error = max(self.ratio_first_error, error)",
            "self.ratio_first_error = error",
        ),
        (
            "sums: clip fractions change places",
            "terms.policy_clipped.float(),\n            terms.value_clipped.float(),",
            "terms.value_clipped.float(),\n            terms.policy_clipped.float(),",
        ),
        (
            "sums: losses change places",
            "terms.policy,\n            terms.value,",
            "terms.value,\n            terms.policy,",
        ),
        ("means: KL to the reference as KL", 'kl=means["kl"]', 'kl=means["ref_kl"]'),
        ("means: of this process", "self.processes.sum(self.sums.float())", "self.sums"),
        ("means: over minibatches", "value / max(tokens, 1)", "value / max(self.minibatches, 1)"),
        ("maxima: of the first process", "max(part[0] for part in parts)", "parts[0][0]"),
        (
            "maxima: first error of the first process",
            "max(part[1] for part in parts)",
            "parts[0][1]",
        ),
        (
            "norm: of the last step",
            "sum(self.grad_norms) / max(len(self.grad_norms), 1)",
            "sum(self.grad_norms[-1:])",
        ),
        (
            "steps: skipped ones count",
            "optimizer_steps=len(self.grad_norms)",
            "optimizer_steps=self.minibatches",
        ),
        (
            "first log-ratios: of this process alone",
            "torch.cat([part[2] for part in parts])",
            "first",
        ),
        (
            "first log-ratios: of all minibatches",
            "            self.first_log_ratios.append((out",
            "        self.first_log_ratios.append((out",
        ),
    ),
}
OWN = {
    "training/update.py": (
        "tests/unit/test_update_counts.py",
        "tests/unit/test_update_text.py",
        "tests/unit/test_batches.py",
        "tests/invariance/test_update.py",
        "tests/invariance/test_ptx.py",
    ),
}
MORE = ("tests/invariance/test_ten_invariants.py",)
