"""A response belongs to its prompt: no batch, order or padding changes it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import FAMILIES, encoded_prompts, plain_logprobs, tiny_model
from torch import Tensor

from rlhf_ppo.algorithm.batch import Responses
from rlhf_ppo.config import LoraConfig, ValueConfig
from rlhf_ppo.data.prompts import EncodedPrompt
from rlhf_ppo.models.forward import lay_out
from rlhf_ppo.models.policy import PolicyWithValueHead, build_policy
from rlhf_ppo.rollout.generation import SamplingSettings, generate
from rlhf_ppo.rollout.noise import sampling_noise

LIMIT = 8
SETTINGS = SamplingSettings(LIMIT, temperature=1.3, stop_ids=(1, 2, 3, 4, 5, 6), batch_size=64)
PROMPTS = encoded_prompts([[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16], [17] * 9, [18, 19]])


def noise_of(prompts: list[EncodedPrompt]) -> Tensor:
    return sampling_noise(1, "rollout", 1, [item.prompt.row for item in prompts], LIMIT)


def respond(
    model: torch.nn.Module,
    prompts: list[EncodedPrompt] = PROMPTS,
    settings: SamplingSettings = SETTINGS,
) -> Responses:
    return generate(model, prompts, noise_of(prompts), settings)  # type: ignore[arg-type]


def texts(responses: Responses) -> list[list[int]]:
    tokens = responses.tokens
    return [
        ids[mask].tolist()
        for ids, mask in zip(tokens.response_ids, tokens.response_mask, strict=True)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_log_probabilities_are_those_of_the_training_pass(family: str) -> None:
    model = tiny_model(family)
    responses = respond(model)
    with torch.no_grad():
        judged = PolicyWithValueHead(model)(lay_out(responses.tokens), SETTINGS.temperature)
    torch.testing.assert_close(judged.logprobs, responses.sampling_logprobs, rtol=0, atol=1e-4)
    assert len({len(text) for text in texts(responses)}) > 2  # ragged, or this shows little


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_generation_draws_what_a_full_forward_pass_would(family: str) -> None:
    model = tiny_model(family)
    noise = noise_of(PROMPTS)
    for row, text in enumerate(texts(respond(model))):
        ids = list(PROMPTS[row].ids)
        for t, token in enumerate(text):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            slices = (logits / SETTINGS.temperature).softmax(-1).double().cumsum(-1)
            assert token == int((slices <= noise[row, t] * slices[-1]).sum())
            ids.append(token)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_response_is_the_same_alone_and_among_others_in_any_order(family: str) -> None:
    model = tiny_model(family)
    together = texts(respond(model))
    for row, prompt in enumerate(PROMPTS):
        assert texts(respond(model, [prompt])) == [together[row]]
    order = [4, 1, 5, 0, 3, 2]
    assert texts(respond(model, [PROMPTS[row] for row in order])) == [together[r] for r in order]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_number_of_prompts_decoded_at_once_does_not_matter(size: int) -> None:
    model = tiny_model("llama")
    whole, parts = respond(model), respond(model, settings=replace(SETTINGS, batch_size=size))
    assert texts(whole) == texts(parts)
    assert torch.equal(whole.prompt_rows, parts.prompt_rows)
    assert torch.equal(whole.tokens.prompt_lengths, parts.tokens.prompt_lengths)
    assert torch.equal(whole.stopped, parts.stopped)


def test_a_response_ends_with_its_stop_token_or_at_the_limit() -> None:
    settings = replace(SETTINGS, stop_ids=(1, 4))
    responses = respond(tiny_model("llama"), settings=settings)
    found = texts(responses)
    for text, stopped in zip(found, responses.stopped.tolist(), strict=True):
        assert (text[-1] in settings.stop_ids) == stopped
        assert stopped or len(text) == LIMIT
        assert not set(text[:-1]) & set(settings.stop_ids)
    assert 0 < int(responses.stopped.sum()) < len(found)


def test_a_stop_token_drawn_at_the_very_limit_counts_as_stopped() -> None:
    model = tiny_model("llama")
    for row, text in enumerate(texts(respond(model))):
        exact = replace(SETTINGS, max_new_tokens=len(text))
        (again,), responses = [text], respond(model, [PROMPTS[row]], exact)
        assert texts(responses) == [again]
        assert bool(responses.stopped[0]) == (text[-1] in SETTINGS.stop_ids)


def test_prompts_made_of_the_stop_or_pad_token_are_read_like_any_other() -> None:
    model = tiny_model("llama")
    prompts = encoded_prompts([[0, 1, 0], [1, 1, 1, 1, 7], [0]])
    responses = respond(model, prompts)
    for row, text in enumerate(texts(responses)):
        mask = responses.tokens.response_mask[row]
        table = plain_logprobs_at(model, prompts[row].ids, text)
        torch.testing.assert_close(responses.sampling_logprobs[row][mask], table, rtol=0, atol=1e-4)


def plain_logprobs_at(model: torch.nn.Module, prompt: tuple[int, ...], text: list[int]) -> Tensor:
    """As `plain_logprobs`, at the sampling temperature."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *text]])).logits[0].float()
    table = (logits / SETTINGS.temperature).log_softmax(-1)
    return torch.stack([table[len(prompt) + t - 1, token] for t, token in enumerate(text)])


