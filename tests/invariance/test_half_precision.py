"""Under autocast products are rounded, and nothing else: attention, values and scores are not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import FAMILIES, byte_tokenizer, random_tokens, tiny_model
from runs import START, make_run
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from rlhf_ppo.config import ModelSource, ValueConfig
from rlhf_ppo.models import packing
from rlhf_ppo.models.forward import find_trunk, lay_out, sequence_states
from rlhf_ppo.models.packing import enable_packing, packed_attention
from rlhf_ppo.models.policy import build_policy
from rlhf_ppo.rewards.classifier import RewardModel
from rlhf_ppo.training.ppo import ppo_step
from rlhf_ppo.training.roles import make_optimizer

LENGTHS = (3, 9, 9, 1, 6)
BF16: dict[str, Any] = {"hardware": {"mixed_precision": "bf16", "cpu_threads": 1}}


@contextmanager
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


def row(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 50, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    return ids, torch.cat([torch.arange(length) for length in lengths])


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_attention_on_a_cpu_is_computed_in_float32(packed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 2, 13, 4, generator=generator) for _ in range(3)]
    options: dict[str, Any] = {"packed_lengths": (2, 5, 5, 1)} if packed else {"is_causal": True}
    layer = torch.nn.Module()
    expected, _ = packed_attention(layer, *states, None, **options)  # type: ignore[arg-type]
    with autocast():
        found, _ = packed_attention(layer, *states, None, **options)  # type: ignore[arg-type]
        short, _ = packed_attention(
            layer,
            *(x.bfloat16() for x in states),  # type: ignore[arg-type]
            None,
            **options,
        )
    assert torch.equal(found, expected)
    assert short.dtype == torch.bfloat16, "the layers after it get what they gave"


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_filled_up_with_a_sequence_that_changes_no_other(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new shape cost a compilation and half a megabyte, until memory ran out."""
    ids, positions = row(LENGTHS)
    seen: list[int] = []
    results = []
    for multiple in (1, 64):
        monkeypatch.setattr(packing, "ROUND", multiple)
        model = tiny_model(family)
        trunk = find_trunk(model)
        assert enable_packing(model, trunk)
        trunk.register_forward_pre_hook(
            lambda _, __, call: seen.append(call["input_ids"].shape[1]), with_kwargs=True
        )
        with autocast():
            found = sequence_states(trunk, ids, positions, LENGTHS)
            found.float().pow(2).sum().backward()
        results.append((found.detach().float(), [p.grad for p in trunk.parameters()]))
    assert seen == [sum(LENGTHS), 64]
    (found, gradients), (expected, others) = results
    assert found.shape == expected.shape
    assert float((found - expected).norm() / expected.norm()) < 1e-2
    scale = torch.stack([g.norm() for g in others if g is not None]).max()
    for one, other in zip(gradients, others, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert float((one - other).norm() / scale) < 1e-2


def test_in_float32_nothing_is_added_to_a_row() -> None:
    assert packing.to_round(13, "cpu") == 0
    with autocast():
        assert packing.to_round(13, "cpu") == 51
        assert packing.to_round(64, "cpu") == 0
        assert packing.to_round(13, "cuda") == 0


def test_log_probabilities_of_a_filled_up_chunk_are_those_of_its_tokens() -> None:
    tokens = random_tokens(5)
    policy = build_policy(tiny_model("llama"), None, ValueConfig(), None, False)
    exact = policy(lay_out(tokens), 1.0)
    with autocast():
        found = policy(lay_out(tokens), 1.0)
    assert found.logprobs.shape == tokens.response_mask.shape
    assert not bool(found.logprobs[~tokens.response_mask].any())
    torch.testing.assert_close(found.logprobs, exact.logprobs, rtol=0, atol=0.1)
    torch.testing.assert_close(found.entropy, exact.entropy, rtol=0, atol=0.1)


def test_values_are_not_rounded() -> None:
    """A value head in bfloat16 knows eight bits: 3.14 and 3.15 were the same value."""
    policy = build_policy(tiny_model("llama"), None, ValueConfig(), None, False)
    with torch.no_grad():
        policy.value_head.weight.normal_()
    with autocast():
        values = policy(lay_out(random_tokens(5)), 1.0).values
    assert values.dtype == torch.float32
    assert not torch.equal(values, values.bfloat16().float())


def test_scores_are_not_rounded() -> None:
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    shape = tiny_model("llama", len(tokenizer)).config.to_dict()
    model = LlamaForSequenceClassification(LlamaConfig.from_dict(shape | {"num_labels": 1}))
    reward = RewardModel(model, tokenizer, ModelSource(), "here")
    prompts, responses = ["what?"] * 6, ["a cat", "a dog", "no", "yes", "a boat", "a shoe"]
    exact = torch.tensor(reward.score_texts(prompts, responses))
    with autocast():
        found = torch.tensor(reward.score_texts(prompts, responses))
    assert not torch.equal(found, exact), "its products are"
    assert not torch.equal(found, found.bfloat16().float())
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_in_bfloat16_says_how_far_sampler_and_trainer_are_apart(family: str) -> None:
    found = {}
    for name, sections in (("float32", {}), ("bf16", BF16)):
        rollout = {"batch_size": 8, "max_new_tokens": 12}
        run = make_run(family=family, spread=0.3, rollout=rollout, **sections)
        _, metrics, _ = ppo_step(run, 1, START)
        found[name] = metrics
        assert metrics["kl/ref"] == 0, "the reference is rounded alike"
        assert metrics["policy/ratio_first_error"] < 0.05
    assert found["float32"]["policy/sampler_gap"] < 1e-4
    assert found["bf16"]["policy/sampler_gap"] < 0.3
    assert found["bf16"]["policy/entropy"] != found["float32"]["policy/entropy"], "it is rounded"
    assert found["bf16"]["policy/entropy"] == pytest.approx(
        found["float32"]["policy/entropy"], rel=0.1
    )


def test_the_reward_model_is_read_under_autocast_too() -> None:
    def reward(_: str) -> float:
        return float(torch.is_autocast_enabled("cpu"))

    for sections, expected in (({}, 0.0), (BF16, 1.0)):
        run = make_run(reward, rollout={"batch_size": 4, "max_new_tokens": 3}, **sections)
        _, metrics, _ = ppo_step(run, 1, START)
        assert metrics["score/mean"] == expected


def test_one_pass_of_the_optimizer_over_memory_gives_the_plain_ones_weights() -> None:
    results = []
    for fused in (True, False):
        run = make_run(spread=0.3, ppo={"learning_rate": 1e-2, "weight_decay": 0.1})
        policy = run.roles.policy
        optimizer = make_optimizer(run.config, policy)
        for group in optimizer.param_groups:
            assert group["fused"]
            group["fused"] = fused
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for parameter in policy.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        results.append([p.detach().clone() for p in policy.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
