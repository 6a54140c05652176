"""Ten things that must hold in any PPO system, each of which some shipped system got wrong.

One test an invariant, by its number and by the defect that it prevents. Other tests look at the
same places more closely; these are the list to read first.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from cli import run_here, write_config
from helpers import (
    ARCHITECTURES,
    FAMILIES,
    byte_tokenizer,
    encoded_prompts,
    given_reward,
    plain_logprobs,
    read_jsonl,
    tiny_model,
    write_plain_data,
)
from known_optimum import learn
from runs import PROMPTS, make_run, rollout_batch, update_once
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf_ppo.algorithm.kl import best_of_n_kl
from rlhf_ppo.algorithm.losses import clipped_policy_loss
from rlhf_ppo.rollout.collect import collect, sample
from rlhf_ppo.rollout.generation import SamplingSettings, generate
from rlhf_ppo.rollout.noise import sampling_noise
from rlhf_ppo.training.loop import train_ppo
from rlhf_ppo.training.train_batch import loss_settings, make_train_batch
from rlhf_ppo.training.update import _accumulate_gradients, _Tally, _weighted

RAGGED: dict[str, Any] = {"spread": 0.3, "stops": range(5, 70)}
ROLLOUT = {"max_new_tokens": 9}


def write_trained_adapter(base: str, folder: Path) -> str:
    """A LoRA adapter that says something, beside its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(5)
    settings = peft.LoraConfig(
        r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    peft.get_peft_model(model, settings).save_pretrained(folder)
    byte_tokenizer(chat=False).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("start", ["full", "fresh_adapter", "trained_adapter"])
def test_1_kl_is_exactly_0_at_step_0_or_the_reference_is_not_the_start(
    start: str, tmp_path: Path, gpt2_models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL took the bare base for the reference of a run that began at a trained adapter (#495)."""
    path = gpt2_models["policy"]
    if start == "trained_adapter":
        path = write_trained_adapter(path, tmp_path / "adapter")
    settings: dict[str, Any] = {
        "output_dir": "run",
        "data": write_plain_data(tmp_path),
        "policy": {"path": path},
        "reward": given_reward(gpt2_models["reward"]),
        "rollout": {"batch_size": 6, "max_new_tokens": 8},
        "ppo": {"steps": 2, "epochs": 1, "learning_rate": 0.01},
        "lora": None if start == "full" else {"rank": 2},
        "logging": {"trackers": []},
        "evaluation": {"every": 0},
    }
    config = write_config(tmp_path / "config.yaml", settings)
    assert run_here("ppo", ["--config", str(config)], tmp_path, monkeypatch) == 0
    first, second = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert first["kl/ref"] == 0.0
    assert second["kl/ref"] != 0.0  # it can be told from nothing at all


@pytest.mark.parametrize("family", FAMILIES)
def test_2_ratio_is_1_before_the_first_step_or_the_clip_acts_on_noise(family: str) -> None:
    """A sampler that differs from the trainer had good tokens clipped (trl#454, verl#2996)."""
    run = make_run(family=family, rollout=ROLLOUT | {"temperature": 1.7}, **RAGGED)
    batch = rollout_batch(run)
    stats = update_once(run, batch)
    assert stats.ratio_first_error < 1e-5
    assert stats.policy_clip_fraction == 0.0


class Apart:
    """One of several processes, alone: what it would send to the others stays here."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.device = torch.device("cpu")
        self.half = False

    def no_sync(self, model: Any, skip: bool) -> Any:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("budget", [30, 100_000])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed"])
def test_3_processes_and_micro_batches_do_not_change_the_gradient_or_losses_are_means_of_means(
    world: int, budget: int, aggregation: str
) -> None:
    """trl#5645, verl#6957, open-instruct: the mean of micro-batch means is another loss."""
    settings = {"micro_batch_tokens": budget, "loss_aggregation": aggregation}
    run = make_run(rollout=ROLLOUT, ppo=settings, **RAGGED)
    batch = rollout_batch(run)

    def gradient(world: int, run: Any) -> Tensor:
        policy, loss = run.roles.policy, loss_settings(run.config, 0.0, 1.0)
        for rank in range(world):
            apart: Any = Apart(rank, world)
            minibatch = _weighted(batch, run.config)
            _accumulate_gradients(policy, minibatch, run.config, loss, apart, _Tally(apart))
        return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    whole = make_run(rollout=ROLLOUT, ppo={"loss_aggregation": aggregation}, **RAGGED)
    wanted, found = gradient(1, whole), gradient(world, run)
    assert float((wanted - found).norm() / wanted.norm()) < 1e-4


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_4_a_prompt_padded_on_the_left_is_read_as_it_is_alone_or_positions_are_off(
    family: str,
) -> None:
    """OpenRLHF#217, trl#2778, trlx#474: position ids counted the padding."""
    model = tiny_model(family)
    prompts = encoded_prompts([[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16]])
    noise = sampling_noise(1, "test", 1, range(4), 8)
    settings = SamplingSettings(8, 1.0, (1, 2), batch_size=4)
    found = generate(model, prompts, noise, settings)
    for row, prompt in enumerate(prompts):
        mask = found.tokens.response_mask[row]
        alone = plain_logprobs(model, prompt.ids, found.tokens.response_ids[row][mask].tolist())
        torch.testing.assert_close(found.sampling_logprobs[row][mask], alone, rtol=0, atol=1e-4)


def test_5_a_pad_token_that_is_the_stop_token_changes_nothing(
    tmp_path: Path, gpt2_models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks from `ids != pad` dropped the stop token from the loss (trl#3750, trl#5303)."""
    letter = byte_tokenizer(chat=False)
    letter.pad_token = "e"
    model = AutoModelForCausalLM.from_pretrained(gpt2_models["policy"])
    model.config.pad_token_id = letter.pad_token_id
    for part in (model, letter):
        part.save_pretrained(tmp_path / "policy")
    other = gpt2_models | {"policy": str(tmp_path / "policy")}
    settings: dict[str, Any] = {
        "data": write_plain_data(tmp_path),
        "rollout": {"batch_size": 8, "max_new_tokens": 12},
        "ppo": {"steps": 2, "epochs": 2, "minibatches": 2, "learning_rate": 0.01},
        "logging": {"trackers": []},
        "evaluation": {"every": 0},
    }
    found = []
    for name, models in (("stop", gpt2_models), ("letter", other)):
        paths = {"policy": {"path": models["policy"]}, "reward": given_reward(models["reward"])}
        config = write_config(tmp_path / f"{name}.yaml", settings | paths | {"output_dir": name})
        assert run_here("ppo", ["--config", str(config)], tmp_path, monkeypatch) == 0
        metrics = read_jsonl(tmp_path / name / "metrics.jsonl")
        found.append([{k: v for k, v in entry.items() if "/" in k} for entry in metrics])
    for one, two in zip(*found, strict=True):
        for key in ("score/mean", "kl/ref", "policy/loss", "value/loss", "response/length"):
            assert one[key] == two[key], key


@pytest.mark.parametrize("minibatches", [1, 2, 4])
def test_6_more_minibatches_are_more_optimizer_steps(minibatches: int) -> None:
    """TRL's num_mini_batches changed nothing since #2531."""
    settings = {"epochs": 3, "minibatches": minibatches, "micro_batch_tokens": 40}
    run = make_run(rollout=ROLLOUT, ppo=settings, **RAGGED)
    steps = []
    run.optimizer.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    stats = update_once(run, rollout_batch(run))
    assert len(steps) == stats.optimizer_steps == 3 * minibatches


def test_7_advantages_are_whitened_over_all_processes_not_within_each() -> None:
    """TRL whitened per process, torchtune added the mean back, trlx counted the padding."""
    run = make_run(lambda text: text.count("e") * 3 + len(text), rollout=ROLLOUT, **RAGGED)
    noise = sampling_noise(1, "test", 1, range(len(PROMPTS)), 9)
    responses = sample(run.roles, PROMPTS, noise, run.sampling)
    rollout, _ = collect(run.roles, PROMPTS, responses, 1.0, 10_000)
    batch = make_train_batch(run.config, rollout, rollout.source_scores[:, 0], 0.05)
    kept = batch.advantages[batch.tokens.response_mask].double()
    assert float(kept.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(kept.var(unbiased=False)) == pytest.approx(1.0, abs=1e-4)
    half = rollout.select(torch.arange(8))
    alone = make_train_batch(run.config, half, half.source_scores[:, 0], 0.05).advantages
    width = alone.shape[1]
    assert not torch.allclose(alone, batch.advantages[:8, :width], atol=1e-2)


def test_8_an_interrupted_run_resumed_is_the_uninterrupted_one_to_the_bit(tmp_path: Path) -> None:
    """No system tests this; TRL cannot resume PPO at all (trl#2657)."""

    def weights(name: str, *until: int) -> list[Tensor]:
        for steps in until:
            sections: dict[str, Any] = {
                "output_dir": tmp_path / name,
                "rollout": {"batch_size": 8, "max_new_tokens": 6},
                "ppo": {"steps": steps, "epochs": 2, "minibatches": 2, "learning_rate": 0.01},
                "kl": {"controller": "adaptive"},
                "reward": {"normalization": "standardize", "normalization_from": "running"},
                "checkpoint": {"every": 1},
            }
            (tmp_path / name).mkdir(exist_ok=True)
            run = make_run(lambda text: text.count("e"), **sections)
            train_ppo(run)
        return [parameter.detach() for parameter in run.roles.policy.parameters()]

    once, twice = weights("once", 4), weights("twice", 2, 4)
    early = weights("early", 2)
    assert all(torch.equal(one, two) for one, two in zip(once, twice, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(once, early, strict=True))


def test_9_a_token_that_scores_more_becomes_likelier_as_far_as_theory_says() -> None:
    """Signs, masks and shifts at once: a bandit must end at softmax(score / beta) of the start."""
    before, after = learn(3, 60, limit=1, rollout={"batch_size": 256})
    assert before > 0.1
    assert after < 0.02
    new = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    old, advantages = torch.tensor([[-1.0, -1.0]]), torch.tensor([[1.0, -1.0]])
    clipped_policy_loss(new, old, advantages, 0.2).sum().backward()
    assert new.grad is not None
    assert new.grad.sign().tolist() == [[-1.0, 1.0]]  # a step against it raises the good token


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_10_best_of_n_costs_log_n_less_its_share_or_the_frontier_is_drawn_wrong(n: int) -> None:
    """Against the exact distribution of the best of n draws among many distinct scores."""
    size = 200_000
    rank = torch.arange(1, size + 1, dtype=torch.float64) / size
    chance = rank**n - (rank - 1 / size) ** n
    exact = float(torch.special.xlogy(chance, chance * size).sum())
    assert best_of_n_kl(n) == pytest.approx(exact, abs=1e-3)