def test_the_models_pad_token_has_no_say() -> None:
    runs = []
    for pad in (0, 1, 17, None):
        model = tiny_model("llama")
        model.config.pad_token_id = model.generation_config.pad_token_id = pad
        runs.append(respond(model))
    for run in runs[1:]:
        assert texts(run) == texts(runs[0])
        assert torch.equal(run.sampling_logprobs, runs[0].sampling_logprobs)


def test_first_tokens_are_spread_as_softmax_says() -> None:
    model = tiny_model("llama", vocabulary=8)
    draws = 3000
    prompts = [replace(PROMPTS[0], ids=(5, 6, 7))] * draws
    noise = sampling_noise(3, "rollout", 1, [0] * draws, 1)
    settings = SamplingSettings(1, 1.3, (1,), batch_size=1000)
    tokens = generate(model, prompts, noise, settings).tokens.response_ids[:, 0]
    logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].detach()
    expected = (logits / 1.3).softmax(-1)
    error = (torch.bincount(tokens, minlength=8) / draws - expected).abs()
    assert bool((error < 4 * (expected * (1 - expected) / draws).sqrt() + 1e-3).all())
    assert float(expected.max()) < 0.9


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_checkpointing_does_not_take_the_cache_away(
    family: str, lora: LoraConfig | None
) -> None:
    expected = texts(respond(tiny_model(family)))
    policy = build_policy(tiny_model(family), lora, ValueConfig(), None, True)
    assert texts(respond(policy.lm)) == expected
    assert policy.lm.training  # as it was, or the update would not save its memory


def test_log_probabilities_of_greedy_like_sampling_stay_finite() -> None:
    responses = respond(tiny_model("llama"), settings=replace(SETTINGS, temperature=1e-3))
    assert bool(responses.sampling_logprobs.isfinite().all())
    model = tiny_model("llama")
    first = [int(model(torch.tensor([p.ids])).logits[0, -1].argmax()) for p in PROMPTS]
    assert [text[0] for text in texts(responses)] == first


def test_plain_logprobs_of_the_helpers_is_a_log_softmax() -> None:
    """The yardstick of these tests, measured once by hand."""
    model = tiny_model("llama")
    logits = model(input_ids=torch.tensor([[3, 4]])).logits[0, 1].detach()
    by_hand = logits[9] - logits.exp().sum().log()
    torch.testing.assert_close(plain_logprobs(model, [3, 4], [9])[0], by_hand)
