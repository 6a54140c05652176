"""The PPO update: epochs x minibatches x micro-batches over one rollout."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_ppo.algorithm.batch import Minibatch, TokenOutputs, TrainBatch
from rlhf_ppo.algorithm.kl import estimate_kl, kl_of_update
from rlhf_ppo.algorithm.losses import LossSettings, LossTerms, ppo_loss, response_weights
from rlhf_ppo.algorithm.masked import masked_sum
from rlhf_ppo.config import Config
from rlhf_ppo.models.forward import lay_out, micro_batches
from rlhf_ppo.models.policy import PolicyWithValueHead
from rlhf_ppo.plan import judging_tokens, training_tokens
from rlhf_ppo.training.distributed import Processes

SUMS = ("policy", "value", "policy_clipped", "value_clipped", "kl", "ref_kl", "entropy")


@dataclass(frozen=True)
class UpdateStats:
    """Means over the response tokens of all epochs and processes."""

    policy_loss: float
    value_loss: float
    policy_clip_fraction: float
    value_clip_fraction: float
    kl: float  # nats a token, KL(policy being updated || policy at collection)
    ref_kl: float  # nats a token, KL(policy being updated || reference), as the loss sees it
    entropy: float  # nats a token
    ratio_max: float
    ratio_first_error: float  # max |ratio - 1| before the first optimizer step: 0 up to rounding
    grad_norm: float  # mean over optimizer steps, before clipping
    optimizer_steps: int


def ppo_update(
    policy: PolicyWithValueHead,
    policy_forward: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: TrainBatch,
    config: Config,
    loss: LossSettings,
    shuffle: torch.Generator,
    processes: Processes,
    train_policy: bool = True,
) -> UpdateStats:
    """Improve policy and value function on one rollout (Schulman et al. 2017, algorithm 1).

    Every process holds the whole batch and computes its share of each minibatch.

    Args:
        policy, policy_forward: bare, to find its parameters, and behind Accelerate's wrapper.
        optimizer: over the trained parameters.
        batch: the whole rollout, on the CPU, alike on every process.
        config: settings.
        loss: the objective and its weights in this step.
        shuffle: generator of the permutations, seeded alike on every process.
        processes: this process among the others.
        train_policy: False while only the value function warms up.
    """
    ppo = config.ppo
    tally = _Tally(processes)
    for _ in range(ppo.epochs):
        for rows in minibatch_rows(len(batch.logprobs), ppo.minibatches, shuffle):
            minibatch = _weighted(batch.select(rows), config)
            _accumulate_gradients(policy_forward, minibatch, config, loss, processes, tally)
            if ppo.target_kl is not None and tally.minibatch_kl() > ppo.target_kl:
                optimizer.zero_grad()
                return tally.finish()
            if not train_policy:
                for parameter in policy.policy_parameters().values():
                    parameter.grad = None
            tally.add_step(processes.clip_grad_norm(policy_forward, ppo.max_grad_norm))
            optimizer.step()
            optimizer.zero_grad()
    return tally.finish()


@torch.no_grad()
def kl_after_update(
    policy_forward: nn.Module, batch: TrainBatch, config: Config, processes: Processes
) -> float:
    """KL(old || new) over a rollout once its update is made, nats a token."""
    total = 0.0
    budget = judging_tokens(config.ppo, processes.device.type)
    mine = batch.select(_my_rows(batch.tokens.lengths, processes))
    for group in micro_batches(mine.tokens.lengths, budget):
        micro = mine.select(group)
        layout = lay_out(micro.tokens).to(processes.device)
        micro = micro.to(processes.device)
        outputs = policy_forward(layout, config.rollout.temperature)
        moved = estimate_kl(micro.logprobs, outputs.logprobs, "k3")
        total += float(masked_sum(moved, micro.tokens.response_mask))
    return float(processes.sum(torch.tensor(total))) / int(batch.tokens.response_mask.sum())


def minibatch_rows(rows: int, minibatches: int, shuffle: torch.Generator) -> Iterator[Tensor]:
    """Split a fresh permutation of the rows into parts whose sizes differ by one at most."""
    yield from torch.randperm(rows, generator=shuffle).tensor_split(minibatches)


def _weighted(batch: TrainBatch, config: Config) -> Minibatch:
    """The loss is divided here, before it is split: no split can change it."""
    weights = response_weights(
        batch.tokens.response_mask, config.ppo.loss_aggregation, config.rollout.max_new_tokens
    )
    return Minibatch(batch, weights)


def _my_rows(lengths: Tensor, processes: Processes) -> Tensor:
    """Every world-th row by length, so that the processes have equal work and none is empty."""
    return lengths.argsort(stable=True)[processes.rank :: processes.world]


def _accumulate_gradients(
    policy_forward: nn.Module,
    minibatch: Minibatch,
    config: Config,
    loss: LossSettings,
    processes: Processes,
    tally: "_Tally",
) -> None:
    """Add up the gradient of a minibatch over this process's micro-batches, then over processes."""
    tally.start_minibatch(int(minibatch.batch.tokens.response_mask.sum()))
    mine = minibatch.select(_my_rows(minibatch.batch.tokens.lengths, processes))
    budget = training_tokens(config.ppo, processes.device.type, processes.half)
    groups = list(micro_batches(mine.batch.tokens.lengths, budget))
    for number, group in enumerate(groups):
        part = mine.select(group)
        layout = lay_out(part.batch.tokens).to(processes.device)
        part = part.to(processes.device)
        micro, weights = part.batch, part.weights[:, None]
        with processes.no_sync(policy_forward, skip=number + 1 < len(groups)):
            outputs: TokenOutputs = policy_forward(
                layout, config.rollout.temperature, loss.entropy_coefficient > 0
            )
            terms = ppo_loss(outputs, micro, loss)
            processes.backward(masked_sum(terms.loss * weights, micro.tokens.response_mask))
        tally.add(terms, outputs, micro)


