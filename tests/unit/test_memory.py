"""The forecast of memory counts what is there, on tensors without data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from families import CAUSAL, causal_lm, special_tokens
from families import make_config as make_architecture
from helpers import FAMILIES, byte_tokenizer, make_config, tiny_model

from rlhf_ppo.config import LoraConfig
from rlhf_ppo.errors import UserError
from rlhf_ppo.inputs import Checked
from rlhf_ppo.models.forward import lay_out
from rlhf_ppo.models.lora import peft_config
from rlhf_ppo.resources import NoForecast, check_memory, plan_memory
from rlhf_ppo.training import memory
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.live_bytes import LiveBytes, available_bytes, held_bytes
from rlhf_ppo.training.memory import (
    Forecast,
    Work,
    forecast_evaluation,
    forecast_ppo,
    forecast_supervised,
)
from rlhf_ppo.training.shapes import RewardShape

WORK = Work(responses=8, prompt_tokens=10, device="cpu")
ROLLOUT = {"batch_size": 8, "max_new_tokens": 20}


def weights(model: torch.nn.Module) -> int:
    """Bytes of the parameters, tied ones once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def buffers(model: torch.nn.Module) -> int:
    return sum(b.numel() * b.element_size() for b in model.buffers())


def foresee(family: str = "llama", work: Work = WORK, **sections: Any) -> Forecast:
    config = make_config(
        **({"rollout": ROLLOUT, "reward": {"sources": [{"kind": "function", "path": "a:b"}]}})
        | sections
    )
    return forecast_ppo(config, tiny_model(family).config, [], work)


def test_bytes_are_counted_once_and_forgotten_when_freed() -> None:
    with LiveBytes() as live:
        first = torch.zeros(1000)
        assert live.now == 4000
        view = first[10:].view(-1, 3)
        first.add_(1)
        assert live.now == 4000
        second = first + 1
        assert live.now == live.peak == 8000
        del second
        assert live.now == 4000
        del first
        assert live.now == 4000, "the view holds it"
        del view
        assert live.now == 0
        assert live.peak == 8000
        torch.zeros(10)
        assert live.extra(0) == 8000
        assert live.extra(0) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stays_is_weights_optimizer_and_reference(family: str) -> None:
    model = tiny_model(family)
    head = 4 * (32 + 1)
    found = foresee(family).roles
    assert found["policy and values"] == pytest.approx(
        weights(model) + buffers(model) + head, rel=0.01
    )
    assert found["reference"] == pytest.approx(weights(model) + buffers(model), rel=0.01)
    assert found["optimizer"] == pytest.approx(2 * (weights(model) + head), rel=0.01)
    assert found["reward models"] == 0


def test_adapters_need_no_reference_and_hardly_an_optimizer() -> None:
    full, lora = foresee().roles, foresee(lora={"rank": 2}).roles
    assert lora["reference"] == 0
    assert lora["optimizer"] < 0.3 * full["optimizer"]
    assert full["policy and values"] < lora["policy and values"] < 1.3 * full["policy and values"]


def test_a_value_model_of_its_own_is_a_trunk_with_its_optimizer() -> None:
    shared, own = foresee().roles, foresee(value={"model": "policy"}).roles
    trunk = weights(tiny_model("llama").model)
    assert own["policy and values"] - shared["policy and values"] == pytest.approx(trunk, rel=0.02)
    assert own["optimizer"] - shared["optimizer"] == pytest.approx(2 * trunk, rel=0.02)


def test_half_the_bytes_of_weights_in_bfloat16() -> None:
    full = foresee(lora={"rank": 2}).roles["policy and values"]
    half = foresee(lora={"rank": 2}, policy={"dtype": "bfloat16"}).roles["policy and values"]
    assert half < 0.75 * full


def test_reward_models_are_counted_each_in_its_own_type() -> None:
    sources = [{"kind": "model", "name": n, "path": n} for n in ("one", "two")]
    config = make_config(rollout=ROLLOUT, reward={"sources": sources})
    policy = tiny_model("llama").config
    shape = tiny_model("llama").config
    shape.num_labels = 1
    models = [RewardShape(shape, "float32"), RewardShape(shape, "bfloat16")]
    found = forecast_ppo(config, policy, models, WORK).roles["reward models"]
    trunk = weights(tiny_model("llama").model)
    assert found == pytest.approx(1.5 * trunk, rel=0.02)


