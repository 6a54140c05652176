"""Mistakes in rlhf_ppo/rollout: sampling and judging."""

from __future__ import annotations

TABLES = {
    "rollout/noise.py": (
        ("copies: the third as the second", "copies[row] = copy + 1", "copies[row] = 1"),
        ("copies: all alike", "step, row, copy)", "step, row)"),
        ("noise: alike in every step", "purpose, step, row", "purpose, row"),
        ("noise: alike for every purpose", "generator(seed, purpose, step", "generator(seed, step"),
        ("noise: alike for every seed", "generator(seed, purpose, step", "generator(purpose, step"),
        ("noise: by place in the batch", "step, row, copy)", "step, len(rows), copy)"),
        (
            "noise: of 24 bits",
            "generator=source, dtype=torch.float64)",
            "generator=source).double()",
        ),
    ),
    "rollout/generation.py": (
        ("order: not put back", "torch.tensor(order).argsort()", "torch.tensor(order)"),
        (
            "order: noise of other rows",
            "noise[rows], settings, way)",
            "noise[: len(rows)], settings, way)",
        ),
        ("mode: the model stays in evaluation", "    model.train(training)\n", ""),
        (
            "mode: sampled with dropout",
            "model.eval()  # gradient",
            "model.train(training)  # gradient",
        ),
        ("draw: sums in float32", "cumsum(dim=-1, dtype=torch.float64)", "cumsum(dim=-1).double()"),
        (
            "draw: not scaled to the total",
            "uniform[:, None] * cumulative[:, -1:]",
            "uniform[:, None]",
        ),
        (
            "draw: scaled by the largest step",
            "* cumulative[:, -1:]",
            "* cumulative.diff(dim=-1).amax(dim=-1, keepdim=True)",
        ),
        ("draw: a token of probability 0", "target, right=True)", "target)"),
        (
            "draw: one number for all rows",
            "uniform[:, None] * cumulative",
            "uniform[:1, None] * cumulative",
        ),
        (
            "draw: from the other end",
            "uniform[:, None] * cumulative",
            "(1 - uniform[:, None]) * cumulative",
        ),
        ("choose: temperature missing", "(logits / temperature).log_softmax", "logits.log_softmax"),
        ("choose: temperature multiplies", "(logits / temperature)", "(logits * temperature)"),
        (
            "choose: log-probability at temperature 1",
            "return token, logprobs.gather",
            "return token, logits.log_softmax(dim=-1).gather",
        ),
        (
            "choose: greedy log-probability of the model",
            "return token, torch.zeros_like(logits[:, 0])",
            "return token, logits.log_softmax(dim=-1).amax(dim=-1)",
        ),
        (
            "choose: greedy takes the least probable",
            "logits.argmax(dim=-1)",
            "logits.argmin(dim=-1)",
        ),
        ("decode: noise of the first rows", "noise[alive, t]", "noise[: len(alive), t]"),
        ("decode: the same noise at each token", "noise[alive, t]", "noise[alive, 0]"),
        (
            "decode: ended rows by their new number",
            "stopped[alive[ended]] = True",
            "stopped[: len(ended)][ended] = True",
        ),
        (
            "decode: the stop token does not count",
            "        mask[alive, t] = True\n        ended = torch.isin(token, stop_ids)\n",
            (
                "        ended = torch.isin(token, stop_ids)\n        mask[alive[~ended], "
                "t] = True\n"
            ),
        ),
        (
            "decode: the first stop token alone",
            "torch.isin(token, stop_ids)",
            "token == stop_ids[0]",
        ),
        (
            "decode: tokens stay in their old rows",
            "alive, token = alive[rows], token[rows]",
            "alive, token = alive[rows], token[: len(rows)]",
        ),
        (
            "decode: the cache keeps all rows' order",
            "decoder.keep(rows)",
            "decoder.keep(torch.arange(len(rows)))",
        ),
        ("decode: one token too few", "if t + 1 == limit or", "if t + 2 == limit or"),
        (
            "decode: rows by their place",
            "torch.tensor([prompt.prompt.row for prompt in prompts])",
            "torch.arange(len(prompts))",
        ),
        ("decode: cut ones are stopped", "stopped=stopped.cpu(),", "stopped=~stopped.cpu(),"),
        ("close ranks: count left out", ".squeeze(-1) + count", ".squeeze(-1)"),
        ("equal: lengths are mixed", "key=lambda row: lengths[row])]", "key=lambda row: 0)]"),
    ),
    "rollout/collect.py": (
        ("texts: padding too", "ids[mask].tolist()", "ids.tolist()"),
        (
            "judge: rows in the order of the lengths",
            "logprobs[rows] = outputs",
            "logprobs[: len(rows)] = outputs",
        ),
        (
            "judge: policy at temperature 1",
            "roles.policy_forward(layout, temperature)",
            "roles.policy_forward(layout, 1.0)",
        ),
        (
            "judge: reference at temperature 1",
            "reference_logprobs(roles, layout, temperature).float()",
            "reference_logprobs(roles, layout, 1.0).float()",
        ),
        (
            "judge: the sampler's word for the policy's",
            "logprobs=outputs.logprobs,",
            "logprobs=responses.sampling_logprobs,",
        ),
        (
            "judge: values and entropies change places",
            "return TokenOutputs(logprobs, values, entropy), ref",
            "return TokenOutputs(logprobs, entropy, values), ref",
        ),
        (
            "judge: the reference is the moved policy",
            "return roles.policy.reference_logprobs(layout, temperature)",
            "return roles.policy(layout, temperature).logprobs",
        ),
        (
            "reference: sampled from the policy",
            "generate(roles.reference.lm, prompts",
            "generate(roles.policy.lm, prompts",
        ),
        (
            "reference: sampled with the adapter",
            "with roles.policy.as_reference():\n",
            "with nullcontext():\n",
        ),
    ),
    "rollout/cache.py": (
        (
            "update: a place too far",
            "start = self.get_seq_length()\n        end",
            "start = self.get_seq_length() or 1\n        end",
        ),
        (
            "update: old tokens are lost when it grows",
            "    if old is not None and old.numel():",
            "    if old is None and like.numel():",
        ),
        (
            "update: values are keys",
            "zip(self.buffers, (key_states, value_states)",
            "zip(self.buffers, (key_states, key_states)",
        ),
        (
            "show: room that nothing fills",
            "(buffer[:, :, :end] for buffer in self.buffers)",
            "(buffer[:, :, : end + 1] for buffer in self.buffers)",
        ),
        (
            "select: only the keys move",
            "for buffer in self.buffers:\n                buffer[moved",
            "for buffer in self.buffers[:1]:\n                buffer[moved",
        ),
        (
            "select: rows swap one by one",
            "buffer[moved, :, :end] = buffer[indices[moved], :, :end]",
            "buffer[indices[moved], :, :end] = buffer[moved, :, :end]",
        ),
        (
            "select: all rows stay",
            "(self.buffers[0][:count], self.buffers[1][:count])",
            "(self.buffers[0], self.buffers[1])",
        ),
        (
            "reset: the buffers stay",
            "super().reset()\n        self.buffers = None",
            "super().reset()",
        ),
        (
            "reorder: the buffers stay",
            "any int64 will do\n        self.buffers = None",
            "any int64 will do",
        ),
        (
            "grows at every token",
            "end + ROOM),\n                _enlarged(self.values",
            "end),\n                _enlarged(self.values",
        ),
    ),
    "rollout/decoder.py": (
        (
            "decoder: the first token of each prompt is hidden",
            "(column >= lengths.max() - lengths[:, None])",
            "(column > lengths.max() - lengths[:, None])",
        ),
        (
            "decoder: next position is the last one's",
            "self.position = lengths[:, None]",
            "self.position = lengths[:, None] - 1",
        ),
        ("decoder: position never moves on", "        self.position = self.position + 1\n", ""),
        (
            "decoder: padding counts as positions",
            "(self.mask.cumsum(dim=1) - 1).clamp(min=0)",
            "torch.arange(ids.shape[1]).expand_as(ids)",
        ),
        (
            "decoder: positions of other rows",
            "self.mask, self.position = self.mask[rows], self.position[rows]",
            "self.mask, self.position = self.mask[rows], self.position[: len(rows)]",
        ),
        (
            "decoder: masks of other rows",
            "self.mask, self.position = self.mask[rows], self.position[rows]",
            "self.mask, self.position = self.mask[: len(rows)], self.position[rows]",
        ),
        (
            "packed: keys on the left",
            "(0, 0, width - x.shape[1], 0)",
            "(0, 0, 0, width - x.shape[1])",
        ),
        (
            "packed: a prompt's cache for another",
            "keys[which], values[which]",
            "keys[which], values[which.flip(0)]",
        ),
        (
            "packed: logits of the first token",
            ".cumsum(0) - 1\n        return output_logits(base",
            (
                ".cumsum(0) - torch.tensor(lengths, device=device)\n        return "
                "output_logits(base"
            ),
        ),
        (
            "packed: logits without copies",
            "output_logits(base, states[last])[which]",
            "output_logits(base, states[last])",
        ),
        (
            "whole: rows in the order of their lengths",
            "logits[torch.cat(groups).argsort().to(logits.device)]",
            "logits",
        ),
        ("whole: the new token in front", "torch.cat([row, t[None]])", "torch.cat([t[None], row])"),
        (
            "way: states behind a mask",
            '"equal" if any(_has_state(layer) for layer in layers)',
            '"padded" if any(_has_state(layer) for layer in layers)',
        ),
    ),
}
OWN = {
    "rollout/noise.py": ("tests/unit/test_sampling.py",),
    "rollout/generation.py": (
        "tests/unit/test_sampling.py",
        "tests/unit/test_decoding.py",
    ),
    "rollout/collect.py": ("tests/unit/test_collect.py",),
    "rollout/cache.py": ("tests/unit/test_cache.py",),
    "rollout/decoder.py": (
        "tests/unit/test_decoding.py",
        "tests/unit/test_sampling.py",
        "tests/invariance/test_generation.py",
    ),
}
MORE = (
    "tests/unit/test_decoding.py",
    "tests/invariance/test_generation.py",
    "tests/invariance/test_families.py",
)
