"""A response belongs to its prompt: no batch, order or padding changes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import FAMILIES, encoded_prompts, plain_logprobs, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from rlhf_ppo.algorithm.batch import Responses
from rlhf_ppo.config import LoraConfig, ValueConfig
from rlhf_ppo.data.prompts import EncodedPrompt
from rlhf_ppo.models import prepacked
from rlhf_ppo.models.forward import find_trunk, lay_out
from rlhf_ppo.models.packing import enable_packing, takes_packed
from rlhf_ppo.models.policy import PolicyWithValueHead, build_policy
from rlhf_ppo.rollout import decoder, generation
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


@given(st.lists(st.booleans(), min_size=1, max_size=12).filter(any))
def test_of_the_rows_that_go_on_as_few_as_possible_change_places(going: list[bool]) -> None:
    rows = generation._close_ranks(torch.tensor(going)).tolist()
    assert sorted(rows) == [place for place, goes in enumerate(going) if goes]
    for place, row in enumerate(rows):
        assert row == place or not going[place]


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


def packed_model(family: str) -> torch.nn.Module:
    model = tiny_model(family)
    assert enable_packing(model, find_trunk(model))
    return model


def assert_same_responses(found: Responses, expected: Responses) -> None:
    assert texts(found) == texts(expected)
    assert torch.equal(found.stopped, expected.stopped)
    assert torch.equal(found.prompt_rows, expected.prompt_rows)
    torch.testing.assert_close(
        found.sampling_logprobs, expected.sampling_logprobs, rtol=0, atol=1e-5
    )


def count_packed_prefills(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Lengths of the prompts that went through each packed prefill, trials left out."""
    seen: list[tuple[int, ...]] = []
    kept = decoder.run_packed

    def count(
        trunk: torch.nn.Module, ids: Tensor, at: Tensor, lengths: tuple[int, ...], *more: Any
    ) -> Any:
        if lengths != decoder.PROMPTS["padded"]:  # of the trial that chooses how to decode
            seen.append(lengths)
        return kept(trunk, ids, at, lengths, *more)

    monkeypatch.setattr(decoder, "run_packed", count)
    return seen


@pytest.mark.parametrize("size", [2, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_prompts_are_answered_as_padded_ones(
    family: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = count_packed_prefills(monkeypatch)
    settings = replace(SETTINGS, batch_size=size)
    expected = respond(tiny_model(family), settings=settings)
    assert not seen
    assert_same_responses(respond(packed_model(family), settings=settings), expected)
    assert sum(map(len, seen)) == len(PROMPTS)
    forced = packed_model(family)
    forced.set_attn_implementation("sdpa")  # type: ignore[operator]
    seen.clear()
    assert_same_responses(respond(forced, settings=settings), expected)
    assert not seen


@pytest.mark.parametrize("pack", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_copies_of_a_prompt_are_answered_as_if_each_were_alone(
    family: str, pack: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed_model(family) if pack else tiny_model(family)
    prompts = [PROMPTS[row] for row in (2, 0, 2, 4, 0, 2, 1)]
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(len(prompts), LIMIT, dtype=torch.float64, generator=generator)
    seen = count_packed_prefills(monkeypatch)
    together = generate(model, prompts, noise, SETTINGS)  # type: ignore[arg-type]
    if pack:  # each different prompt is read once
        assert [sorted(lengths) for lengths in seen] == [[1, 3, 6, 9]]
    for row, prompt in enumerate(prompts):
        alone = generate(tiny_model(family), [prompt], noise[row : row + 1], SETTINGS)
        assert texts(alone) == [texts(together)[row]]
        mask = together.tokens.response_mask[row]
        torch.testing.assert_close(
            together.sampling_logprobs[row][mask], alone.sampling_logprobs[0], rtol=0, atol=1e-5
        )
    assert len({tuple(texts(together)[row]) for row in (0, 2, 5)}) > 1  # the noise differs


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_and_reordered_weights_give_the_same_responses(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reordered = respond(packed_model(family))
    monkeypatch.setattr(prepacked, "_prepack", lambda *_: None)
    assert_same_responses(respond(packed_model(family)), reordered)


def test_a_packed_policy_with_adapters_is_sampled_as_its_padded_form() -> None:
    runs = []
    for padded in (False, True):
        torch.manual_seed(0)
        policy = build_policy(tiny_model("llama"), LoraConfig(rank=2), ValueConfig(), None, False)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
        inner = policy.lm.get_base_model()  # type: ignore[operator]
        assert takes_packed(find_trunk(inner), 1)
        if padded:
            inner.set_attn_implementation("sdpa")
        runs.append(respond(policy.lm))
    assert_same_responses(*runs)
    assert texts(runs[0]) != texts(respond(tiny_model("llama")))  # the adapters have a say


@pytest.mark.parametrize("window", [7, 8])
def test_a_model_with_sliding_windows_is_sampled_as_its_plain_forward_pass_says(
    window: int,
) -> None:
    """Prompts and responses pass the window, so that the cache forgets."""
    like = tiny_model("llama").config.to_dict()
    like = {key: value for key, value in like.items() if key not in ("model_type", "architectures")}
    torch.manual_seed(0)
    config = MistralConfig(**like | {"sliding_window": window})
    plain, packed = MistralForCausalLM(config).eval(), MistralForCausalLM(config).eval()
    packed.load_state_dict(plain.state_dict())
    assert enable_packing(packed, find_trunk(packed))
    responses = respond(packed)
    assert_same_responses(responses, respond(plain))
    for row, text in enumerate(texts(responses)):
        mask = responses.tokens.response_mask[row]
        expected = plain_logprobs_at(plain, PROMPTS[row].ids, text)
        torch.testing.assert_close(
            responses.sampling_logprobs[row][mask], expected, rtol=0, atol=1e-4
        )
