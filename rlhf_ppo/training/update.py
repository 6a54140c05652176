"""The PPO update: epochs x minibatches x micro-batches over one rollout."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_ppo.algorithm.batch import Minibatch, TokenOutputs, Tokens, TrainBatch
from rlhf_ppo.algorithm.kl import estimate_kl, kl_of_update
from rlhf_ppo.algorithm.losses import LossSettings, LossTerms, ppo_loss, response_weights
from rlhf_ppo.algorithm.masked import masked_sum
from rlhf_ppo.config import Config
from rlhf_ppo.models.forward import (
    find_trunk,
    hidden_states,
    lay_out,
    micro_batches,
    token_logprobs,
)
from rlhf_ppo.models.policy import PolicyWithValueHead, base_model
from rlhf_ppo.plan import judging_tokens, training_tokens
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.value_updates import (
    SeenStates,
    further_updates,
    states_seen,
    update_values,
)

SUMS = ("policy", "value", "policy_clipped", "value_clipped", "kl", "ref_kl", "entropy")


@dataclass(frozen=True)
class UpdateStats:
    """Means over the response tokens of all minibatches and processes, skipped ones left out."""

    policy_loss: float
    value_loss: float
    policy_clip_fraction: float
    value_clip_fraction: float
    kl: float  # nats a token, KL(policy being updated || policy at collection)
    ref_kl: float  # nats a token, KL(policy being updated || reference), as the loss sees it
    entropy: float  # nats a token
    ratio_max: float
    ratio_first_error: float  # max |ratio - 1| before the first optimizer step: 0 up to rounding
    first_log_ratios: Tensor  # (N,) nats, of the same tokens, of all processes
    ptx_loss: float  # nats a token of the given text; 0 without any
    grad_norm: float  # mean over optimizer steps, before clipping
    optimizer_steps: int
    skipped: int  # optimizer steps that were not made: loss or gradient was not finite
    skipped_in_row: int  # up to now, those of earlier updates included


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
    skipped_in_row: int = 0,
    draw_text: Callable[[int], Tokens] | None = None,
    keep_failure: Callable[[Minibatch, Tokens | None], None] | None = None,
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
        skipped_in_row: optimizer steps skipped just before this update.
        draw_text: text for the next-token loss of the update's n-th minibatch, from 0.
        keep_failure: is told, on every process, of the first minibatch of each row of skips.
    """
    ppo = config.ppo
    tally = _Tally(processes, skipped_in_row)
    for _ in range(ppo.epochs):
        for rows in minibatch_rows(len(batch.logprobs), ppo.minibatches, shuffle):
            minibatch = _weighted(batch.select(rows), config)
            text = draw_text(tally.minibatches) if draw_text and train_policy else None
            tally.start_minibatch(int(minibatch.batch.tokens.response_mask.sum()))
            if text is not None:
                _accumulate_text_gradients(policy, text, config, processes, tally)
            seen = _accumulate_gradients(
                policy, policy_forward, minibatch, config, loss, processes, tally
            )
            if tally.moved_too_far(ppo.target_kl):
                optimizer.zero_grad()
                return tally.finish()
            grad_norm = _ready_gradients(policy, policy_forward, config, processes, train_policy)
            if tally.is_finite(grad_norm):
                tally.add_step(grad_norm)
                optimizer.step()
            else:
                tally.add_skip()
                processes.skip_step()
                if keep_failure is not None and tally.skipped_in_row == 1:
                    keep_failure(minibatch, text)
            optimizer.zero_grad()
            update_values(policy, optimizer, seen, loss, config, processes)
            if tally.skipped_in_row >= config.guard.max_skipped:
                return tally.finish()
    return tally.finish()


