"""Further steps of the value function between two of the policy, on states it has seen already."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rlhf_ppo.algorithm.batch import Minibatch
from rlhf_ppo.algorithm.losses import LossSettings, value_loss
from rlhf_ppo.config import Config
from rlhf_ppo.models.forward import spread
from rlhf_ppo.models.policy import PolicyWithValueHead
from rlhf_ppo.training.distributed import Processes


@dataclass
class SeenStates:
    """What the value head was given in a minibatch, one entry a micro-batch of this process."""

    given: list[tuple[Tensor, ...]] = field(default_factory=list)  # states (N, H), where they are
    parts: list[Minibatch] = field(default_factory=list)  # on the device


@contextmanager
def states_seen(head: nn.Module, wanted: bool) -> Iterator[SeenStates]:
    """Keep the states that reach a value head inside this context, if they are wanted."""
    seen = SeenStates()
    if not wanted:
        yield seen
        return

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.given.append(tuple(each.detach() for each in given))

    handle = head.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def further_updates(config: Config, loss: LossSettings) -> int:
    """Steps of the values for each of the policy, beside the one that the two make together."""
    return config.value.steps - 1 if loss.value_coefficient else 0


def update_values(
    policy: PolicyWithValueHead,
    optimizer: torch.optim.Optimizer,
    seen: SeenStates,
    loss: LossSettings,
    config: Config,
    processes: Processes,
) -> None:
    """Train a value head that needs no gradient of the policy, on a minibatch that went through it.

    The states are those from before the policy's step: they cost no pass through its trunk.

    Args:
        policy: its other parameters have no gradient and so stay.
        optimizer: over all of them.
        seen: the states and their targets.
        loss: how new values may differ from old ones.
        config: settings.
        processes: this process among the others.
    """
    for _ in range(further_updates(config, loss)):
        for given, part in zip(seen.given, seen.parts, strict=True):
            batch, mask = part.batch, part.batch.tokens.response_mask
            values = spread(policy.value_head(*given), mask)
            errors = value_loss(values, batch.values, batch.returns, loss.value_clip_range)
            weighted = torch.where(mask, errors * part.weights[:, None], 0.0)
            processes.backward(loss.value_coefficient * weighted.sum())
        # Not through the wrapper, which waits for the policy's gradients before it averages.
        for parameter in policy.value_head.parameters():
            if parameter.grad is not None:
                parameter.grad = processes.sum(parameter.grad) / processes.world
        if math.isfinite(processes.clip_grad_norm(policy.value_head, config.ppo.max_grad_norm)):
            optimizer.step()
        else:
            processes.skip_step()
        optimizer.zero_grad()
