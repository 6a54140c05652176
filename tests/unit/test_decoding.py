"""The decode loop against the model's plain forward pass, token by token, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import encoded_prompts, tiny_model
from torch import Tensor

from rlhf_ppo.data.prompts import EncodedPrompt, Prompt
from rlhf_ppo.models.forward import find_trunk
from rlhf_ppo.models.packing import enable_packing
from rlhf_ppo.rollout.generation import SamplingSettings, generate

LIMIT = 7
STOPS = (1, 2, 3, 4, 5, 6, 7)
SETTINGS = SamplingSettings(LIMIT, temperature=1.6, stop_ids=STOPS, batch_size=4)
# Of different lengths, out of order, one of them three times.
PROMPTS = encoded_prompts(
    [[17] * 9, [8], [9, 10, 11, 12], [8], [15, 16], [18, 19, 20, 21, 22], [8], [30, 31, 32]]
)


def noise_of(prompts: list[EncodedPrompt], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(prompts), LIMIT, generator=generator, dtype=torch.float64)


def by_hand(
    model: Any, ids: tuple[int, ...], noise: list[float], settings: SamplingSettings = SETTINGS
) -> tuple[list[int], list[float], bool]:
    """Tokens, their log-probabilities at the temperature, and whether a stop token came."""
    tokens: list[int] = []
    logprobs: list[float] = []
    for number in noise:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*ids, *tokens]])).logits[0, -1].float()
        if settings.temperature == 0:
            token, logprob = int(logits.argmax()), 0.0
        else:
            table = (logits / settings.temperature).log_softmax(dim=-1)
            token, total = 0, 0.0
            while total + float(table[token].double().exp()) <= number:
                total += float(table[token].double().exp())
                token += 1
            logprob = float(table[token])
        tokens.append(token)
        logprobs.append(logprob)
        if token in settings.stop_ids:
            return tokens, logprobs, True
    return tokens, logprobs, False


def model_of(kind: str) -> Any:
    family, _, packed = kind.partition(" ")
    model = tiny_model(family)
    if packed:
        assert enable_packing(model, find_trunk(model))
    return model


@pytest.mark.parametrize("temperature", [1.6, 0.4, 0.0])
@pytest.mark.parametrize("kind", ["llama", "llama packed", "gpt2", "gpt2 packed"])
def test_responses_are_those_of_the_plain_forward_pass(kind: str, temperature: float) -> None:
    """Prompts padded on the left or packed, in batches of four, finished rows leaving."""
    model, noise = model_of(kind), noise_of(PROMPTS)
    settings = replace(SETTINGS, temperature=temperature)
    found = generate(model, PROMPTS, noise, settings)
    lengths, ends = set(), set()
    for row, prompt in enumerate(PROMPTS):
        tokens, logprobs, stopped = by_hand(model, prompt.ids, noise[row].tolist(), settings)
        mask = found.tokens.response_mask[row]
        assert found.tokens.response_ids[row][mask].tolist() == tokens
        assert mask.tolist() == [place < len(tokens) for place in range(mask.shape[0])]
        sampled = found.sampling_logprobs[row][mask].tolist()
        assert sampled == pytest.approx(logprobs, abs=1e-4)
        assert bool(found.stopped[row]) == stopped
        length = int(found.tokens.prompt_lengths[row])
        assert tuple(found.tokens.prompt_ids[row, :length].tolist()) == prompt.ids
        lengths.add(len(tokens))
        ends.add(stopped)
    if temperature == 1.6:
        assert len(lengths) > 2 and ends == {True, False}  # ragged, or this shows little


def test_a_response_names_the_place_of_its_prompt_in_the_data() -> None:
    prompts = [
        EncodedPrompt(Prompt(row, f"d:{row}", "x", {}), ids)
        for row, ids in ((40, (8, 9)), (7, (8,)), (12, (8, 9, 10)))
    ]
    found = generate(tiny_model("llama"), prompts, noise_of(prompts), SETTINGS)
    assert found.prompt_rows.tolist() == [40, 7, 12]


@pytest.mark.parametrize("training", [True, False])
def test_a_model_with_dropout_is_sampled_without_and_left_as_it_was(training: bool) -> None:
    model = tiny_model("gpt2")
    expected = generate(model, PROMPTS, noise_of(PROMPTS), SETTINGS)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train(training)
    found = generate(model, PROMPTS, noise_of(PROMPTS), SETTINGS)
    assert torch.equal(found.tokens.response_ids, expected.tokens.response_ids)
    assert model.training == training


def test_any_stop_token_ends_a_response_and_is_its_last_token() -> None:
    model, noise = tiny_model("llama"), noise_of(PROMPTS, seed=3)
    found = generate(model, PROMPTS, noise, SETTINGS)
    last = [
        ids[mask].tolist()[-1]
        for ids, mask in zip(found.tokens.response_ids, found.tokens.response_mask, strict=True)
    ]
    assert [token in STOPS for token in last] == found.stopped.tolist()
    assert len({token for token in last if token in STOPS}) > 1
