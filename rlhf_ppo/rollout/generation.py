"""Sampling responses: a decode loop over any causal language model of Transformers.

Why not `generate`: finished rows leave the batch here, and the noise is ours (see `noise.py`).
Nothing but the temperature shapes the distribution (no top-k, no top-p), so the log-probabilities
that PPO uses are those of the sampler.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from rlhf_ppo.algorithm.batch import Responses, Tokens, concatenate
from rlhf_ppo.console import tick
from rlhf_ppo.data.prompts import EncodedPrompt
from rlhf_ppo.models.forward import find_trunk, output_logits
from rlhf_ppo.models.packing import run_packed, takes_packed
from rlhf_ppo.models.prepacked import prepacked_linears
from rlhf_ppo.rollout.cache import RoomyLayer, roomy_cache


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
    with prepacked_linears(model, min(len(order), settings.batch_size)):
        for start in range(0, len(order), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            parts.append(_decode(model, [prompts[i] for i in rows], noise[rows], settings))
    model.train(training)
    whole = concatenate(parts)
    return whole.select(torch.tensor(order).argsort())


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
    decoder = _Decoder(model, [prompt.ids for prompt in prompts])
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


class _Decoder:
    """A model with its cache, one token at a time; prompts are padded on the left."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[tuple[int, ...]]) -> None:
        self.model = model
        self.prompts = prompts
        lengths = torch.tensor([len(ids) for ids in prompts], device=model.device)
        # The mask is made from lengths: a pad token may well be a word or the stop token.
        column = torch.arange(int(lengths.max()), device=model.device)
        self.mask = (column >= lengths.max() - lengths[:, None]).long()
        self.position = lengths[:, None]  # of the next token
        self.cache = roomy_cache(model.config)
        known = inspect.signature(_plain(model).forward).parameters
        self.takes_positions = "position_ids" in known
        self.options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def prefill(self) -> Tensor:
        """Logits (B, V) of the first response token."""
        base: Any = _plain(self.model)
        fits = takes_packed(base, self.mask.shape[1])
        if fits and all(type(layer) is RoomyLayer for layer in self.cache.layers):
            return self._prefill_packed(base)
        ids = torch.zeros_like(self.mask)
        ids[self.mask.bool()] = torch.tensor([i for p in self.prompts for i in p]).to(ids.device)
        return self._run(ids, (self.mask.cumsum(dim=1) - 1).clamp(min=0))

    def _prefill_packed(self, base: PreTrainedModel) -> Tensor:
        """Each different prompt once, without padding; then a row of the cache a response."""
        number = {prompt: place for place, prompt in enumerate(dict.fromkeys(self.prompts))}
        different = list(number)
        lengths = [len(ids) for ids in different]
        device = self.mask.device
        ids = torch.tensor([token for prompt in different for token in prompt], device=device)
        positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
        cache = DynamicCache(config=base.config)
        states = run_packed(find_trunk(base), ids, positions, tuple(lengths), cache)
        which = torch.tensor([number[prompt] for prompt in self.prompts], device=device)
        width = self.mask.shape[1]
        for place in range(len(cache.layers)):
            layer: Any = cache.layers[place]
            keys, values = (
                torch.stack(
                    [pad(x, (0, 0, width - x.shape[1], 0)) for x in part[0].split(lengths, 1)]
                )
                for part in (layer.keys, layer.values)
            )
            self.cache.update(keys[which], values[which], place)
        last = torch.tensor(lengths, device=device).cumsum(0) - 1
        return output_logits(base, states[last])[which]

    def keep(self, rows: Tensor) -> None:
        """Keep these rows alone, in this order."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]

    def step(self, token: Tensor) -> Tensor:
        """Logits (B, V) of the token after `token` (B,)."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], dim=1)
        logits = self._run(token[:, None], self.position)
        self.position = self.position + 1
        return logits

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        extra = dict(self.options)
        if self.takes_positions:
            extra["position_ids"] = positions
        outputs = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            **extra,
        )
        last: Tensor = outputs.logits[:, -1]
        return last


def _plain(model: Any) -> Any:
    """The model whose `forward` has real parameter names (PEFT hides them behind *args)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _right_pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(ids) for ids in sequences])
    padded = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
    for row, ids in enumerate(sequences):
        padded[row, : len(ids)] = torch.tensor(ids)
    return padded, lengths
