"""Sequences that lie end to end in one row are read as each is read alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from helpers import FAMILIES, plain_logprobs, random_tokens, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlhf_ppo.config import LoraConfig, ValueConfig
from rlhf_ppo.models.dropout import disable_dropout
from rlhf_ppo.models.forward import find_trunk, lay_out, sequence_states
from rlhf_ppo.models.packing import (
    NAME,
    enable_packing,
    packed_attention,
    run_packed,
    takes_packed,
)
from rlhf_ppo.models.policy import FrozenPolicy, PolicyWithValueHead, base_model, build_policy

WINDOW = 8  # some sequences are shorter, some longer
SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
HEADS_OF_8 = SMALL | {"head_dim": 8}
MIXED = ["sliding_attention", "full_attention"]
OLD: dict[str, Any] = {name: SMALL[name] for name in SMALL if name != "num_key_value_heads"}
BUILDERS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**HEADS_OF_8)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**HEADS_OF_8)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SMALL, sliding_window=WINDOW)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(
            **HEADS_OF_8, sliding_window=WINDOW, layer_types=MIXED, query_pre_attn_scalar=16
        )
    ),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(**OLD, n_layer=2, n_head=4)),
    "falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(**OLD)),
    "falcon with alibi": lambda: hf.FalconForCausalLM(hf.FalconConfig(**OLD, alibi=True)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**HEADS_OF_8, sliding_window=WINDOW, attn_logit_softcapping=5.0)
    ),
    "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(**OLD, state_size=4)),
    "phimoe": lambda: hf.PhimoeForCausalLM(  # its window stands in the mask alone
        hf.PhimoeConfig(**SMALL, num_local_experts=2, sliding_window=WINDOW)
    ),
    "qwen3 next": lambda: hf.Qwen3NextForCausalLM(
        hf.Qwen3NextConfig(
            **HEADS_OF_8,
            linear_num_value_heads=2,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            num_experts=0,
            layer_types=["linear_attention", "full_attention"],
        )
    ),
}
FIT = (*FAMILIES, "qwen3", "gemma", "mistral", "gemma3")
UNFIT = ("bloom", "falcon", "falcon with alibi", "gemma2", "mamba", "qwen3 next")
SHAPES = [(3, 9, 9, 1, 6), (9, 3, 9), (1,), (7,), (5,) * 6, (1, 1, 1)]


def build(family: str) -> Any:
    if family in FAMILIES:
        return tiny_model(family)
    torch.manual_seed(0)
    return BUILDERS[family]().eval()


def packed(family: str) -> tuple[Any, Any]:
    """A model that takes packed rows, and its trunk."""
    model = build(family)
    assert enable_packing(model, find_trunk(model))
    return model, find_trunk(model)


def sequences(lengths: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 50, (length,), generator=generator) for length in lengths]


@torch.no_grad()
def read_together(trunk: Any, parts: list[Tensor]) -> list[Tensor]:
    lengths = tuple(len(part) for part in parts)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return list(sequence_states(trunk, torch.cat(parts), positions, lengths).split(lengths))


@torch.no_grad()
def read_alone(family: str, parts: list[Tensor]) -> list[Tensor]:
    """By a model that never heard of packing."""
    trunk = find_trunk(build(family))
    return [trunk(input_ids=part[None], use_cache=False).last_hidden_state[0] for part in parts]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", SHAPES, ids=str)
@pytest.mark.parametrize("family", FIT)
def test_each_sequence_is_read_as_it_is_alone(family: str, lengths: tuple[int, ...]) -> None:
    parts = sequences(lengths)
    assert_same(read_together(packed(family)[1], parts), read_alone(family, parts))


@pytest.mark.parametrize("lengths", SHAPES, ids=str)
@pytest.mark.parametrize("family", ["mistral", "gemma3", "phimoe"])
def test_sequences_longer_than_an_attention_window_get_padded_rows(
    family: str, lengths: tuple[int, ...]
) -> None:
    """Phi-MoE cuts attention off in the mask alone: packed, long sequences were read wrongly."""
    _, trunk = packed(family)
    assert takes_packed(trunk, WINDOW)
    assert not takes_packed(trunk, WINDOW + 1)
    parts = sequences(lengths)
    assert_same(read_together(trunk, parts), read_alone(family, parts))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_any_lengths_in_any_order_are_read_as_each_is_alone(lengths: list[int], seed: int) -> None:
    parts = sequences(tuple(lengths), seed)
    assert_same(read_together(packed("mistral")[1], parts), read_alone("mistral", parts))


@pytest.mark.parametrize("family", FIT)
def test_permuted_sequences_give_permuted_states(family: str) -> None:
    _, trunk = packed(family)
    parts, order = sequences((3, 9, 9, 1, 6)), [2, 4, 0, 3, 1]
    found = read_together(trunk, parts)
    assert_same(read_together(trunk, [parts[i] for i in order]), [found[i] for i in order])


@pytest.mark.parametrize("family", FIT)
def test_other_tokens_in_one_sequence_change_no_bit_of_the_others(family: str) -> None:
    _, trunk = packed(family)
    parts, others = sequences((4, 6, 6, 5)), sequences((4, 6, 6, 5), seed=1)
    found = read_together(trunk, parts)
    for changed in range(4):
        mixed = [others[i] if i == changed else parts[i] for i in range(4)]
        again = read_together(trunk, mixed)
        for place in range(4):
            assert torch.equal(found[place], again[place]) == (place != changed)


def outputs_and_gradients(policy: PolicyWithValueHead) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Everything that the training pass gives, and its gradient by every parameter."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "value_head" in name or "lora_B" in name:  # zero at first: they would hide errors
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    found = policy(lay_out(random_tokens(6)), 0.8, entropy_gradient=True)
    parts = [found.logprobs, found.values, found.entropy]
    weights = [torch.randn(part.shape, generator=generator) for part in parts]
    loss = sum((w * part).sum() for w, part in zip(weights, parts, strict=True))
    assert isinstance(loss, Tensor)
    loss.backward()
    gradients = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
    return [part.detach() for part in parts], gradients


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("family", FIT)
def test_outputs_and_all_gradients_are_those_of_padded_rows(
    family: str, lora: LoraConfig | None, checkpointing: bool
) -> None:
    results = []
    for padded in (False, True):
        torch.manual_seed(3)  # of the adapters
        model = build(family)
        disable_dropout(model)
        policy = build_policy(model, lora, ValueConfig(), None, checkpointing and not padded)
        inner = base_model(policy.lm)
        assert takes_packed(find_trunk(inner), 1)
        if padded:
            inner.set_attn_implementation("sdpa")
            assert not takes_packed(find_trunk(inner), 1)
        results.append(outputs_and_gradients(policy))
    (found, gradients), (expected, plain) = results
    assert_same(found, expected)
    assert gradients.keys() == plain.keys()
    assert len(gradients) == sum(p.requires_grad for p in policy.parameters())
    scale = torch.stack([gradient.norm() for gradient in plain.values()]).max()
    for name, gradient in gradients.items():
        assert float((gradient - plain[name]).norm() / scale) < 1e-5, name


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_value_model_of_its_own_is_packed_too_and_agrees_with_padded_rows(family: str) -> None:
    results = []
    for padded in (False, True):
        value = ValueConfig.model_validate({"model": "policy"})
        policy = build_policy(build(family), None, value, None, False)
        assert takes_packed(policy.value_trunk, 1)  # type: ignore[arg-type]
        if padded:
            policy.value_trunk.set_attn_implementation("sdpa")  # type: ignore[union-attr, operator]
        results.append(outputs_and_gradients(policy))
    (found, gradients), (expected, plain) = results
    assert_same(found, expected)
    scale = torch.stack([gradient.norm() for gradient in plain.values()]).max()
    for name, gradient in gradients.items():
        assert float((gradient - plain[name]).norm() / scale) < 1e-5, name


@pytest.mark.parametrize("family", UNFIT)
def test_a_family_that_does_not_fit_gets_padded_rows_and_says_the_same(family: str) -> None:
    model = build(family)
    before = model.config._attn_implementation
    assert not enable_packing(model, find_trunk(model))
    assert model.config._attn_implementation == before
    assert not takes_packed(find_trunk(model), 1)
    parts = sequences((3, 9, 9, 1, 6))
    assert_same(read_together(find_trunk(model), parts), read_alone(family, parts))
    tokens = random_tokens(3)
    judged = FrozenPolicy(model)
    with torch.no_grad():
        logprobs = judged(lay_out(tokens), 1.0)
    for row in range(3):
        prompt = tokens.prompt_ids[row, : tokens.prompt_lengths[row]].tolist()
        mask = tokens.response_mask[row]
        expected = plain_logprobs(build(family), prompt, tokens.response_ids[row][mask].tolist())
        torch.testing.assert_close(logprobs[row][mask], expected, rtol=0, atol=1e-5)


def leaking(*call: Any, packed_lengths: Any = None, **options: Any) -> Any:
    """Looks into the sequences before."""
    return sdpa_attention_forward(*call, **options)


def shortened(*call: Any, packed_lengths: Any = None, **options: Any) -> Any:
    """Cuts a sequence in two."""
    cut = packed_lengths and (*packed_lengths[:-1], packed_lengths[-1] - 1, 1)
    return packed_attention(*call, packed_lengths=cut, **options)


def swapped(*call: Any, packed_lengths: Any = None, **options: Any) -> Any:
    """Gives the two sequences of 7 tokens each other's attention."""
    states, _ = packed_attention(*call, packed_lengths=packed_lengths, **options)
    if packed_lengths is not None:
        before, one, other, after = states.split(packed_lengths, dim=1)
        states = torch.cat([before, other, one, after], dim=1)
    return states, None


