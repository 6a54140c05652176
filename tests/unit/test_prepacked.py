"""Reordered weights give the layer's own results, and the layer comes back as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny_model
from torch import Tensor, nn

from rlhf_ppo.models.prepacked import prepacked_linears

# Asked of PyTorch, not of the code under test: broken, that would skip its own tests.
AVAILABLE = torch.backends.mkldnn.is_available()
needs_operators = pytest.mark.skipif(not AVAILABLE, reason="this PyTorch has no such operators")


class Scaled(nn.Linear):
    """A layer that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def changed(model: nn.Module) -> list[str]:
    """Layers whose forward is not their class's."""
    return [name for name, layer in model.named_modules() if "forward" in vars(layer)]


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 7, bias=False))


@needs_operators
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("announced", [1, 16, 64])
@torch.no_grad()
def test_results_are_those_of_the_plain_layer_for_any_batch(announced: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 130, bias=bias)
    inputs = [torch.randn(rows, 96) for rows in (1, 2, 3, 15, 16, 17, 33, 64)]
    inputs += [torch.randn(4, 1, 96), torch.randn(2, 5, 96), torch.randn(1, 7, 96)]
    inputs += [torch.randn(96), torch.randn(96, 8).T, torch.randn(8, 4, 96)[:, -1]]
    expected = [layer(x) for x in inputs]
    with prepacked_linears(layer, announced):
        assert changed(layer) == [""]
        for x, other in zip(inputs, expected, strict=True):
            torch.testing.assert_close(layer(x), other, rtol=1e-5, atol=1e-5)


@needs_operators
@torch.no_grad()
def test_the_class_s_own_forward_is_back_afterwards() -> None:
    model = two_layers()
    x = torch.randn(3, 24)
    before, state = model(x), {name: t.clone() for name, t in model.state_dict().items()}
    with prepacked_linears(model, 3):
        assert changed(model) == ["0", "2"]
    assert changed(model) == []
    assert torch.equal(model(x), before)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


@needs_operators
def test_the_class_s_own_forward_is_back_after_an_error_and_learns() -> None:
    model = two_layers()
    with pytest.raises(KeyboardInterrupt), prepacked_linears(model, 3):
        raise KeyboardInterrupt
    assert changed(model) == []
    model(torch.randn(3, 24)).sum().backward()
    assert all(bool(p.grad.any()) for p in model.parameters())  # type: ignore[union-attr]


@torch.no_grad()
def test_each_use_sees_the_weights_of_its_time() -> None:
    model = two_layers()
    x = torch.randn(3, 24)
    for _ in range(2):
        model[0].weight.add_(0.1)  # type: ignore[operator]
        expected = model(x)
        with prepacked_linears(model, 3):
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        Scaled(8, 8),
        nn.Linear(8, 8, dtype=torch.float64),
        nn.Linear(8, 8, device="meta"),
        nn.Embedding(8, 8),
    ],
    ids=["subclass", "float64", "another device", "embedding"],
)
def test_other_layers_are_left_alone(layer: nn.Module) -> None:
    model = nn.ModuleList([layer, nn.Linear(8, 8)])
    with prepacked_linears(model, 4):
        assert "0" not in changed(model)
        assert changed(model) == ["1"] * AVAILABLE


def missing(*_: Any) -> Any:
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute")


def failing(*_: Any) -> Any:
    raise RuntimeError("could not create a primitive")


@needs_operators
@pytest.mark.parametrize("name", ["_reorder_linear_weight", "_linear_pointwise"])
@pytest.mark.parametrize(
    "replacement",
    [
        missing,
        failing,
        lambda x, *_: torch.zeros(3, 3),
        lambda x, *_: torch.full((1, 40), torch.nan),
    ],
    ids=["missing", "failing", "wrong shape", "nan"],
)
@torch.no_grad()
def test_without_working_operators_nothing_changes(
    name: str, replacement: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = two_layers()
    x = torch.randn(3, 24)
    before = model(x)
    monkeypatch.setattr(torch.ops.mkldnn, name, replacement)
    with prepacked_linears(model, 3):
        assert changed(model) == []
        assert torch.equal(model(x), before)
    assert changed(model) == []


@needs_operators
@torch.no_grad()
def test_operators_that_give_wrong_results_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.ops.mkldnn._linear_pointwise
    for wrong in (
        lambda x, w, bias, *rest: right(x, w, None, *rest),
        lambda x, w, bias, *rest: right(x, w, bias, *rest) * 1.01,
        lambda x, w, bias, *rest: right(x, w, bias, *rest).flip(-1),
    ):
        model = two_layers()
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", wrong)
        with prepacked_linears(model, 3):
            assert changed(model) == []


@needs_operators
@torch.no_grad()
def test_under_autocast_the_layers_compute_as_autocast_says() -> None:
    model = two_layers()
    x = torch.randn(3, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(x)
        with prepacked_linears(model, 3):
            found = model(x)
        assert changed(model) == []
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    assert not torch.allclose(found.float(), model(x), rtol=0, atol=1e-6), "rounded, as it says"


@needs_operators
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_weights_in_bfloat16_are_reordered_too(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 130, bias=bias, dtype=torch.bfloat16)
    inputs = [torch.randn(rows, 96).bfloat16() for rows in (1, 3, 16, 33)]
    expected = [layer(x) for x in inputs]
    with prepacked_linears(layer, 16):
        assert changed(layer) == [""]
        for x, other in zip(inputs, expected, strict=True):
            assert layer(x).dtype == torch.bfloat16
            torch.testing.assert_close(layer(x), other, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("family", ["llama", "neox"])
@torch.no_grad()
def test_a_whole_model_with_tied_weights_says_the_same(family: str) -> None:
    model = tiny_model(family)
    ids = torch.arange(12).view(3, 4)
    expected = model(ids).logits
    with prepacked_linears(model, 3):
        assert bool(changed(model)) == AVAILABLE
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(ids).logits, expected)