def test_a_reward_adapter_on_the_policys_base_is_no_second_model() -> None:
    """It was counted as a whole model, so that LoRA runs seemed to need twice their base."""
    sources = [{"kind": "model", "path": "r"}]
    config = make_config(rollout=ROLLOUT, reward={"sources": sources}, lora={"rank": 2})
    shape = tiny_model("llama").config
    shape.num_labels = 1
    settings = peft_config(LoraConfig(rank=2), "SEQ_CLS")
    found = forecast_ppo(config, shape, [RewardShape(shape, "float32", settings)], WORK)
    alone = foresee(lora={"rank": 2})
    adapters = found.roles["policy and values"] - alone.roles["policy and values"]
    assert found.roles["reward models"] == 0
    assert found.roles["optimizer"] == alone.roles["optimizer"], "it is not trained"
    # Two moments of each trained weight, of the policy's adapter and a head of 33.
    assert adapters == pytest.approx(alone.roles["optimizer"] / 2 - 4 * 33, rel=0.02)


def test_on_a_cpu_adapters_leave_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA's process took 25 to 40 % more than its tensors and the libraries."""
    lora, full = foresee(lora={"rank": 2}).phases["update"], foresee().phases["update"]
    monkeypatch.setattr(memory, "ADAPTER_HOLES", 0)
    assert 1.4 * foresee(lora={"rank": 2}).phases["update"] < lora
    assert foresee().phases["update"] == full


def test_a_trained_adapter_has_a_frozen_copy_beside_it() -> None:
    config = make_config(
        rollout=ROLLOUT, reward={"sources": [{"kind": "function", "path": "a:b"}]}, lora={}
    )
    start = peft_config(LoraConfig(rank=4), "CAUSAL_LM")
    shape = tiny_model("llama").config
    found = forecast_ppo(config, shape, [], WORK, start).roles
    fresh = foresee(lora={"rank": 4}).roles
    more = found["policy and values"] - fresh["policy and values"]
    assert more == pytest.approx(fresh["optimizer"] / 2 - 4 * 33, rel=0.02)
    assert found["optimizer"] == fresh["optimizer"]


def test_activations_are_those_that_autograd_keeps() -> None:
    """Counted by hooks on a real pass of the same tokens."""
    from helpers import random_tokens

    from rlhf_ppo.config import ValueConfig
    from rlhf_ppo.models.policy import build_policy

    tokens = random_tokens(8, widths=(10, 20))
    tokens = replace(tokens, response_mask=torch.ones_like(tokens.response_mask))
    tokens = replace(tokens, prompt_lengths=torch.full_like(tokens.prompt_lengths, 10))
    policy = build_policy(tiny_model("llama"), None, ValueConfig(), None, False)
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = policy(lay_out(tokens), 1.0)
    found = foresee(ppo={"micro_batch_tokens": 8 * 30}).phases["update"]
    least = sum(kept.values()) + weights(policy)  # with the gradients
    assert out.logprobs.shape == (8, 20)
    assert least < found < 1.5 * least


def test_more_tokens_at_once_take_more_and_recomputing_takes_less() -> None:
    small = foresee(ppo={"micro_batch_tokens": 60}).phases["update"]
    large = foresee(ppo={"micro_batch_tokens": 240}).phases["update"]
    again = foresee(
        ppo={"micro_batch_tokens": 240}, policy={"gradient_checkpointing": True}
    ).phases["update"]
    assert small < again < large
    few = foresee(ppo={"judge_batch_tokens": 60}).phases["judge"]
    assert few < foresee(ppo={"judge_batch_tokens": 240}).phases["judge"]
    assert (
        foresee(rollout=ROLLOUT | {"generation_batch_size": 2}).phases["rollout"]
        < foresee().phases["rollout"]
    )


def test_a_step_has_no_more_tokens_than_its_responses() -> None:
    wide = foresee(ppo={"micro_batch_tokens": 10**9}).phases["update"]
    assert wide == foresee(ppo={"micro_batch_tokens": 8 * 30}).phases["update"]


