"""Log-probabilities and entropies of logits; keeps one (N, V) tensor where autograd keeps four."""

from typing import Any

import torch
from torch import Tensor


def logprobs_and_entropies(
    logits: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Of each target, and of each row's distribution; both (N,) float32, nats.

    Args:
        logits: (N, V), used up: their memory is written over.
        targets: (N,) token ids.
        temperature: divides the logits.
        entropy_gradient: let gradients flow through the entropy too.
    """
    apply: Any = _Softmax.apply
    logprobs, entropies = apply(logits, targets, temperature)
    return logprobs, entropies if entropy_gradient else entropies.detach()


class _Softmax(torch.autograd.Function):
    """d log p(a) / d z = 1[a] - p,   d H / d z = -p (log p + H),   z = logits / temperature."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        # In place: no layer that makes logits needs them again for its own gradient.
        table = logits.detach().float()
        if temperature != 1:
            table.div_(temperature)
        table.sub_(table.logsumexp(dim=-1, keepdim=True))
        logprobs = table.gather(-1, targets[:, None]).squeeze(-1)
        entropies = -(table.exp().mul_(table)).sum(dim=-1)
        ctx.save_for_backward(table, targets, entropies)
        ctx.set_materialize_grads(False)  # None for what nobody differentiated
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        of_logprobs, of_entropies = gradients
        table, targets, entropies = ctx.saved_tensors
        if of_logprobs is None:
            of_logprobs = torch.zeros_like(entropies)
        gradient = table.exp()
        if of_entropies is None:
            gradient.mul_(-of_logprobs[:, None])
        else:
            slope = (table + entropies[:, None]).mul_(of_entropies[:, None])
            gradient.mul_(slope.add_(of_logprobs[:, None]).neg_())
        gradient.scatter_add_(-1, targets[:, None], of_logprobs[:, None])
        if ctx.temperature != 1:
            gradient.div_(ctx.temperature)
        return gradient.to(ctx.dtype), None, None
