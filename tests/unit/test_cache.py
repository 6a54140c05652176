"""The roomy cache holds what Transformers' own holds, whatever is done with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import FAMILIES, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache, Gemma3TextConfig, MistralConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rlhf_ppo.rollout import cache as module
from rlhf_ppo.rollout.cache import ROOM, RoomyLayer, roomy_cache

HEADS, WIDTH = 2, 3


def states(batch: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Keys and values; those of some models differ in width."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, HEADS, tokens, WIDTH, generator=generator),
        torch.randn(batch, HEADS, tokens, WIDTH + 1, generator=generator),
    )


def assert_alike(ours: Any, theirs: Any) -> None:
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert ours.get_mask_sizes(3) == theirs.get_mask_sizes(3)
    assert ours.get_max_length() == theirs.get_max_length()
    assert ours.is_initialized == theirs.is_initialized


Actions = st.lists(
    st.one_of(st.integers(1, 9), st.integers(ROOM - 2, ROOM + 2), st.just("select")),
    min_size=1,
    max_size=12,
)


@given(Actions, st.integers(1, 5), st.data())
@settings(max_examples=80, deadline=None)
def test_any_updates_and_selections_leave_the_same_as_in_a_dynamic_layer(
    actions: list[int | str], batch: int, data: st.DataObject
) -> None:
    ours, theirs = RoomyLayer(), DynamicLayer()
    for number, action in enumerate(actions):
        if isinstance(action, int):
            new = states(batch, action, number)
            for one, other in zip(ours.update(*new), theirs.update(*new), strict=True):
                assert torch.equal(one, other)
        elif theirs.is_initialized:
            rows = data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=5))
            for layer in (ours, theirs):
                layer.batch_select_indices(torch.tensor(rows))
            batch = len(rows)
        if theirs.is_initialized:
            assert_alike(ours, theirs)


def test_an_empty_layer_says_so_and_selecting_from_it_does_nothing() -> None:
    ours, theirs = RoomyLayer(), DynamicLayer()
    for layer in (ours, theirs):
        layer.batch_select_indices(torch.tensor([0]))
        assert layer.get_seq_length() == 0
        assert layer.get_mask_sizes(4) == (4, 0)
    assert RoomyLayer.buffers is None


def test_memory_is_moved_once_in_room_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[int] = []
    kept = module._enlarged
    monkeypatch.setattr(
        module,
        "_enlarged",
        lambda *call: moves.append(1) or kept(*call),  # type: ignore[func-returns-value]
    )
    layer = RoomyLayer()
    layer.update(*states(2, 10, 0))
    for token in range(3 * ROOM):
        layer.update(*states(2, 1, token))
    assert layer.get_seq_length() == 10 + 3 * ROOM
    assert len(moves) <= 2 * 4  # keys and values


def test_what_was_handed_out_does_not_change_with_the_next_tokens() -> None:
    """Attention of one layer may still be running over it."""
    layer = RoomyLayer()
    keys, values = layer.update(*states(2, 5, 0))
    before = keys.clone(), values.clone()
    layer.update(*states(2, 3, 1))
    assert torch.equal(keys, before[0])
    assert torch.equal(values, before[1])


@pytest.mark.parametrize("keys", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("values", [torch.float32, torch.bfloat16])
def test_keys_and_values_are_held_in_the_type_attention_takes(
    keys: torch.dtype, values: torch.dtype
) -> None:
    """Under autocast keys come in float32 and values in bfloat16: one was converted each token."""
    new = states(1, 2, 0)
    layer = RoomyLayer()
    for _ in range(2):
        found = layer.update(new[0].to(keys), new[1].to(values))
    assert {x.dtype for x in found} == {torch.float64 if keys == torch.float64 else torch.float32}
    torch.testing.assert_close(found[0][:, :, 2:].to(keys), new[0].to(keys), rtol=0, atol=0)
    torch.testing.assert_close(found[1][:, :, 2:].to(values), new[1].to(values), rtol=0, atol=0)


@pytest.mark.parametrize(
    "config",
    [
        Gemma3TextConfig(
            num_hidden_layers=3,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        MistralConfig(num_hidden_layers=2, sliding_window=4),
        MistralConfig(num_hidden_layers=2, sliding_window=None),
    ],
    ids=["some sliding", "all sliding", "none sliding"],
)
def test_only_plain_layers_are_given_room(config: Any) -> None:
    plain, roomy = DynamicCache(config=config), roomy_cache(config)
    assert len(plain.layers) == len(roomy.layers)
    for before, after in zip(plain.layers, roomy.layers, strict=True):
        if type(before) is DynamicLayer:
            assert type(after) is RoomyLayer
        else:
            assert type(after) is type(before) is DynamicSlidingWindowLayer
            assert after.sliding_window == before.sliding_window


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_says_the_same_with_either_cache(family: str) -> None:
    model = tiny_model(family)
    ids = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([2, 0])
    answers = []
    for cache in (roomy_cache(model.config), DynamicCache(config=model.config)):
        with torch.no_grad():
            model(input_ids=ids[:, :7], past_key_values=cache)
            cache.batch_select_indices(rows)
            parts = [model(ids[rows, t : t + 1], past_key_values=cache).logits for t in (7, 8)]
            parts.append(model(ids[rows, 9:], past_key_values=cache).logits)
        answers.append(torch.cat(parts, dim=1))
    torch.testing.assert_close(*answers, rtol=0, atol=1e-5)
    with torch.no_grad():
        whole = model(ids).logits[rows, 7:]
    torch.testing.assert_close(answers[0], whole, rtol=1e-5, atol=1e-4)


def test_rows_that_are_reordered_repeated_or_forgotten_stay_so_after_the_next_token() -> None:
    """The buffers once outlived all three: old rows came back with the next update."""
    new = torch.randn(2, 3, 1, 4)
    for change, rows in (("reorder_cache", [1, 0]), ("batch_repeat_interleave", [0, 0, 1, 1])):
        layer, like = RoomyLayer(), torch.randn(2, 3, 5, 4)
        layer.update(like, like)
        getattr(layer, change)(torch.tensor(rows) if change == "reorder_cache" else 2)
        keys, _ = layer.update(
            new[:1].expand(len(rows), -1, -1, -1), new[:1].expand(len(rows), -1, -1, -1)
        )
        assert torch.equal(keys[:, :, :5], like[rows])
    layer.reset()
    keys, _ = layer.update(new[:1], new[:1])
    assert torch.equal(keys, new[:1])
