"""Generate, then judge: from prompts to a `Rollout`. No gradients."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_ppo.algorithm.batch import Responses, Rollout, TokenOutputs, Tokens
from rlhf_ppo.console import tick
from rlhf_ppo.data.prompts import EncodedPrompt
from rlhf_ppo.data.responses import Response, read_response
from rlhf_ppo.data.template import Text
from rlhf_ppo.models.forward import Layout, lay_out, micro_batches
from rlhf_ppo.models.offload import borrowed
from rlhf_ppo.models.policy import FrozenPolicy, PolicyWithValueHead
from rlhf_ppo.rewards.judgement import Failure, Reward
from rlhf_ppo.rollout.generation import SamplingSettings, generate


@dataclass(frozen=True)
class Roles:
    """The models of a run, on their device."""

    policy: PolicyWithValueHead  # bare: for generation and saving
    policy_forward: nn.Module  # the same behind Accelerate's wrapper: for forward passes
    reference: FrozenPolicy | None  # None: the policy without what it has learnt, see as_reference
    reward: Reward
    tokenizer: PreTrainedTokenizerBase
    autocast: Callable[[], AbstractContextManager[Any]]

    @property
    def device(self) -> torch.device:
        """Where the policy lives."""
        device: torch.device = next(self.policy.value_head.parameters()).device
        return device


def sample(
    roles: Roles, prompts: Sequence[EncodedPrompt], noise: Tensor, settings: SamplingSettings
) -> Responses:
    """Responses of the policy to B prompts; noise is (B, max_new_tokens)."""
    with roles.autocast():
        return generate(roles.policy.lm, prompts, noise, settings)


def sample_reference(
    roles: Roles, prompts: Sequence[EncodedPrompt], noise: Tensor, settings: SamplingSettings
) -> Responses:
    """Responses of the reference to B prompts; noise is (B, max_new_tokens)."""
    with roles.autocast(), reference_at_hand(roles):
        if roles.reference is not None:
            return generate(roles.reference.lm, prompts, noise, settings)
        with roles.policy.as_reference():
            return generate(roles.policy.lm, prompts, noise, settings)


@torch.no_grad()
def judge(
    roles: Roles, tokens: Tokens, temperature: float, budget: int
) -> tuple[TokenOutputs, Tensor]:
    """What policy and reference say of each response token.

    Both see the same micro-batches, so that equal weights give a KL of exactly 0.

    Args:
        roles: the models.
        tokens: B prompts and responses, on the CPU.
        temperature: of the sampler.
        budget: tokens of one forward pass.

    Returns:
        The policy's outputs and the reference's log-probabilities, (B, R) on the CPU.
    """
    shape = tokens.response_mask.shape
    logprobs, values, entropy, ref_logprobs = (torch.zeros(shape) for _ in range(4))
    with reference_at_hand(roles):
        for rows in micro_batches(tokens.lengths, budget):
            layout = lay_out(tokens.select(rows)).to(roles.device)
            outputs: TokenOutputs = roles.policy_forward(layout, temperature)
            logprobs[rows] = outputs.logprobs.float().cpu()
            values[rows] = outputs.values.float().cpu()
            entropy[rows] = outputs.entropy.float().cpu()
            ref_logprobs[rows] = reference_logprobs(roles, layout, temperature).float().cpu()
            tick(len(rows))
    return TokenOutputs(logprobs, values, entropy), ref_logprobs


def collect(
    roles: Roles,
    prompts: Sequence[EncodedPrompt],
    responses: Responses,
    temperature: float,
    budget: int,
) -> tuple[Rollout, list[Failure]]:
    """Judge sampled responses by policy, reference, value head and reward sources.

    Args:
        roles: the models.
        prompts: B prompts.
        responses: to these prompts, in the same order.
        temperature: of the sampler.
        budget: tokens of one forward pass.

    Returns:
        The rollout, and why a score is missing where one is.
    """
    outputs, ref_logprobs = judge(roles, responses.tokens, temperature, budget)
    asked = [item.prompt.text for item in prompts]
    texts = response_texts(roles.tokenizer, responses.tokens, asked)
    with roles.autocast():
        judgement = roles.reward.score([item.prompt for item in prompts], texts)
    rollout = Rollout(
        responses=responses,
        logprobs=outputs.logprobs,
        ref_logprobs=ref_logprobs,
        values=outputs.values,
        entropy=outputs.entropy,
        source_scores=judgement.scores,
    )
    return rollout, judgement.failures


def response_texts(
    tokenizer: PreTrainedTokenizerBase, tokens: Tokens, prompts: Sequence[Text] = ()
) -> list[Response]:
    """What a person reads: the responses without special tokens.

    Args:
        tokenizer: of the policy.
        tokens: B prompts and responses.
        prompts: the same prompts, B strings or conversations; empty: strings.
    """
    rows = zip(
        tokens.prompt_ids.tolist(),
        tokens.prompt_lengths.tolist(),
        tokens.response_ids,
        tokens.response_mask,
        prompts or [""] * len(tokens.prompt_ids),
        strict=True,
    )
    return [
        read_response(tokenizer, prompt[:length], ids[mask].tolist(), text)
        for prompt, length, ids, mask, text in rows
    ]


def reference_at_hand(roles: Roles) -> AbstractContextManager[None]:
    """A context in which a reference that waits elsewhere is on the policy's device."""
    return nullcontext() if roles.reference is None else borrowed(roles.reference, roles.device)


def reference_logprobs(roles: Roles, layout: Layout, temperature: float) -> Tensor:
    """What the reference, at hand, says of each response token: (B, R) float32, nats."""
    with roles.autocast():
        if roles.reference is None:
            return roles.policy.reference_logprobs(layout, temperature)
        logprobs: Tensor = roles.reference(layout, temperature)
        return logprobs
