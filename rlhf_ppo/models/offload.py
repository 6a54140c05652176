"""Frozen models that wait in the CPU's memory while they are not asked."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def borrowed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, a frozen model is on `device`; afterwards where it was.

    Nothing is copied back: what waits in the CPU's memory is still there, as nobody trains it.
    """
    away = [t for t in (*model.parameters(), *model.buffers()) if t.device.type != device.type]
    homes = [tensor.data for tensor in away]
    for tensor in away:
        tensor.data = tensor.data.to(device)
    try:
        yield
    finally:
        for tensor, home in zip(away, homes, strict=True):
            tensor.data = home
