"""The PPO update: epochs x minibatches x micro-batches over one rollout."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_ppo.algorithm.batch import TrainBatch
from rlhf_ppo.algorithm.kl import estimate_kl
from rlhf_ppo.algorithm.losses import LossTerms, ppo_loss
from rlhf_ppo.algorithm.masked import masked_sum
from rlhf_ppo.config import PpoConfig, ValueConfig
from rlhf_ppo.models.forward import lay_out, micro_batches
from rlhf_ppo.models.policy import PolicyWithValueHead, TokenOutputs
from rlhf_ppo.training.distributed import Processes

SUMS = ("policy", "value", "policy_clipped", "value_clipped", "kl", "entropy")


@dataclass(frozen=True)
class UpdateStats:
    """Means over the response tokens of all epochs and processes."""

    policy_loss: float
    value_loss: float
    policy_clip_fraction: float
    value_clip_fraction: float
    kl: float  # nats a token, policy at collection against the policy being updated
    entropy: float  # nats a token
    ratio_max: float
    ratio_first_error: float  # max |ratio - 1| before the first optimizer step: 0 up to rounding
    grad_norm: float  # mean over optimizer steps, before clipping


def ppo_update(
    policy: PolicyWithValueHead,
    policy_forward: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: TrainBatch,
    ppo: PpoConfig,
    value: ValueConfig,
    temperature: float,
    shuffle: torch.Generator,
    processes: Processes,
    train_policy: bool = True,
) -> UpdateStats:
    """Improve policy and value function on one rollout (Schulman et al. 2017, algorithm 1).

    Every process holds the whole batch and computes its share of each minibatch. The one
    denominator is the minibatch's token count over all processes, so neither micro-batches nor
    the number of processes change the gradient.

    Args:
        policy, policy_forward: bare, to find its parameters, and behind Accelerate's wrapper.
        optimizer: over the trained parameters.
        batch: the whole rollout, on the CPU, alike on every process.
        ppo, value: settings.
        temperature: of the sampler.
        shuffle: generator of the permutations, seeded alike on every process.
        processes: this process among the others.
        train_policy: False while only the value function warms up.
    """
    tally = _Tally(processes)
    for _ in range(ppo.epochs):
        for rows in minibatch_rows(len(batch.logprobs), ppo.minibatches, shuffle):
            minibatch = batch.select(rows)
            tokens = int(minibatch.tokens.response_mask.sum())  # ONE denominator
            mine = _my_share(minibatch, processes)
            groups = list(micro_batches(mine.tokens.lengths, ppo.micro_batch_tokens))
            for number, group in enumerate(groups):
                micro = mine.select(group).to(processes.device)
                with processes.no_sync(policy_forward, skip=number + 1 < len(groups)):
                    outputs: TokenOutputs = policy_forward(lay_out(micro.tokens), temperature)
                    terms = ppo_loss(
                        outputs.logprobs,
                        outputs.values,
                        micro.logprobs,
                        micro.values,
                        micro.advantages,
                        micro.returns,
                        clip_range=ppo.clip_range,
                        value_clip_range=value.clip_range,
                        value_coefficient=value.coefficient,
                    )
                    mask = micro.tokens.response_mask
                    processes.backward(masked_sum(terms.loss, mask) / tokens)
                tally.add(terms, outputs, micro)
            if not train_policy:
                for parameter in policy.lm.parameters():
                    parameter.grad = None
            tally.add_step(processes.clip_grad_norm(policy_forward, ppo.max_grad_norm))
            optimizer.step()
            optimizer.zero_grad()
    return tally.finish()


def minibatch_rows(rows: int, minibatches: int, shuffle: torch.Generator) -> Iterator[Tensor]:
    """Split a fresh permutation of the rows into parts whose sizes differ by one at most."""
    yield from torch.randperm(rows, generator=shuffle).tensor_split(minibatches)


def _my_share(minibatch: TrainBatch, processes: Processes) -> TrainBatch:
    """Every world-th row by length, so that the processes have equal work and none is empty."""
    order = minibatch.tokens.lengths.argsort(stable=True)
    return minibatch.select(order[processes.rank :: processes.world])


class _Tally:
    """Sums of per-token quantities, brought together over processes once an update."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.sums = torch.zeros(len(SUMS) + 1, dtype=torch.float64)
        self.ratio_max = 0.0
        self.ratio_first_error = 0.0
        self.grad_norms: list[float] = []

    @torch.no_grad()
    def add(self, terms: LossTerms, outputs: TokenOutputs, micro: TrainBatch) -> None:
        """Count one micro-batch."""
        mask = micro.tokens.response_mask
        columns = (
            terms.policy,
            terms.value,
            terms.policy_clipped.float(),
            terms.value_clipped.float(),
            estimate_kl(micro.logprobs, outputs.logprobs, "k3"),
            outputs.entropy,
        )
        sums = [masked_sum(column, mask) for column in columns]
        self.sums += torch.stack([*sums, mask.sum()]).double().cpu()
        ratio = torch.where(mask, terms.ratio, torch.ones_like(terms.ratio))
        self.ratio_max = max(self.ratio_max, float(ratio.max()))
        if not self.grad_norms:
            error = float((ratio - 1).abs().max())
            self.ratio_first_error = max(self.ratio_first_error, error)

    def add_step(self, grad_norm: float) -> None:
        """Count one optimizer step."""
        self.grad_norms.append(grad_norm)

    def finish(self) -> UpdateStats:
        """Means over tokens, maxima over processes."""
        *sums, tokens = self.processes.sum(self.sums.float()).tolist()
        means = dict(zip(SUMS, (value / max(tokens, 1) for value in sums), strict=True))
        maxima = self.processes.gather_list([(self.ratio_max, self.ratio_first_error)])
        return UpdateStats(
            policy_loss=means["policy"],
            value_loss=means["value"],
            policy_clip_fraction=means["policy_clipped"],
            value_clip_fraction=means["value_clipped"],
            kl=means["kl"],
            entropy=means["entropy"],
            ratio_max=max(pair[0] for pair in maxima),
            ratio_first_error=max(pair[1] for pair in maxima),
            grad_norm=sum(self.grad_norms) / len(self.grad_norms),
        )