def _ready_gradients(
    policy: PolicyWithValueHead,
    policy_forward: nn.Module,
    config: Config,
    processes: Processes,
    train_policy: bool,
) -> float:
    """Scale gradients down to a norm; returns that of all of them before.

    Where the values have weights of their own, each of the two is scaled for itself: a large value
    loss must not make the policy's step small. The policy's are dropped while it waits.
    """
    max_norm = config.ppo.max_grad_norm
    if not train_policy:
        _forget_gradients(policy.policy_parameters().values())
    if not policy.values_apart or max_norm is None:
        return processes.clip_grad_norm(policy_forward, max_norm)
    norm = processes.clip_grad_norm(policy_forward, None)
    for part in (policy.policy_parameters(), policy.value_parameters()):
        nn.utils.clip_grad_norm_(part.values(), max_norm)
    return norm


def _forget_gradients(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


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
    policy: PolicyWithValueHead,
    policy_forward: nn.Module,
    minibatch: Minibatch,
    config: Config,
    loss: LossSettings,
    processes: Processes,
    tally: "_Tally",
) -> SeenStates:
    """Add up the gradient of a minibatch over this process's micro-batches, then over processes.

    Returns:
        The states that further value updates read, if there are any to come.
    """
    mine = minibatch.select(_my_rows(minibatch.batch.tokens.lengths, processes))
    budget = training_tokens(config.ppo, processes.device.type, processes.half)
    groups = list(micro_batches(mine.batch.tokens.lengths, budget))
    with states_seen(policy.value_head, further_updates(config, loss) > 0) as seen:
        for number, group in enumerate(groups):
            part = mine.select(group)
            layout = lay_out(part.batch.tokens).to(processes.device)
            part = part.to(processes.device)
            seen.parts.append(part)
            micro, weights = part.batch, part.weights[:, None]
            with processes.no_sync(policy_forward, skip=number + 1 < len(groups)):
                outputs: TokenOutputs = policy_forward(
                    layout, config.rollout.temperature, loss.entropy_coefficient > 0
                )
                terms = ppo_loss(outputs, micro, loss)
                total = masked_sum(terms.loss * weights, micro.tokens.response_mask)
                processes.backward(total)
            tally.add(total, terms, outputs, micro)
    return seen


def _accumulate_text_gradients(
    policy: PolicyWithValueHead,
    text: Tokens,
    config: Config,
    processes: Processes,
    tally: "_Tally",
) -> None:
    """Add up the gradient of the next-token loss on given text over this process's micro-batches.

    Through the bare language model, past the wrapper and the value head: these gradients wait in
    the parameters until the last backward pass of the PPO loss brings all processes together.
    """
    if config.ptx is None:
        return
    tokens = int(text.response_mask.sum())  # of all processes and micro-batches
    lm = base_model(policy.lm)
    mine = text.select(_my_rows(text.lengths, processes))
    for group in micro_batches(mine.lengths, training_tokens(config.ppo, processes.device.type)):
        layout = lay_out(mine.select(group)).to(processes.device)
        with processes.autocast():
            states = hidden_states(find_trunk(lm), layout)
            logprobs, _ = token_logprobs(lm, states, layout.targets, temperature=1.0)
        loss = -logprobs.sum() / tokens
        processes.backward(config.ptx.coefficient * loss)
        tally.add_text(loss)


