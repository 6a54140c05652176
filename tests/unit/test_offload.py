"""What saves memory on a GPU, seen on a CPU: where frozen models are, what extras are told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import given_reward, make_config, random_tokens, tiny_model
from runs import make_run
from torch import nn

from rlhf_ppo.models.load import load_causal_lm
from rlhf_ppo.models.offload import borrowed
from rlhf_ppo.models.policy import FrozenPolicy
from rlhf_ppo.rewards.sources import Places, load_sources
from rlhf_ppo.rollout import collect
from rlhf_ppo.training.roles import make_optimizer


def devices(model: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}


@pytest.mark.parametrize("fails", [False, True])
def test_a_borrowed_model_is_elsewhere_inside_and_the_same_memory_again_outside(
    fails: bool,
) -> None:
    """Nothing is copied back: that would cost the time of the way there once more."""
    model = FrozenPolicy(tiny_model("llama"))
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    try:
        with borrowed(model, torch.device("meta")):
            assert devices(model) == {"meta"}
            assert model.lm.get_output_embeddings().weight is model.lm.get_input_embeddings().weight
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert devices(model) == {"cpu"}
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before


def test_a_model_that_is_there_is_not_moved() -> None:
    model = FrozenPolicy(tiny_model("llama"))
    before = [tensor.data_ptr() for tensor in model.parameters()]
    with borrowed(model, torch.device("cpu")):
        assert [tensor.data_ptr() for tensor in model.parameters()] == before


def test_the_reference_is_asked_only_where_it_was_brought_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run()
    inside: list[nn.Module] = []
    asked = []

    @contextmanager
    def recorded(model: nn.Module, device: torch.device) -> Iterator[None]:
        assert device == run.roles.device
        inside.append(model)
        yield
        inside.pop()

    monkeypatch.setattr(collect, "borrowed", recorded)
    assert run.roles.reference is not None
    run.roles.reference.register_forward_pre_hook(lambda *_: asked.append(list(inside)))
    collect.judge(run.roles, random_tokens(5), 1.0, 10)
    assert len(asked) > 1  # several micro-batches, one way there and back
    assert all(found == [run.roles.reference] for found in asked)
    assert not inside


def test_an_offloaded_reward_model_is_loaded_to_the_cpu_and_scored_on_the_device(
    gpt2_models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[str] = []

    @contextmanager
    def recorded(model: nn.Module, device: torch.device) -> Iterator[None]:
        moves.append(f"to {device}")
        yield
        moves.append("back")

    monkeypatch.setattr("rlhf_ppo.rewards.sources.borrowed", recorded)
    config = make_config(reward=given_reward(gpt2_models["reward"]))
    places = Places(torch.device("cuda"), offload=True)
    found = load_sources(config.reward, "nowhere", places).first_model()
    assert found is not None and devices(found.model) == {"cpu"}
    moves.clear()
    found.score_texts(["a", "b"], ["c", "d"])
    assert moves == ["to cuda", "back"]


def test_the_8_bit_optimizer_gets_the_same_groups_and_numbers_as_adamw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a stand-in: bitsandbytes needs a GPU."""
    told: dict[str, Any] = {}

    def eight_bit(groups: Any, **options: Any) -> Any:
        told.update(options, groups=groups)
        return SimpleNamespace()

    fake: Any = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=eight_bit))
    policy = make_run(lora={"rank": 2}, value={"model": "adapter"}).roles.policy
    ppo = {"learning_rate": 0.5, "adam_beta2": 0.9, "adam_epsilon": 0.1, "weight_decay": 0.2}
    sections: dict[str, Any] = {"lora": {}, "value": {"learning_rate": 0.25}}
    plain = make_optimizer(make_config(ppo=ppo, **sections), policy)
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    monkeypatch.setattr("rlhf_ppo.models.load.find_spec", lambda name: object())
    make_optimizer(make_config(ppo=ppo | {"optimizer": "adamw_8bit"}, **sections), policy)
    assert told.pop("groups") == [
        {"params": group["params"], "lr": group["lr"], "peak": group["peak"]}
        for group in plain.param_groups
    ]
    assert told == {key: plain.defaults[key] for key in ("betas", "eps", "weight_decay")}
    names = {id(p): name for name, p in policy.named_parameters()}
    of_policy, of_values = ([names[id(p)] for p in g["params"]] for g in plain.param_groups)
    assert of_policy and all(".default." in name for name in of_policy)
    assert all("rlhf_value" in name or "value_head" in name for name in of_values)
    assert len(of_values) == len(of_policy) + 2
    assert [group["lr"] for group in plain.param_groups] == [0.5, 0.25]


def test_a_quantised_base_is_asked_for_in_nf4_on_the_runs_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a stand-in: bitsandbytes needs a GPU."""
    told: dict[str, Any] = {}

    def load(path: str, **options: Any) -> Any:
        told.update(options, path=path)
        return tiny_model("llama"), dict.fromkeys(
            ("missing_keys", "unexpected_keys", "mismatched_keys"), ()
        )

    monkeypatch.setattr("rlhf_ppo.models.load.check_model_path", lambda path, setting: None)
    monkeypatch.setattr("rlhf_ppo.models.load.AutoModelForCausalLM.from_pretrained", load)
    device = torch.device("cuda", 1)
    load_causal_lm("some/hub-id", "bfloat16", "policy.path", quantization="4bit", device=device)
    quantization = told["quantization_config"]
    assert quantization.load_in_4bit and quantization.bnb_4bit_quant_type == "nf4"
    assert quantization.bnb_4bit_compute_dtype == torch.bfloat16
    assert quantization.bnb_4bit_use_double_quant
    assert told["device_map"] == {"": device}
    load_causal_lm("some/hub-id", "float32", "policy.path")
    assert told["path"] == "some/hub-id" and told["dtype"] == torch.float32
