"""What policy, reference and reward say of a rollout, against the plain models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import byte_tokenizer, plain_logprobs, tiny_model
from runs import PROMPTS, make_run
from torch import Tensor

from rlhf_ppo.algorithm.batch import Responses
from rlhf_ppo.models.forward import lay_out
from rlhf_ppo.models.policy import FrozenPolicy
from rlhf_ppo.rollout.collect import collect, judge, response_texts, sample, sample_reference
from rlhf_ppo.rollout.generation import SamplingSettings, generate
from rlhf_ppo.rollout.noise import sampling_noise
from rlhf_ppo.training.ppo import PpoRun

SETTINGS = SamplingSettings(6, 1.5, (1, *range(5, 70)), 8)
NOISE = sampling_noise(1, "test", 1, range(len(PROMPTS)), 6)


def other(seed: int) -> Any:
    return tiny_model("llama", len(byte_tokenizer()), seed, 0.3)


@pytest.fixture(scope="module")
def run() -> PpoRun:
    """A policy whose values are not 0, beside a reference that is another model."""
    made = make_run(spread=0.3)
    with torch.no_grad():
        made.roles.policy.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return replace(made, roles=replace(made.roles, reference=FrozenPolicy(other(9))))


@pytest.fixture(scope="module")
def responses(run: PpoRun) -> Responses:
    return sample(run.roles, PROMPTS, NOISE, SETTINGS)


def by_hand(model: Any, responses: Responses, row: int, temperature: float) -> Tensor:
    """Log-probabilities of a response by the model's own logits."""
    tokens = responses.tokens
    response = tokens.response_ids[row][tokens.response_mask[row]].tolist()
    prompt = PROMPTS[row].ids
    if temperature == 1.0:
        return plain_logprobs(model, prompt, response)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    table = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(dim=-1)
    return table.gather(1, torch.tensor(response)[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_each_model_speaks_of_its_own_tokens_at_the_samplers_temperature(
    run: PpoRun, responses: Responses, temperature: float
) -> None:
    """In micro-batches by length, so that every row must find its way back."""
    outputs, ref_logprobs = judge(run.roles, responses.tokens, temperature, budget=25)
    whole = run.roles.policy(lay_out(responses.tokens), temperature)
    assert len(set(responses.tokens.lengths.tolist())) > 3
    reference: Any = run.roles.reference
    for row in range(len(PROMPTS)):
        mask = responses.tokens.response_mask[row]
        for found, model in ((outputs.logprobs, run.roles.policy.lm), (ref_logprobs, reference.lm)):
            wanted = by_hand(model, responses, row, temperature)
            torch.testing.assert_close(found[row][mask], wanted, atol=1e-4, rtol=0)
    for name in ("values", "entropy"):
        torch.testing.assert_close(getattr(outputs, name), getattr(whole, name), atol=1e-4, rtol=0)
    assert float(outputs.values.abs().max()) > 0.1


def test_a_rollout_keeps_what_the_policy_says_beside_what_the_sampler_said(
    run: PpoRun, responses: Responses
) -> None:
    off = replace(responses, sampling_logprobs=responses.sampling_logprobs - 1.0)
    rollout, failures = collect(run.roles, PROMPTS, off, 1.5, 1000)
    torch.testing.assert_close(rollout.logprobs, responses.sampling_logprobs, atol=1e-4, rtol=0)
    outputs, ref_logprobs = judge(run.roles, responses.tokens, 1.5, 1000)
    assert torch.equal(rollout.values, outputs.values)
    assert torch.equal(rollout.entropy, outputs.entropy)
    assert torch.equal(rollout.ref_logprobs, ref_logprobs)
    texts = response_texts(run.roles.tokenizer, responses.tokens)
    assert rollout.source_scores[:, 0].tolist() == [len(text) for text in texts]  # reward: length
    assert not failures


def test_texts_are_without_padding_and_special_tokens(run: PpoRun, responses: Responses) -> None:
    """What stands behind the mask is not text, whatever it is."""
    tokenizer = run.roles.tokenizer
    ids = tokenizer("red", add_special_tokens=False)["input_ids"]
    word: Any = [*ids, tokenizer.eos_token_id, ids[0], ids[0]]
    mask = torch.tensor([[True] * (len(ids) + 1) + [False] * 2, [True] * (len(ids) + 3)])
    tokens = replace(
        responses.tokens.select(torch.tensor([0, 1])),
        response_ids=torch.tensor([word, word]),
        response_mask=mask,
    )
    twice = str(tokenizer.decode([*ids, ids[0], ids[0]]))
    assert response_texts(tokenizer, tokens) == ["red", twice]
    assert twice != "red"


def moved_adapter() -> PpoRun:
    """A LoRA policy that has learnt something."""
    run = make_run(spread=0.3, lora={"rank": 2, "alpha": 4})
    with torch.no_grad():
        for name, parameter in run.roles.policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return run


def test_the_reference_of_an_adapter_is_the_base_in_judging_and_in_sampling() -> None:
    run, base = moved_adapter(), other(1)
    moved = sample(run.roles, PROMPTS, NOISE, SETTINGS)
    expected = generate(base, PROMPTS, NOISE, SETTINGS)
    found = sample_reference(run.roles, PROMPTS, NOISE, SETTINGS)
    assert torch.equal(found.tokens.response_ids, expected.tokens.response_ids)
    assert not torch.equal(
        found.tokens.response_mask.sum(dim=1), moved.tokens.response_mask.sum(dim=1)
    )
    outputs, ref_logprobs = judge(run.roles, moved.tokens, 1.5, 1000)
    for row in (0, 5):
        mask = moved.tokens.response_mask[row]
        wanted = by_hand(base, moved, row, 1.5)
        torch.testing.assert_close(ref_logprobs[row][mask], wanted, atol=1e-4, rtol=0)
    assert float((outputs.logprobs - ref_logprobs).abs().max()) > 0.01


def test_a_reference_of_its_own_is_sampled_itself(run: PpoRun, responses: Responses) -> None:
    found = sample_reference(run.roles, PROMPTS, NOISE, SETTINGS)
    expected = generate(other(9), PROMPTS, NOISE, SETTINGS)
    assert torch.equal(found.tokens.response_ids, expected.tokens.response_ids)
    assert found.tokens.response_ids.tolist() != responses.tokens.response_ids.tolist()