class _Tally:
    """Sums of per-token quantities, brought together over processes once an update."""

    def __init__(self, processes: Processes, skipped_in_row: int = 0) -> None:
        self.processes = processes
        self.sums = torch.zeros(len(SUMS) + 1, dtype=torch.float64)
        self.minibatches = 0  # begun
        self.minibatch_tokens = 0  # over all processes
        self.minibatch_sums = torch.zeros_like(self.sums)
        self.minibatch_loss = 0.0  # this process's part
        self.minibatch_text_loss = 0.0  # the same, of the next-token loss
        self.text_losses: list[float] = []
        self.ratio_max = 0.0
        self.ratio_first_error = 0.0
        self.first_log_ratios: list[Tensor] = []
        self.grad_norms: list[float] = []
        self.skipped = 0
        self.skipped_in_row = skipped_in_row

    def start_minibatch(self, tokens: int) -> None:
        """Begin to count a minibatch of so many tokens."""
        self.minibatches += 1
        self.minibatch_tokens = tokens
        self.minibatch_sums = torch.zeros_like(self.sums)
        self.minibatch_loss = self.minibatch_text_loss = 0.0

    def add_text(self, loss: Tensor) -> None:
        """Count one micro-batch of given text."""
        self.minibatch_text_loss += float(loss.detach())

    @torch.no_grad()
    def add(self, loss: Tensor, terms: LossTerms, outputs: TokenOutputs, micro: TrainBatch) -> None:
        """Count one micro-batch."""
        self.minibatch_loss += float(loss)
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
        self.minibatch_sums += torch.stack([*sums, mask.sum()]).double().cpu()
        ratio = torch.where(mask, terms.ratio, torch.ones_like(terms.ratio))
        self.ratio_max = max(self.ratio_max, float(ratio.max()))
        if not self.grad_norms:
            error = float((ratio - 1).abs().max())
            self.ratio_first_error = max(self.ratio_first_error, error)
            self.first_log_ratios.append((outputs.logprobs - micro.logprobs)[mask].cpu())

    def minibatch_kl(self) -> float:
        """KL(new || old) of the present minibatch over all processes, nats a token."""
        mine = self.minibatch_sums[SUMS.index("kl")].float()
        return float(self.processes.sum(mine)) / self.minibatch_tokens

    def moved_too_far(self, target_kl: float | None) -> bool:
        """Whether the policy has left the old one by more than this; the minibatch then counts."""
        if target_kl is None or self.minibatch_kl() <= target_kl:
            return False
        self.keep_minibatch()
        return True

    def is_finite(self, grad_norm: float) -> bool:
        """Whether an optimizer step may be made: alike on every process."""
        mine = torch.tensor(self.minibatch_loss + self.minibatch_text_loss)
        return math.isfinite(grad_norm) and math.isfinite(float(self.processes.sum(mine)))

    def keep_minibatch(self) -> None:
        """Let the present minibatch count."""
        self.sums += self.minibatch_sums
        self.text_losses.append(self.minibatch_text_loss)

    def add_step(self, grad_norm: float) -> None:
        """Count one optimizer step and its minibatch."""
        self.keep_minibatch()
        self.grad_norms.append(grad_norm)
        self.skipped_in_row = 0

    def add_skip(self) -> None:
        """Count one optimizer step that is not made; its minibatch does not count."""
        self.skipped += 1
        self.skipped_in_row += 1

    def finish(self) -> UpdateStats:
        """Means over tokens, maxima over processes."""
        *sums, tokens = self.processes.sum(self.sums.float()).tolist()
        text_loss = float(self.processes.sum(torch.tensor(sum(self.text_losses))))
        means = dict(zip(SUMS, (value / max(tokens, 1) for value in sums), strict=True))
        first = torch.cat([torch.zeros(0), *self.first_log_ratios])
        parts = self.processes.gather_list([(self.ratio_max, self.ratio_first_error, first)])
        return UpdateStats(
            policy_loss=means["policy"],
            value_loss=means["value"],
            policy_clip_fraction=means["policy_clipped"],
            value_clip_fraction=means["value_clipped"],
            kl=means["kl"],
            ref_kl=means["ref_kl"],
            entropy=means["entropy"],
            ratio_max=max(part[0] for part in parts),
            ratio_first_error=max(part[1] for part in parts),
            first_log_ratios=torch.cat([part[2] for part in parts]),
            ptx_loss=text_loss / max(len(self.text_losses), 1),
            grad_norm=sum(self.grad_norms) / max(len(self.grad_norms), 1),
            optimizer_steps=len(self.grad_norms),
            skipped=self.skipped,
            skipped_in_row=self.skipped_in_row,
        )
