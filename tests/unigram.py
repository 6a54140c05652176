"""A policy of two tables, and processes that play a part: updates whose every number is countable.

Each token of a response has a logit and a value of its own, wherever it stands, so all that an
update reports can be computed with plain Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from helpers import make_config
from tensors import ragged_mask
from torch import Tensor, nn

from rlhf_ppo.algorithm.batch import TokenOutputs, Tokens, TrainBatch
from rlhf_ppo.models.forward import Layout, spread
from rlhf_ppo.training.train_batch import loss_settings
from rlhf_ppo.training.update import UpdateStats, ppo_update

LOGITS = (0.0, 1.0, -0.5, 0.3, 2.0)
VALUES = (0.0, 0.7, -0.2, 1.5, 0.4)


class Unigram(nn.Module):
    """log pi(token) = log softmax(logits / temperature)[token]; V(token) = values[token]."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(LOGITS))
        self.values = nn.Parameter(torch.tensor(VALUES))
        self.temperatures: list[float] = []

    def forward(self, layout: Layout, temperature: float, with_entropy: bool = False) -> Any:
        """What is said of each response token; one call a micro-batch."""
        self.temperatures.append(temperature)
        table = (self.logits / temperature).log_softmax(dim=0)
        entropy = -(table.exp() * table).sum()
        if not with_entropy:
            entropy = entropy.detach()
        columns = (table[layout.targets], self.values[layout.targets])
        spread_out = [spread(column, layout.mask) for column in columns]
        return TokenOutputs(*spread_out, spread(entropy.expand(len(layout.targets)), layout.mask))

    def policy_parameters(self) -> dict[str, nn.Parameter]:
        """As `PolicyWithValueHead`."""
        return {"logits": self.logits}

    def value_parameters(self) -> dict[str, nn.Parameter]:
        """As `PolicyWithValueHead`."""
        return {"values": self.values}


class Stage:
    """Processes by script: what the norms are, what the other processes add."""

    def __init__(
        self,
        norms: Sequence[float] = (),
        world: int = 1,
        others: float = 0.0,
        maxima: Sequence[tuple[float, float, Tensor]] = (),
    ) -> None:
        """`norms`: of the optimizer steps in turn, then the true ones; `others`: added to sums."""
        self.norms, self.rank, self.world = list(norms), 0, world
        self.others, self.maxima = others, list(maxima)
        self.device, self.half = torch.device("cpu"), False
        self.told = 0  # skipped steps
        self.waits: list[bool] = []  # of each micro-batch: does it keep its gradient to itself?

    def sum(self, tensor: Tensor) -> Tensor:
        """As if each other process had the same, and `others` on top."""
        return tensor * self.world + self.others

    def gather_list(self, part: list[Any]) -> list[Any]:
        """This process's entries, then those of the others."""
        return part + self.maxima

    @contextmanager
    def no_sync(self, model: Any, skip: bool) -> Iterator[None]:
        """Note what is asked."""
        self.waits.append(skip)
        yield

    def backward(self, loss: Tensor) -> None:
        """Plain."""
        loss.backward()

    def clip_grad_norm(self, model: nn.Module, limit: float | None) -> float:
        """The scripted norm, or the true one; nothing is clipped."""
        if self.norms:
            return self.norms.pop(0)
        found = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
        return math.sqrt(float(sum(found)))

    def skip_step(self) -> None:
        """Count."""
        self.told += 1

    def autocast(self) -> AbstractContextManager[None]:
        """None."""
        return nullcontext()


class Recorder:
    """An optimizer that keeps the gradients it is given; with a rate it takes plain steps too."""

    def __init__(self, policy: Unigram, rate: float = 0.0) -> None:
        self.policy, self.rate = policy, rate
        self.gradients: list[dict[str, Tensor | None]] = []

    def step(self) -> None:
        """Keep the gradients; descend."""
        named = dict(self.policy.named_parameters())
        self.gradients.append(
            {name: None if p.grad is None else p.grad.clone() for name, p in named.items()}
        )
        with torch.no_grad():
            for parameter in named.values():
                if parameter.grad is not None:
                    parameter -= self.rate * parameter.grad

    def zero_grad(self) -> None:
        """Forget."""
        self.policy.zero_grad()


def batch_of(*responses: Sequence[int], **columns: float) -> TrainBatch:
    """Responses to one prompt of two tokens; each column is one number for all tokens.

    `moved`: log-ratio now to then of every token; `away`: of now to the reference.
    """
    mask = ragged_mask([len(row) for row in responses], max(map(len, responses)))
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    for row, tokens in enumerate(responses):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    now = torch.tensor(LOGITS).log_softmax(dim=0)[ids]
    rows = len(responses)

    def column(name: str, start: Tensor, default: float = 0.0) -> Tensor:
        return (start + columns.get(name, default)) * mask

    zero = torch.zeros(mask.shape)
    return TrainBatch(
        tokens=Tokens(
            torch.ones(rows, 2, dtype=torch.int64), torch.full((rows,), 2), ids * mask, mask
        ),
        logprobs=(now - columns.get("moved", 0.0)) * mask,
        ref_logprobs=(now - columns.get("away", 0.0)) * mask,
        values=column("values", zero),
        advantages=column("advantages", zero, 1.0),
        returns=column("returns", zero),
    )


def play(
    batch: TrainBatch,
    stage: Stage | None = None,
    rate: float = 0.0,
    policy: Unigram | None = None,
    guard: dict[str, Any] | None = None,
    value: dict[str, Any] | None = None,
    kl: dict[str, Any] | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    ppo: dict[str, Any] | None = None,
    ptx: dict[str, Any] | None = None,
    **arguments: Any,
) -> tuple[UpdateStats, Recorder]:
    """One update of a unigram policy; returns what it reports and what the optimizer got."""
    config = make_config(
        ppo={"epochs": 1, "minibatches": 1} | (ppo or {}),
        guard=guard or {},
        value={"clip_range": None} | (value or {}),
        kl=kl or {},
        rollout={"temperature": temperature},
        ptx=ptx,
    )
    policy = Unigram() if policy is None else policy
    recorder, anything = Recorder(policy, rate), stage or Stage()
    roles: Any = policy
    optimizer: Any = recorder
    processes: Any = anything
    stats = ppo_update(
        roles, policy, optimizer, batch, config, loss_settings(config, config.kl.beta, 1.0),
        torch.Generator().manual_seed(seed), processes, **arguments,
    )  # fmt: skip
    return stats, recorder