def test_a_run_that_cannot_fit_is_refused_with_what_would_help() -> None:
    found = foresee()
    config = make_config(rollout=ROLLOUT)
    check_memory(config, [replace(found, available=None)], 1)
    check_memory(config, [replace(found, available=found.needed)], 1)
    for available, sharers, said in (
        (found.needed - 1, 1, "PPO needs"),
        (found.needed, 2, "PPO needs 2 processes x"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            check_memory(config, [replace(found, available=available)], sharers)
        for remedy in ("`lora`", "ppo.micro_batch_tokens", "gradient_checkpointing"):
            assert remedy in str(caught.value)
    adapters = make_config(rollout=ROLLOUT, lora={"rank": 2})
    with pytest.raises(UserError) as caught:
        check_memory(adapters, [replace(found, available=1)], 1)
    assert "`lora`" not in str(caught.value)


def test_what_the_process_holds_already_counts_at_the_peak_but_not_against_what_is_free() -> None:
    """302 MiB were foretold where 1055 were used: imports and data were not counted."""
    found = replace(foresee(), held=500 * 2**20, available=foresee().needed)
    assert found.peak == found.needed + 500 * 2**20
    check_memory(make_config(rollout=ROLLOUT), [found], 1)
    assert ("held already", "500 MiB") in found.lines()
    assert held_bytes("cpu") > 100 * 2**20, "PyTorch alone takes that"
    assert foresee().held > 100 * 2**20


FOREIGN = {
    "gemma2": "sliding windows",
    "gptj": "rows that are not packed",
    "falcon/alibi": "ALiBi",
    "qwen3_moe": "experts",
    "deepseek_v3": "experts, latent attention",
    "gpt_oss": "sinks",
    "jamba": "states, experts",
    "mamba": "states alone",
    "lfm2": "convolutions",
    "opt/projected": "narrow states",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_families_unlike_llama_are_forecast_too(name: str) -> None:
    """A traceback ended their runs before anything started."""
    tokenizer = byte_tokenizer()
    config = make_config(rollout=ROLLOUT, reward={"sources": [{"kind": "function", "path": "a:b"}]})
    architecture = make_architecture(name, CAUSAL[name], **special_tokens(tokenizer))
    model = causal_lm(name, tokenizer)
    found = forecast_ppo(config, architecture, [], WORK)
    # Buffers and the value head are small beside the weights.
    assert weights(model) <= found.roles["policy and values"] < 1.1 * weights(model) + 4096
    assert found.roles["optimizer"] == pytest.approx(2 * weights(model), rel=0.05)
    assert min(found.phases.values()) > 0


def test_a_cache_takes_a_windows_worth_of_tokens_and_a_state_whatever_the_length() -> None:
    def cache(name: str, prompt_tokens: int) -> int:
        tokenizer = byte_tokenizer()
        architecture = make_architecture(name, CAUSAL[name], **special_tokens(tokenizer))
        config = make_config(
            rollout=ROLLOUT, reward={"sources": [{"kind": "function", "path": "a:b"}]}
        )
        work = replace(WORK, prompt_tokens=prompt_tokens)
        return forecast_ppo(config, architecture, [], work).phases["rollout"]

    # float32, 2 layers of 2 key heads of 8: half of the layers have a window of 8 tokens.
    a_layer = 8 * 100 * (2 * 2 * 8 * 4)  # rows x tokens x bytes
    assert cache("llama", 110) - cache("llama", 10) == 2 * a_layer
    assert cache("gemma2", 110) - cache("gemma2", 10) == a_layer
    assert cache("mamba", 110) == cache("mamba", 10)


def test_a_stage_that_cannot_be_forecast_says_so_and_stops_nothing() -> None:
    """JetMoE's experts need to know their tokens, which tensors without data do not."""
    tokenizer = byte_tokenizer()
    architecture = make_architecture("jetmoe", CAUSAL["jetmoe"], **special_tokens(tokenizer))
    config = make_config(rollout=ROLLOUT, reward={"sources": [{"kind": "function", "path": "a:b"}]})
    nothing: Any = None
    checked = Checked(nothing, {}, architecture, 10, tokenizer)
    found = plan_memory(config, ["ppo"], nothing, checked, None, Processes(config))
    assert [type(each) for each in found] == [NoForecast]
    assert str(found[0]).startswith("memory of ppo: cannot be forecast for jetmoe (")
    assert "\n" not in str(found[0])
    check_memory(config, found, 1)


@pytest.mark.parametrize("adapters", [False, True])
def test_the_supervised_stages_are_forecast_as_ppo_is(adapters: bool) -> None:
    model = tiny_model("llama")
    config = make_config(**({"lora": {"rank": 2}} if adapters else {}))
    shape = RewardShape(model.config, "float32")
    small, large = (forecast_supervised(config, "sft", shape, 8, n, WORK) for n in (10, 40))
    assert small.phases["update"] < large.phases["update"]
    assert weights(model) <= small.roles["model"]
    if adapters:
        assert small.roles["optimizer"] < weights(model)
    else:
        assert small.roles["optimizer"] == pytest.approx(2 * weights(model), rel=0.01)
        # All logits of a micro-batch in float32, kept for the backward pass.
        assert large.phases["update"] > 4 * 8 * 40 * model.config.vocab_size
    shape.config.num_labels = 1
    assert forecast_supervised(config, "reward_model", shape, 16, 40, WORK).peak > 0


def test_the_evaluation_holds_policy_reference_and_reward_models_and_no_optimizer() -> None:
    shape = tiny_model("llama").config
    shape.num_labels = 1
    config = make_config(rollout=ROLLOUT, reward={"sources": [{"kind": "model", "path": "r"}]})
    found = forecast_evaluation(config, shape, [RewardShape(shape, "float32")], WORK)
    assert found.roles["policy and values"] > found.roles["reward models"] > 0
    assert found.roles["reference"] > 0
    assert "optimizer" not in found.roles and "update" not in found.phases


def test_the_machine_says_how_much_there_is() -> None:
    found = available_bytes("cpu")
    assert found is not None
    assert 2**28 < found < 2**50
