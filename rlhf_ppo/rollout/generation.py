"""Sampling responses: a decode loop over any causal language model of Transformers.

Why not `generate`: finished rows leave the batch here, and the noise is ours (see `noise.py`).
Nothing but the temperature shapes the distribution (no top-k, no top-p), so the log-probabilities
that PPO uses are those of the sampler.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_ppo.algorithm.batch import Responses, Tokens, concatenate
from rlhf_ppo.console import tick
from rlhf_ppo.data.prompts import EncodedPrompt
from rlhf_ppo.models.prepacked import prepacked_linears
from rlhf_ppo.rollout.decoder import Way, make_decoder, way_of


@dataclass(frozen=True)
class SamplingSettings:
    """How a response is drawn and when it ends."""

    max_new_tokens: int
    temperature: float  # 0: always the most probable token
    stop_ids: tuple[int, ...]
    batch_size: int  # responses decoded at once


def generate(
    model: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],
    noise: Tensor,
    settings: SamplingSettings,
) -> Responses:
    """Sample one response for each prompt.

    Args:
        model: causal language model, in the state that is to be sampled.
        prompts: B prompts.
        noise: (B, max_new_tokens) float64 in [0, 1), one number a token.
        settings: length, temperature, stop tokens.

    Returns:
        Responses in the order of the prompts, on the CPU.
    """
    # Prompts of similar length are decoded together, then put back in order.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
    parts = []
    training = model.training
    model.eval()  # gradient checkpointing, on in training mode, would throw the cache away
    way = way_of(model)
    with prepacked_linears(model, min(len(order), settings.batch_size)):
        for rows in _batches(order, [len(prompt.ids) for prompt in prompts], way, settings):
            parts.append(_decode(model, [prompts[i] for i in rows], noise[rows], settings, way))
    model.train(training)
    whole = concatenate(parts)
    return whole.select(torch.tensor(order).argsort())


def _batches(
    order: Sequence[int], lengths: Sequence[int], way: Way, settings: SamplingSettings
) -> Iterator[list[int]]:
    """Rows that are decoded at once; of one prompt length each, where the model needs that."""
    runs = [list(order)]
    if way == "equal":
        runs = [list(run) for _, run in groupby(order, key=lambda row: lengths[row])]
    for run in runs:
        for start in range(0, len(run), settings.batch_size):
            yield run[start : start + settings.batch_size]


def inverse_cdf_sample(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """The token whose slice of the cumulative distribution holds each number, (B,) int64.

    Args:
        logprobs: (B, V) normalised log-probabilities.
        uniform: (B,) float64 in [0, 1).
    """
    cumulative = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
    # The total is 1 only up to rounding; scaled, the last token's slice ends where it should.
    target = uniform[:, None] * cumulative[:, -1:]
    # right=True: a token of probability 0 has an empty slice and is never chosen.
    token = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return token.clamp(max=logprobs.shape[-1] - 1)


@torch.no_grad()
def _decode(
    model: PreTrainedModel,
    prompts: list[EncodedPrompt],
    noise: Tensor,
    settings: SamplingSettings,
    way: Way,
) -> Responses:
    device = model.device
    batch, limit = len(prompts), settings.max_new_tokens
    response_ids = torch.zeros(batch, limit, dtype=torch.int64, device=device)
    mask = torch.zeros(batch, limit, dtype=torch.bool, device=device)
    sampling_logprobs = torch.zeros(batch, limit, device=device)
    stopped = torch.zeros(batch, dtype=torch.bool, device=device)
    stop_ids = torch.tensor(settings.stop_ids, device=device)
    noise = noise.to(device)

    alive = torch.arange(batch, device=device)  # rows still being written
    decoder = make_decoder(model, [prompt.ids for prompt in prompts], way)
    logits = decoder.prefill()
    for t in range(limit):
        token, sampling_logprobs[alive, t] = _choose(
            logits.float(), settings.temperature, noise[alive, t]
        )
        response_ids[alive, t] = token
        mask[alive, t] = True
        ended = torch.isin(token, stop_ids)
        tick((len(token) + int(ended.sum()) * (limit - 1 - t)) / limit)  # in whole responses
        stopped[alive[ended]] = True
        going = ~ended
        if t + 1 == limit or not bool(going.any()):
            break
        if bool(ended.any()):
            rows = _close_ranks(going)
            alive, token = alive[rows], token[rows]
            decoder.keep(rows)
        logits = decoder.step(token)

    width = int(mask.sum(dim=1).max())
    prompt_ids, prompt_lengths = _right_pad([prompt.ids for prompt in prompts])
    return Responses(
        tokens=Tokens(
            prompt_ids, prompt_lengths, response_ids[:, :width].cpu(), mask[:, :width].cpu()
        ),
        sampling_logprobs=sampling_logprobs[:, :width].cpu(),
        stopped=stopped.cpu(),
        prompt_rows=torch.tensor([prompt.prompt.row for prompt in prompts]),
    )


def _choose(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The next token of each row and its log-probability, both (B,).

    Args:
        logits: (B, V) float32.
        temperature: 0: the most probable token, chosen with probability 1.
        uniform: (B,) float64 in [0, 1).
    """
    if temperature == 0:
        token = logits.argmax(dim=-1)
        return token, torch.zeros_like(logits[:, 0])
    logprobs = (logits / temperature).log_softmax(dim=-1)
    token = inverse_cdf_sample(logprobs, uniform)
    return token, logprobs.gather(-1, token[:, None]).squeeze(-1)


def _close_ranks(going: Tensor) -> Tensor:
    """Numbers of the True rows; the last ones take the places of False ones, the rest stay."""
    count = int(going.sum())
    rows = torch.arange(count, device=going.device)
    rows[~going[:count]] = going[count:].nonzero().squeeze(-1) + count
    return rows


def _right_pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(ids) for ids in sequences])
    padded = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
    for row, ids in enumerate(sequences):
        padded[row, : len(ids)] = torch.tensor(ids)
    return padded, lengths
