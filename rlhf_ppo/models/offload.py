"""Frozen models that wait in the CPU's memory while they are not asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def borrowed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, a frozen model is on `device`; afterwards where it was.

    Nothing is copied back: what waits in the CPU's memory is still there, as nobody trains it.
    """
    homes: list[tuple[dict[str, Any], str, Tensor]] = [
        (slots, name, tensor)
        for module in model.modules()
        for slots in (module._parameters, module._buffers)
        for name, tensor in slots.items()
        if tensor is not None and tensor.device.type != device.type
    ]
    away = {id(tensor): _copy(tensor, device) for _, _, tensor in homes}  # a tied weight once
    for slots, name, tensor in homes:
        slots[name] = away[id(tensor)]
    try:
        yield
    finally:
        for slots, name, tensor in homes:
            slots[name] = tensor


def _copy(tensor: Tensor, device: torch.device) -> Tensor:
    copy = tensor.detach().to(device)
    return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy
