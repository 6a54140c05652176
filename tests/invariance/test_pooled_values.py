"""Values from the policy's states and their running mean: right, causal, and no burden on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import FAMILIES, random_tokens, tiny_model
from runs import make_run, rollout_batch, update_once
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from rlhf_ppo.algorithm.batch import Tokens, TrainBatch
from rlhf_ppo.config import LoraConfig, ValueConfig
from rlhf_ppo.models.forward import lay_out
from rlhf_ppo.models.policy import PolicyWithValueHead, build_policy
from rlhf_ppo.training.ppo import PpoRun

POOLED = ValueConfig(model="pooled")
SCALES = (4, 16, 64, 256, 1024)


def pooled_policy(family: str, lora: LoraConfig | None = None) -> PolicyWithValueHead:
    """A policy whose pooled values are not zero."""
    policy = build_policy(tiny_model(family), lora, POOLED, None, False).eval()
    torch.nn.init.normal_(policy.value_head.out.weight, generator=torch.Generator().manual_seed(1))
    return policy


def values_of(policy: PolicyWithValueHead, tokens: Tokens) -> Tensor:
    with torch.no_grad():
        found: Tensor = policy(lay_out(tokens), 1.0).values
    return found


def definition(policy: PolicyWithValueHead, ids: Tensor, start: int) -> Tensor:
    """V before each token from `start` on, token by token, from the plain model's states."""
    head = policy.value_head
    with torch.no_grad():
        states = policy.lm(input_ids=ids[None], output_hidden_states=True).hidden_states[-1][0]
        found = []
        for t in range(start, len(ids)):
            seen = [
                head.project(layer_norm(states[s], states[s].shape)) for s in range(start - 1, t)
            ]
            now, mean = gelu(seen[-1]), sum(gelu(each) for each in seen) / len(seen)
            waves = [
                wave(torch.tensor(len(seen) / scale))
                for wave in (torch.sin, torch.cos)
                for scale in SCALES
            ]
            found.append(head.out(gelu(head.mix(torch.cat([now, mean, torch.stack(waves)])))))
    return torch.cat(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_values_are_those_of_the_definition(family: str) -> None:
    policy, tokens = pooled_policy(family), random_tokens(5)
    values = values_of(policy, tokens)
    for row in range(5):
        length, mask = int(tokens.prompt_lengths[row]), tokens.response_mask[row]
        ids = torch.cat([tokens.prompt_ids[row, :length], tokens.response_ids[row][mask]])
        torch.testing.assert_close(
            values[row][mask], definition(policy, ids, length), rtol=1e-4, atol=1e-4
        )
    assert bool((values[~tokens.response_mask] == 0).all())


def test_a_pooled_value_knows_nothing_of_the_tokens_after_it() -> None:
    policy, tokens = pooled_policy("llama"), random_tokens(4)
    before = values_of(policy, tokens)
    tokens.response_ids[:, 3:] = (tokens.response_ids[:, 3:] + 7) % 20
    after = values_of(policy, tokens)
    assert torch.equal(before[:, :4], after[:, :4])  # that of a token is the state before it
    assert not torch.equal(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["full", "lora"])
def test_the_pooled_value_loss_has_no_gradient_in_the_policy(lora: LoraConfig | None) -> None:
    policy = pooled_policy("llama", lora)
    policy(lay_out(random_tokens(4)), 1.0).values.sum().backward()
    moved = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert moved and all(name.startswith("value_head.") for name in moved)
    assert moved == set(policy.value_parameters())


def run_with(coefficient: float = 0.1, updates: int = 1, **ppo: Any) -> tuple[PpoRun, TrainBatch]:
    run = make_run(
        spread=0.3,
        stops=range(5, 70),
        rollout={"max_new_tokens": 9},
        value={"model": "pooled", "coefficient": coefficient, "updates": updates},
        ppo={"epochs": 2, "learning_rate": 1e-3, "micro_batch_tokens": 60} | ppo,
    )
    return run, rollout_batch(run)


@pytest.mark.parametrize("updates", [1, 3])
def test_no_weight_of_the_value_loss_changes_what_the_policy_learns(updates: int) -> None:
    """Not even through the norm by which gradients are clipped."""
    weights = []
    for coefficient in (0.1, 1000.0):
        run, batch = run_with(coefficient, updates, max_grad_norm=0.01)
        update_once(run, batch)
        weights.append([p.detach().clone() for p in run.roles.policy.lm.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_further_value_updates_are_further_steps_on_the_states_before_the_policy_moved() -> None:
    run, batch = run_with(updates=3, epochs=1, max_grad_norm=None)
    policy = run.roles.policy
    twin, _ = run_with(epochs=1)
    head, mask = twin.roles.policy.value_head, batch.tokens.response_mask
    layout = lay_out(batch.tokens)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, eps=1e-5, weight_decay=0.0)
    for _ in range(3):  # the twin's policy stays where both began
        values = twin.roles.policy(layout, 1.0).values
        near = values.clamp(batch.values - 0.2, batch.values + 0.2)
        errors = [0.5 * (each - batch.returns) ** 2 for each in (values, near)]
        loss = 0.1 * torch.maximum(*errors)[mask].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    update_once(run, batch)
    for name, parameter in policy.value_head.named_parameters():
        torch.testing.assert_close(
            parameter, head.get_parameter(name), rtol=1e-3, atol=1e-5, msg=name
        )


def test_pooled_values_learn_what_a_last_state_does_not_hold() -> None:
    """How often a token has been said so far: the running mean holds it, one state does not."""
    torch.manual_seed(0)
    tokens = random_tokens(48, widths=(4, 24))
    said = (tokens.response_ids % 7 == 0).float() * tokens.response_mask
    target = said.cumsum(dim=1) - said  # before each token
    mask = tokens.response_mask
    left = {}
    for kind in ("shared", "pooled"):
        policy = build_policy(tiny_model("llama"), None, ValueConfig(model=kind), None, False)
        head = policy.value_head.parameters()
        optimizer = torch.optim.AdamW(head, lr=3e-3)
        layout = lay_out(tokens)
        for _ in range(60):
            loss = ((policy(layout, 1.0).values - target)[mask] ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        left[kind] = float(loss.detach()) / float(target[mask].var())
    assert left["pooled"] < 0.5 * left["shared"]
