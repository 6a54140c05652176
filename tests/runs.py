"""A PPO run in this process, with a Python object for a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from helpers import byte_tokenizer, encoded_prompts, make_config, tiny_model

from rlhf_ppo.algorithm.batch import TrainBatch
from rlhf_ppo.config import Config, leaves
from rlhf_ppo.data.prompts import EncodedPrompt, Prompt
from rlhf_ppo.models.policy import FrozenPolicy, build_policy
from rlhf_ppo.rewards.judgement import Score, as_score
from rlhf_ppo.rewards.sources import Sources
from rlhf_ppo.rollout.collect import Roles, collect, sample
from rlhf_ppo.rollout.generation import SamplingSettings
from rlhf_ppo.rollout.noise import sampling_noise
from rlhf_ppo.training.checkpoint import Progress
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.ppo import HeldOut, PpoRun
from rlhf_ppo.training.roles import make_optimizer
from rlhf_ppo.training.train_batch import loss_settings, make_train_batch
from rlhf_ppo.training.update import UpdateStats, ppo_update

START = Progress(step=0, episodes=0, tokens=0, beta=0.0)
PROMPTS = encoded_prompts([[20 + row, 40, 60 + row] for row in range(16)])


class PythonReward:
    """Scores texts by a plain function."""

    def __init__(self, function: Callable[[str], float]) -> None:
        self.function = function

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """One score a response."""
        return [as_score(self.function(text)) for text in responses]


def make_run(
    reward: Callable[[str], float] = len,
    /,
    *,
    family: str = "llama",
    seed: int = 1,
    spread: float = 0.05,
    stops: Sequence[int] = (),
    output_dir: Path | str = "unused",
    **sections: Any,
) -> PpoRun:
    """Policy, reference and optimizer around a byte-level tokenizer."""
    sections = {"seed": seed, "output_dir": str(output_dir)} | sections
    config: Config = make_config(**sections)
    tokenizer = byte_tokenizer()
    lm, reference = (tiny_model(family, len(tokenizer), seed, spread) for _ in range(2))
    stop = (int(tokenizer.eos_token_id), *stops)  # type: ignore[arg-type]
    return assemble(config, lm, reference, tokenizer, reward, PROMPTS, stop)


def assemble(
    config: Config,
    lm: Any,
    reference: Any,
    tokenizer: Any,
    reward: Callable[[str], float],
    prompts: Sequence[EncodedPrompt],
    stop: tuple[int, ...],
) -> PpoRun:
    """A run around given models, as `training/roles.py` makes it from folders."""
    processes = Processes(config)
    policy = build_policy(lm, config.lora, config.value, None, config.policy.gradient_checkpointing)
    wrapped, optimizer = processes.prepare(policy, make_optimizer(config, policy))
    roles = Roles(
        policy=policy,
        policy_forward=wrapped,
        reference=FrozenPolicy(reference) if config.lora is None else None,
        reward=Sources([(leaves(config.reward.sources)[0][0], PythonReward(reward))]),
        tokenizer=tokenizer,
        autocast=processes.autocast,
    )
    limit, temperature = config.rollout.max_new_tokens, config.rollout.temperature
    return PpoRun(
        config=config,
        roles=roles,
        optimizer=optimizer,
        prompts=prompts,
        sampling=SamplingSettings(limit, temperature, stop, config.rollout.generation_batch_size),
        processes=processes,
        gold=None,
        evaluate=lambda progress: HeldOut({}, {}),
    )


def rollout_batch(run: PpoRun) -> TrainBatch:
    """A rollout of all prompts and what the update would be given."""
    config = run.config
    noise = sampling_noise(1, "test", 1, range(len(PROMPTS)), config.rollout.max_new_tokens)
    responses = sample(run.roles, PROMPTS, noise, run.sampling)
    rollout, _ = collect(run.roles, PROMPTS, responses, config.rollout.temperature, 10_000)
    return make_train_batch(config, rollout, rollout.source_scores[:, 0], config.kl.beta)


def update_once(
    run: PpoRun, batch: TrainBatch, optimizer: Any = None, train_policy: bool = True
) -> UpdateStats:
    """One update by the run's own optimizer, or by one that only records."""
    return ppo_update(
        run.roles.policy,
        run.roles.policy_forward,
        run.optimizer if optimizer is None else optimizer,
        batch,
        run.config,
        loss_settings(run.config, run.config.kl.beta, run.config.ppo.penalty),
        torch.Generator().manual_seed(0),
        run.processes,
        train_policy,
    )
