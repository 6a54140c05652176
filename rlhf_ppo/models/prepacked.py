"""Linear layers with weights in the CPU library's own order, for the small batches of decoding.

A plain matrix product reorders the weights at each call. For a thousand tokens that is nothing; for
the sixteen of a decoding step it is half the time. The operators are PyTorch's own (its compiler
uses them) but private, so each use begins by trying them, and without them nothing changes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@contextmanager
def prepacked_linears(model: nn.Module, rows: int) -> Iterator[None]:
    """Inside, the model's linear layers use reordered copies of their weights; no gradients.

    Args:
        model: on a CPU; on other devices nothing happens. Its weights must not change inside.
        rows: tokens that will go through at once, for the library's choice of order.
    """
    changed: list[Any] = []
    try:
        for module in model.modules():
            # Not subclasses: an adapter or a quantised layer computes something else.
            # Nor a layer whose forward someone else has replaced.
            if type(module) is not nn.Linear or "forward" in vars(module):
                continue
            if _is_worth_it(module.weight):
                forward = _prepack(module, rows)
                if forward is None:
                    break
                setattr(module, "forward", forward)  # noqa: B010
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward  # the class's own shows again


def _is_worth_it(weight: Tensor) -> bool:
    known = (torch.float32, torch.bfloat16)
    return weight.device.type == "cpu" and weight.dtype in known and weight.dim() == 2


@torch.no_grad()
def _prepack(module: nn.Linear, rows: int) -> Any:
    """A forward function on a reordered copy; None where the operators are missing or differ."""
    # What autocast rounds at each call is rounded once here: the same numbers.
    dtype = module.weight.dtype
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    plain = module.weight.detach().to(dtype)
    bias = None if module.bias is None else module.bias.detach().to(dtype)
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(plain, rows)

        def forward(x: Tensor) -> Tensor:
            found: Tensor = torch.ops.mkldnn._linear_pointwise(
                x.to(dtype), weight, bias, "none", [], ""
            )
            return found

        probe = torch.linspace(-1, 1, module.in_features, dtype=dtype)[None]
        expected = linear(probe, plain, bias)
        scale = float(expected.abs().max()) + 1e-6
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        right = torch.allclose(forward(probe), expected, rtol=0, atol=tolerance * scale)
    except (AttributeError, IndexError, RuntimeError, TypeError):
        return None
    return forward if right else None