class _Tally:
    """Sums of per-token quantities, brought together over processes once an update."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.sums = torch.zeros(len(SUMS) + 1, dtype=torch.float64)
        self.kl_before = 0.0  # the sum of KL when the minibatch began
        self.minibatch_tokens = 0  # over all processes
        self.ratio_max = 0.0
        self.ratio_first_error = 0.0
        self.grad_norms: list[float] = []

    def start_minibatch(self, tokens: int) -> None:
        """Note where the KL of this minibatch begins."""
        self.kl_before = float(self.sums[SUMS.index("kl")])
        self.minibatch_tokens = tokens

    @torch.no_grad()
    def add(self, terms: LossTerms, outputs: TokenOutputs, micro: TrainBatch) -> None:
        """Count one micro-batch."""
        mask = micro.tokens.response_mask
        columns = (
            terms.policy,
            terms.value,
            terms.policy_clipped.float(),
            terms.value_clipped.float(),
            kl_of_update(outputs.logprobs, micro.logprobs),
            terms.kl,
            outputs.entropy,
        )
        sums = [masked_sum(column, mask) for column in columns]
        self.sums += torch.stack([*sums, mask.sum()]).double().cpu()
        ratio = torch.where(mask, terms.ratio, torch.ones_like(terms.ratio))
        self.ratio_max = max(self.ratio_max, float(ratio.max()))
        if not self.grad_norms:
            error = float((ratio - 1).abs().max())
            self.ratio_first_error = max(self.ratio_first_error, error)

    def minibatch_kl(self) -> float:
        """KL(new || old) of the present minibatch over all processes, nats a token."""
        mine = float(self.sums[SUMS.index("kl")]) - self.kl_before
        return float(self.processes.sum(torch.tensor(mine))) / self.minibatch_tokens

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
            ref_kl=means["ref_kl"],
            entropy=means["entropy"],
            ratio_max=max(pair[0] for pair in maxima),
            ratio_first_error=max(pair[1] for pair in maxima),
            grad_norm=sum(self.grad_norms) / len(self.grad_norms),
            optimizer_steps=len(self.grad_norms),
        )