def failing(*call: Any, **options: Any) -> Any:
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize("spread", [0.3, 0.02])
@pytest.mark.parametrize("broken", [leaking, shortened, swapped, failing])
def test_a_model_that_reads_packed_rows_wrongly_is_refused(
    broken: Any, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(AttentionInterface._global_mapping, NAME, broken)
    model = tiny_model("llama", spread=spread)
    assert not enable_packing(model, find_trunk(model))
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.undo()
    assert enable_packing(model, find_trunk(model)), "it is the attention that was wrong"


def test_a_model_that_does_not_hear_of_positions_is_refused() -> None:
    model = tiny_model("gpt2")
    trunk, forward = find_trunk(model), find_trunk(model).forward
    trunk.forward = lambda position_ids=None, **call: forward(**call)  # type: ignore[method-assign]
    assert not enable_packing(model, trunk)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("choice", ["eager", "flex_attention"])
def test_an_attention_that_was_chosen_by_the_user_is_left_alone(choice: str) -> None:
    model = tiny_model("llama")
    model.set_attn_implementation(choice)
    assert not enable_packing(model, find_trunk(model))
    assert model.config._attn_implementation == choice


def test_a_model_in_half_precision_is_packed_and_a_leaking_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    assert enable_packing(model, find_trunk(model))
    monkeypatch.setitem(AttentionInterface._global_mapping, NAME, leaking)
    model = tiny_model("llama").to(torch.bfloat16)
    assert not enable_packing(model, find_trunk(model))


def ordinary_answers(model: Any) -> list[Tensor]:
    """What a user of Transformers might ask of a model."""
    ids = torch.stack(sequences((9, 9, 9)))
    left = torch.ones_like(ids)
    left[0, :5] = left[1, :2] = 0
    places = (left.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        start = model(input_ids=ids[:, :6], use_cache=True)
        rest = model(input_ids=ids[:, 6:], past_key_values=start.past_key_values)
        return [
            model(input_ids=ids).logits,
            model(input_ids=ids, attention_mask=left.flip(1)).logits[left.flip(1).bool()],
            model(input_ids=ids, attention_mask=left, position_ids=places).logits[left.bool()],
            torch.cat([start.logits, rest.logits], dim=1),
            model.generate(ids, attention_mask=left, max_new_tokens=6, do_sample=False),
            model.generate(ids[:1], max_new_tokens=6, do_sample=False),
        ]


@pytest.mark.parametrize("family", FIT)
def test_a_packed_models_ordinary_forward_pass_is_what_it_was(family: str) -> None:
    model, trunk = packed(family)
    expected = ordinary_answers(build(family))
    assert_same(ordinary_answers(model), expected)
    read_together(trunk, sequences((3, 4)))  # leaves nothing behind
    assert_same(ordinary_answers(model), expected)


def test_a_packed_pass_that_fails_leaves_nothing_behind() -> None:
    model, trunk = packed("llama")
    with pytest.raises(RuntimeError):
        run_packed(trunk, torch.ones(5, dtype=torch.int64), torch.arange(5), (3, 3))
    assert_same(ordinary_answers(model), ordinary_answers(build("llama")))


@pytest.mark.parametrize("family", FIT)
def test_a_saved_model_does_not_mention_our_attention(family: str, tmp_path: Path) -> None:
    model, _ = packed(family)
    model.save_pretrained(tmp_path)
    for file in tmp_path.glob("*.json"):
        assert NAME not in file.read_text(encoding="utf-8")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"
    assert_same(ordinary_answers(again), ordinary_answers(build(family)))


def test_a_copy_of_a_packed_model_is_packed_and_speaks_for_itself() -> None:
    model, _ = packed("llama")
    twin = copy.deepcopy(model)
    assert takes_packed(find_trunk(twin), 1)
    twin.set_attn_implementation("sdpa")
    assert takes_packed(find_trunk(model), 1)


@pytest.mark.parametrize("scaling", [None, 0.2])
@pytest.mark.parametrize("groups", [1, 3])
def test_packed_attention_is_the_softmax_over_what_each_token_may_see(
    groups: int, scaling: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths, heads, width = (2, 5, 5, 1), 6, 4
    layer = torch.nn.Module()
    layer.num_key_value_groups = groups  # type: ignore[assignment]
    query, key, value = (
        torch.randn(1, h, 13, width, generator=generator, dtype=torch.float64)
        for h in (heads, heads // groups, heads // groups)
    )
    options = {"packed_lengths": lengths, "scaling": scaling}
    found, _ = packed_attention(layer, query, key, value, None, **options)  # type: ignore[arg-type]
    owner = [row for row, length in enumerate(lengths) for _ in range(length)]
    for head in range(heads):
        for t in range(13):
            seen = [s for s in range(t + 1) if owner[s] == owner[t]]
            scores = key[0, head // groups, seen] @ query[0, head, t]
            weights = (scores * (scaling or width**-0.5)).softmax(0)
            expected = weights @ value[0, head // groups, seen]
            torch.testing.assert_close(found[0, t, head], expected)


@pytest.mark.parametrize("option", ["softcap", "s_aux", "position_bias"])
def test_packed_attention_says_no_to_what_it_does_not_know(option: str) -> None:
    states = torch.zeros(1, 2, 4, 8)
    with pytest.raises(ValueError, match=option):
        packed_attention(
            torch.nn.Module(), *[states] * 3, None, packed_lengths=(4,), **{option: 1.0}
        )
