"""Our softmax against autograd of the plain formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_ppo.models import forward, softmax
from rlhf_ppo.models.forward import token_logprobs
from rlhf_ppo.models.softmax import logprobs_and_entropies

TEMPERATURES = [0.7, 1.0, 2.0]
ROWS, VOCABULARY = 23, 17


def inputs(seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(ROWS, VOCABULARY, generator=generator)
    return logits, torch.randint(VOCABULARY, (ROWS,), generator=generator)


def plain(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The formulas, with autograd's own gradients."""
    table = (logits / temperature).log_softmax(-1)
    return table[torch.arange(len(targets)), targets], -(table.exp() * table).sum(-1)


def ours(leaf: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool = True) -> Any:
    """As the output layer calls it: on logits that nobody else keeps."""
    return logprobs_and_entropies(leaf * 1, targets, temperature, entropy_gradient)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("scale", [0.1, 3.0, 300.0])
def test_the_numbers_are_those_of_log_softmax(temperature: float, scale: float) -> None:
    logits, targets = inputs(scale=scale)
    expected = plain(logits.double(), targets, temperature)
    for one, other in zip(ours(logits, targets, temperature), expected, strict=True):
        assert one.dtype == torch.float32
        atol = 1e-5 * max(1.0, scale / 10)  # what float32 holds of logits that large
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=atol)


def weights_of(used: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(ROWS, generator=generator) for _ in range(2)]
    return [w * (name in used) for w, name in zip(weights, ("logprobs", "entropies"), strict=True)]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("used", ["logprobs", "entropies", "logprobs and entropies"])
def test_the_gradient_is_autograds(used: str, temperature: float) -> None:
    logits, targets = inputs()
    gradients = []
    for function in (ours, plain):
        leaf = logits.clone().requires_grad_()
        found = function(leaf, targets, temperature)
        sum((w * x).sum() for w, x in zip(weights_of(used), found, strict=True)).backward()
        gradients.append(leaf.grad)
    assert float(gradients[1].norm()) > 0.1  # type: ignore[union-attr]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("used", [0, 1])
def test_the_gradient_is_autograds_when_the_other_output_is_never_used(used: int) -> None:
    logits, targets = inputs()
    gradients = []
    for function in (ours, plain):
        leaf = logits.clone().requires_grad_()
        function(leaf, targets, 0.7)[used].square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_a_gradient_through_a_few_entropies_alone_is_not_overlooked() -> None:
    """One row with and many without one: each row gets its own."""
    logits, targets = inputs()
    gradients = []
    for function in (ours, plain):
        leaf = logits.clone().requires_grad_()
        logprobs, entropies = function(leaf, targets, 1.0)
        (logprobs[:5].sum() - entropies[3]).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    assert not bool(gradients[0][5:].any())  # type: ignore[index]


def test_without_entropy_gradient_none_flows_through_the_entropy() -> None:
    logits, targets = inputs()
    leaf = logits.clone().requires_grad_()
    logprobs, entropies = ours(leaf, targets, 1.0, entropy_gradient=False)
    assert logprobs.requires_grad
    assert not entropies.requires_grad
    (logprobs.sum() + entropies.sum()).backward()
    alone = logits.clone().requires_grad_()
    plain(alone, targets, 1.0)[0].sum().backward()
    torch.testing.assert_close(leaf.grad, alone.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_gradient_has_the_type_of_the_logits(dtype: torch.dtype) -> None:
    logits, targets = inputs()
    rounded = logits.to(dtype)
    leaf, exact = (x.clone().requires_grad_() for x in (rounded, rounded.float()))
    found, expected = ours(leaf, targets, 0.7), plain(exact, targets, 0.7)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    sum(x.sum() for x in found).backward()
    sum(x.sum() for x in expected).backward()  # type: ignore[union-attr]
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype
    torch.testing.assert_close(leaf.grad.float(), exact.grad, rtol=1e-2, atol=1e-2)


def test_gradients_reach_the_output_layer_that_made_the_logits() -> None:
    """The logits' memory is written over; the layer's own gradient must not need it."""
    states, targets = inputs()
    gradients = []
    for function in (logprobs_and_entropies, lambda *call: plain(*call[:3])):
        torch.manual_seed(0)
        layer = torch.nn.Linear(VOCABULARY, VOCABULARY)
        leaf = states.clone().requires_grad_()
        sum(x.sum() for x in function(layer(leaf).tanh() * 4, targets, 0.7, True)).backward()
        gradients.append([leaf.grad, layer.weight.grad, layer.bias.grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_certain_token_has_no_entropy_and_no_slope() -> None:
    logits = torch.zeros(1, 4)
    logits[0, 2] = 1000.0
    leaf = logits.clone().requires_grad_()
    logprobs, entropies = ours(leaf, torch.tensor([2]), 1.0)
    assert (float(logprobs), float(entropies)) == (0.0, 0.0)
    (logprobs + entropies).sum().backward()
    assert leaf.grad is not None
    assert not bool(leaf.grad.any())


class OneLayer:
    """As much of a model as `token_logprobs` looks at."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.head = torch.nn.Linear(8, VOCABULARY, bias=False)
        self.config = type("Config", (), {"vocab_size": VOCABULARY})()
        self.config.get_text_config = lambda: self.config

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("size", [1, 5, ROWS - 1, ROWS])
def test_chunks_give_the_same_as_the_whole(
    size: int, entropy_gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = inputs()[1]
    states = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(2))
    seen: list[int] = []
    kept = softmax.logprobs_and_entropies

    def count(logits: Tensor, *rest: Any) -> Any:
        seen.append(len(logits))
        return kept(logits, *rest)

    monkeypatch.setattr(forward, "logprobs_and_entropies", count)
    results = []
    for tokens in (size, 10 * ROWS):
        monkeypatch.setattr(forward, "_chunk_tokens", lambda *_, tokens=tokens: tokens)
        model, leaf = OneLayer(), states.clone().requires_grad_()
        found = token_logprobs(model, leaf, targets, 0.7, entropy_gradient)  # type: ignore[arg-type]
        if tokens == size:
            assert max(seen) == size and sum(seen) == ROWS
        assert found[1].requires_grad == entropy_gradient
        sum(x.square().sum() for x in found).backward()  # type: ignore[union-attr]
        results.append([*found, leaf.grad, model.head.weight.grad])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "cuda", "another"])
def test_chunks_hold_their_bytes_of_logits_and_never_fewer_than_256_tokens(device: str) -> None:
    model: Any = OneLayer()
    for vocabulary in (100, 50_000, 10**9):
        model.config.vocab_size = vocabulary
        tokens = forward._chunk_tokens(model, device)
        allowed = forward.CHUNK_BYTES.get(device, forward.CHUNK_BYTES["cuda"])
        assert tokens == 256 or 4 * vocabulary * tokens <= allowed < 4 * vocabulary * (tokens + 1)
    assert tokens == 256
