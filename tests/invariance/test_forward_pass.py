"""The micro-batch pass says what each model says of each row alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import FAMILIES, plain_logprobs, random_tokens, tiny_model
from torch import Tensor

from rlhf_ppo.algorithm.batch import Tokens
from rlhf_ppo.config import LoraConfig, ValueConfig
from rlhf_ppo.errors import UserError
from rlhf_ppo.models import forward
from rlhf_ppo.models.dropout import disable_dropout
from rlhf_ppo.models.forward import lay_out
from rlhf_ppo.models.policy import FrozenPolicy, PolicyWithValueHead, build_policy
from rlhf_ppo.models.trial import try_language_model

VALUE_WEIGHTS = torch.linspace(-1, 1, 32)


def policy_of(family: str) -> PolicyWithValueHead:
    """A policy whose value head is not zero, so that values can be wrong."""
    policy = PolicyWithValueHead(tiny_model(family)).eval()
    with torch.no_grad():
        policy.value_head.weight.copy_(VALUE_WEIGHTS[None])
        policy.value_head.bias.fill_(0.5)
    return policy


def outputs(policy: PolicyWithValueHead, tokens: Tokens, temperature: float = 1.0) -> list[Tensor]:
    with torch.no_grad():
        found = policy(lay_out(tokens), temperature)
    return [found.logprobs, found.values, found.entropy]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_gets_the_log_probabilities_it_gets_alone(family: str) -> None:
    policy, tokens = policy_of(family), random_tokens(6)
    logprobs, *_ = outputs(policy, tokens)
    for row in range(6):
        prompt = tokens.prompt_ids[row, : tokens.prompt_lengths[row]].tolist()
        mask = tokens.response_mask[row]
        expected = plain_logprobs(policy.lm, prompt, tokens.response_ids[row][mask].tolist())
        torch.testing.assert_close(logprobs[row][mask], expected, rtol=0, atol=1e-5)
    assert bool((logprobs[~tokens.response_mask] == 0).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_entropies_speak_of_the_state_before_the_token(family: str) -> None:
    policy, tokens = policy_of(family), random_tokens(4)
    _, values, entropy = outputs(policy, tokens)
    for row in range(4):
        length, mask = int(tokens.prompt_lengths[row]), tokens.response_mask[row]
        ids = torch.cat([tokens.prompt_ids[row, :length], tokens.response_ids[row][mask]])
        with torch.no_grad():
            found = policy.lm(input_ids=ids[None], output_hidden_states=True)
        before = slice(length - 1, len(ids) - 1)
        states, table = found.hidden_states[-1][0, before], found.logits[0, before].log_softmax(-1)
        torch.testing.assert_close(
            values[row][mask], states @ VALUE_WEIGHTS + 0.5, rtol=0, atol=1e-4
        )
        torch.testing.assert_close(
            entropy[row][mask], -(table.exp() * table).sum(-1), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_junk_in_the_padding_changes_nothing(family: str) -> None:
    policy, tokens = policy_of(family), random_tokens(6)
    column = torch.arange(tokens.prompt_ids.shape[1])
    in_prompt = column < tokens.prompt_lengths[:, None]
    junk = replace(
        tokens,
        prompt_ids=tokens.prompt_ids.masked_fill(~in_prompt, 7),
        response_ids=tokens.response_ids.masked_fill(~tokens.response_mask, 9),
    )
    for one, other in zip(outputs(policy, tokens), outputs(policy, junk), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_more_padding_changes_nothing(family: str) -> None:
    policy, tokens = policy_of(family), random_tokens(6)
    pad = torch.nn.functional.pad
    wider = replace(
        tokens,
        prompt_ids=pad(tokens.prompt_ids, (0, 5)),
        response_ids=pad(tokens.response_ids, (0, 3)),
        response_mask=pad(tokens.response_mask, (0, 3)),
    )
    for one, other in zip(outputs(policy, tokens), outputs(policy, wider), strict=True):
        assert torch.equal(one, other[:, : one.shape[1]])
        assert not bool(other[:, one.shape[1] :].any())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_longer_neighbour_changes_nothing(family: str) -> None:
    policy, tokens = policy_of(family), random_tokens(6)
    short = int(tokens.lengths.argmin())
    together = outputs(policy, tokens)
    alone = outputs(policy, tokens.select(torch.tensor([short])))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one[short], other[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_permuted_rows_give_permuted_results(family: str) -> None:
    policy, tokens = policy_of(family), random_tokens(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for one, other in zip(
        outputs(policy, tokens), outputs(policy, tokens.select(order)), strict=True
    ):
        torch.testing.assert_close(one[order], other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_divides_the_logits(temperature: float) -> None:
    policy, tokens = policy_of("llama"), random_tokens(3)
    logprobs, *_ = outputs(policy, tokens, temperature)
    row, length = 0, int(tokens.prompt_lengths[0])
    ids = torch.cat([tokens.prompt_ids[row, :length], tokens.response_ids[row, :1]])
    with torch.no_grad():
        logits = policy.lm(input_ids=ids[None]).logits[0, length - 1]
    expected = logits / temperature - (logits / temperature).logsumexp(-1)
    torch.testing.assert_close(logprobs[row, 0], expected[ids[-1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_in_chunks_gives_the_same_numbers_and_gradients(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = random_tokens(6)
    assert int(tokens.response_mask.sum()) > 9

    def run() -> tuple[Tensor, Tensor]:
        policy = policy_of(family)
        found = policy(lay_out(tokens), 0.7)
        (found.logprobs.sum() + found.values.square().sum()).backward()
        gradients = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
        return found.logprobs.detach(), torch.cat(gradients)

    whole = run()
    monkeypatch.setattr(forward, "_chunk_tokens", lambda *_: 3)
    for one, other in zip(whole, run(), strict=True):
        assert float((one - other).norm() / one.norm()) < 1e-5


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("value", ["shared", "pooled", "policy"])
def test_values_start_at_exactly_zero(lora: LoraConfig | None, value: str) -> None:
    policy = build_policy(
        tiny_model("llama"), lora, ValueConfig.model_validate({"model": value}), None, False
    )
    assert not bool(outputs(policy, random_tokens(4))[1].any())


def test_a_frozen_copy_agrees_with_the_policy_to_the_bit() -> None:
    tokens = random_tokens(6)
    frozen = FrozenPolicy(tiny_model("llama"))
    with torch.no_grad():
        reference = frozen(lay_out(tokens), 0.8)
    assert torch.equal(outputs(policy_of("llama"), tokens, 0.8)[0], reference)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_our_output_layer_is_the_models(family: str) -> None:
    model = tiny_model(family)
    try_language_model(model, "here")
    model.logit_scale = 1.01  # as if the family scaled its logits, which it does not
    with pytest.raises(UserError, match=f"{model.config.model_type}.* in a way that is not supp"):
        try_language_model(model, "here")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    tokens, gradients = random_tokens(4), []
    for checkpointing in (False, True):
        model = tiny_model(family)
        disable_dropout(model)
        policy = build_policy(model, None, ValueConfig(), None, checkpointing)
        policy(lay_out(tokens), 1.0).logprobs.sum().backward()
        parts = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
        gradients.append(torch.cat(parts))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_dropout_is_off_even_in_training_mode() -> None:
    model, tokens = tiny_model("gpt2"), random_tokens(3)
    policy = PolicyWithValueHead(model).train()
    assert not torch.equal(outputs(policy, tokens)[0], outputs(policy, tokens)[0])
    disable_dropout(model)
    assert torch.equal(outputs(policy, tokens)[0], outputs(policy, tokens)[0])
