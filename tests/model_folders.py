"""Folders of models and adapters of five architectures, and PPO's roles built from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from helpers import byte_tokenizer, encoded_prompts, make_config, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_ppo.algorithm.batch import Rollout
from rlhf_ppo.config import Config
from rlhf_ppo.rollout.collect import Roles, collect, sample
from rlhf_ppo.rollout.generation import SamplingSettings
from rlhf_ppo.rollout.noise import sampling_noise
from rlhf_ppo.stamps import ModelPaths
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.roles import build_roles
from rlhf_ppo.training.train_batch import loss_settings, make_train_batch
from rlhf_ppo.training.update import ppo_update

PROMPTS = encoded_prompts([[20 + row, *range(40, 41 + row), 60 + row] for row in range(6)])
TOKENS = 8


@dataclass(frozen=True)
class Folders:
    """One architecture: a model, a trained adapter on it, and two reward models."""

    base: str
    adapter: str
    reward: str
    reward_adapter: str


def write_adapter(model: Any, base: str, folder: Path, task: str, seed: int) -> str:
    """An adapter that says something, beside its tokenizer."""
    torch.manual_seed(seed)
    settings = peft.LoraConfig(
        r=2,
        lora_alpha=4,
        lora_dropout=0.1,
        target_modules="all-linear",
        init_lora_weights=False,
        task_type=task,
    )
    adapted = peft.get_peft_model(model, settings)
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


class Written(dict[str, Folders]):
    """The folders of each architecture, made when first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __missing__(self, family: str) -> Folders:
        tokenizer, folder = byte_tokenizer(), self.root / family
        model = tiny_model(family, len(tokenizer))
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        base, reward = str(folder / "base"), str(folder / "reward")
        model.save_pretrained(base)
        torch.manual_seed(1)
        judge = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        judge.config.pad_token_id = tokenizer.pad_token_id
        judge.save_pretrained(reward)
        for path in (base, reward):
            tokenizer.save_pretrained(path)
        fresh = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        again = AutoModelForCausalLM.from_pretrained(base)
        self[family] = Folders(
            base,
            write_adapter(again, base, folder / "adapter", "CAUSAL_LM", 5),
            reward,
            write_adapter(fresh, base, folder / "reward_adapter", "SEQ_CLS", 6),
        )
        return self[family]


def config_of(path: str, reward: str, **sections: Any) -> Config:
    return make_config(
        policy={"path": path} | sections.pop("policy", {}),
        reward={"sources": [{"kind": "model", "path": reward}]},
        rollout={"max_new_tokens": TOKENS},
        ppo={"learning_rate": 0.01, "epochs": 1},
        **sections,
    )


def roles_of(config: Config) -> tuple[Roles, Any, Processes]:
    processes = Processes(config)
    paths = ModelPaths(config.policy.path or "", "nowhere")
    roles, optimizer = build_roles(config, paths, processes)
    return roles, optimizer, processes


def roll_out(roles: Roles) -> Rollout:
    noise = sampling_noise(1, "test", 1, range(len(PROMPTS)), TOKENS)
    responses = sample(roles, PROMPTS, noise, SamplingSettings(TOKENS, 1.0, (1, *range(5, 60)), 8))
    rollout, failures = collect(roles, PROMPTS, responses, 1.0, 10_000)
    assert not failures
    return rollout


def learn(
    config: Config, roles: Roles, optimizer: Any, processes: Processes
) -> tuple[Rollout, Any]:
    """One rollout and one update."""
    rollout = roll_out(roles)
    batch = make_train_batch(config, rollout, rollout.source_scores[:, 0], 0.05)
    stats = ppo_update(
        roles.policy,
        roles.policy_forward,
        optimizer,
        batch,
        config,
        loss_settings(config, 0.05, 1.0),
        torch.Generator().manual_seed(0),
        processes,
    )
    return rollout, stats


def differences(roles: Roles) -> Tensor:
    rollout = roll_out(roles)
    return (rollout.logprobs - rollout.ref_logprobs)[rollout.responses.tokens.response_mask]


LORA = {"rank": 2}
STARTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "full": ("base", "reward", {}),
    "full_from_adapter": ("adapter", "reward", {}),
    "fresh_lora": ("base", "reward", {"lora": LORA}),
    "trained_lora": ("adapter", "reward", {"lora": {}}),
    "shared_base": ("base", "reward_adapter", {"lora": LORA}),
    "shared_base_trained": (
        "adapter",
        "reward_adapter",
        {"lora": {}, "value": {"model": "adapter"}},
    ),
    "value_adapter": ("base", "reward", {"lora": LORA, "value": {"model": "adapter"}}),
    "value_model": ("base", "reward", {"value": {"model": "policy"}}),
    "value_model_lora": ("adapter", "reward", {"lora": {}, "value": {"model": "policy"}}),
    "value_from_reward": ("base", "reward", {"value": {"model": "reward"}}),
    "value_from_reward_adapter": (
        "adapter",
        "reward_adapter",
        {"lora": {}, "value": {"model": "reward"}},
    ),
    "full_reward_adapter": ("base", "reward_adapter", {}),
}
