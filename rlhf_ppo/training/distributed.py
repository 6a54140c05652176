"""Processes, devices and number formats; `trackers.py` alone imports Accelerate besides.

After collection the whole rollout is made known to every process. From then on every number that
is not a gradient (advantages, denominators, shuffles, metrics) is computed alike everywhere, so
there is nothing to keep in step and little to wait for.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn

from rlhf_ppo.algorithm.batch import Rows, concatenate
from rlhf_ppo.config import Config
from rlhf_ppo.errors import UserError
from rlhf_ppo.training.trackers import Trackers

T = TypeVar("T", bound=Rows)


class Processes:
    """This process among the others of the run."""

    def __init__(self, config: Config, trackers: Trackers | None = None) -> None:
        """Join the process group that `accelerate launch` or `torchrun` describes.

        Args:
            config: settings.
            trackers: that `track` sends numbers to; they stay open.

        Raises:
            UserError: sharding that is not supported, or a precision that the device lacks.
        """
        # Transformers' Trainer (the supervised and reward stages) leaves its own state behind.
        AcceleratorState._reset_state()
        GradientState._reset_state()
        self.trackers = trackers
        try:
            self.accelerator = Accelerator(
                # Without being told, Accelerate takes the processes of `torchrun` on a machine
                # without an accelerator for as many lone ones, all writing to one folder.
                cpu=not torch.accelerator.is_available(),
                mixed_precision=config.hardware.mixed_precision,
            )
        except (ValueError, ImportError) as error:
            raise UserError(f"hardware.mixed_precision: {error}") from error
        self._refuse_sharding()
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched != self.world:
            raise UserError(
                f"{launched} processes were launched, but they do not find one another (each sees "
                f"{self.world}). Use `accelerate launch`, or a single process."
            )
        if self.device.type == "cpu":
            torch.set_num_threads(cpu_threads(config.hardware.cpu_threads)[0])

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """How many processes there are."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """True in the one process that prints and writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        """This process's device."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def precision(self) -> str:
        """What autocast computes products in: no, bf16 or fp16."""
        return str(self.accelerator.mixed_precision)

    @property
    def sharers(self) -> int:
        """How many processes share the memory of this one's device."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.device.type == "cpu" else 1

    @property
    def half(self) -> bool:
        """Whether autocast is on."""
        return self.precision in ("bf16", "fp16")

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()

    def share(self, total: int) -> slice:
        """The contiguous part of `total` items that belongs to this process."""
        return slice(self.rank * total // self.world, (self.rank + 1) * total // self.world)

    def gather(self, part: T) -> T:
        """Every process's part, in the order of `share`, on every process (and on the CPU)."""
        if self.world == 1:
            return part
        parts: list[T] = gather_object([part])
        return concatenate(parts)

    def gather_list(self, part: list[Any]) -> list[Any]:
        """Every process's list, one after the other, on every process."""
        if self.world == 1:
            return part
        gathered: list[Any] = gather_object(part)
        return gathered

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes."""
        if self.world == 1:
            return tensor
        total: Tensor = self.accelerator.reduce(tensor.to(self.device), reduction="sum")
        return total

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Move to the device and wrap for autocast and gradient averaging."""
        prepared: tuple[nn.Module, torch.optim.Optimizer]
        prepared = self.accelerator.prepare(model, optimizer)
        return prepared

    def autocast(self) -> AbstractContextManager[Any]:
        """The run's autocast, for forward passes outside the wrapped model."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def no_sync(self, model: nn.Module, skip: bool) -> AbstractContextManager[Any]:
        """While `skip`, gradients stay on this process; the next backward pass averages them."""
        if not skip or self.world == 1:
            return nullcontext()
        context: AbstractContextManager[Any] = self.accelerator.no_sync(model)
        return context

    def backward(self, loss: Tensor) -> None:
        """Backward pass of this process's part of a loss that is a sum over all processes.

        Averaging over processes, as DDP does, would divide by their number: undone here.
        """
        self.accelerator.backward(loss * self.world)

    def clip_grad_norm(self, model: nn.Module, max_norm: float | None) -> float:
        """Scale gradients down to `max_norm` (None: only measure); returns the norm before."""
        limit = float("inf") if max_norm is None else max_norm
        norm = self.accelerator.clip_grad_norm_(model.parameters(), limit)
        return 0.0 if norm is None else float(norm)

    def skip_step(self) -> None:
        """Let an optimizer step go by; a loss scaler (fp16) must hear of it to lower its scale."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()

    def track(self, values: Mapping[str, float], step: int, stage: str = "ppo") -> None:
        """Send the numbers of a step to the trackers, if there are any."""
        if self.trackers is not None:
            self.trackers.log(values, step, stage)

    def on_main(self, action: Callable[[], Any]) -> None:
        """Run `action` in the main process; the others wait until it is done."""
        if self.is_main:
            action()
        self.wait()

    def _refuse_sharding(self) -> None:
        kind = self.accelerator.distributed_type
        if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise UserError(
                f"{kind.value}: sharded models are not supported yet, because every process "
                "generates with a whole model. Launch with plain data parallelism (--multi_gpu), "
                "and use the lora section when memory is short."
            )


def cpu_threads(configured: int) -> tuple[int, str]:
    """Threads of this process on a CPU, and what decided on them.

    `OMP_NUM_THREADS` counts unless the setting is there. `accelerate launch` and `torchrun` set it
    to 1 where the user has not: under them a 1 says nothing, and the cores are shared out.

    Args:
        configured: `hardware.cpu_threads`, 0: not set.
    """
    if configured:
        return configured, "hardware.cpu_threads"
    first, _, _ = os.environ.get("OMP_NUM_THREADS", "").partition(",")  # one for each nesting
    wished = int(first) if first.strip().isdecimal() else 0
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if wished > 1 or (wished == 1 and not launched):
        return wished, "OMP_NUM_THREADS"
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    shared = f", shared by {local} processes" if local > 1 else ""
    return max(1, available_cores() // local), f"{available_cores()} cores{shared}"


def threads_line(configured: int) -> str:
    """How many threads compute, and why; with a word about more of them than there are cores.

    Args:
        configured: `hardware.cpu_threads`.
    """
    count, reason = cpu_threads(configured)
    line = f"computing on the CPU, {count} thread(s) a process ({reason})"
    whole = count * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if whole > available_cores():
        line += (
            f"; {whole} in all are more than the {available_cores()} cores, and slower: lower "
            "hardware.cpu_threads"
        )
    return line


def available_cores() -> int:
    """Cores that this process may use; macOS and Windows only tell how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def folder_is_used(folder: Path) -> bool:
    """True if there is anything at `folder` already."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
