"""A task whose answer is known: the policy that PPO should end at, computed by listing.

Four letters, a question mark and a stop token; responses of at most two tokens: 31 of them. With a
reward `score - beta * KL(policy || reference)` the best policy is reference * exp(score / beta),
normalised (Ziegler et al. 2019, equation 3; Rafailov et al. 2023, equation 4).
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from helpers import make_config
from runs import START, assemble
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_ppo.data.prompts import EncodedPrompt, Prompt
from rlhf_ppo.training.ppo import ppo_step

WORDS = ("<stop>", "a", "b", "c", "d", "?")
STOP = 0
# Not a lone "?": after "? ?" a model without absolute positions is where it was after "?".
PROMPT = (5, 1)
BETA = 0.5


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter."""
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<stop>")


def language_model(seed: int) -> Any:
    """A Llama small enough for thousands of steps a minute, with opinions of its own."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=32,
            max_position_embeddings=8,
            initializer_range=0.15,
            eos_token_id=STOP,
            bos_token_id=None,
        )
    ).eval()


def responses(limit: int) -> list[tuple[int, ...]]:
    """Every response: words, then stop, or cut at the limit."""
    words = range(len(WORDS))
    found: list[tuple[int, ...]] = []
    for length in range(1, limit + 1):
        for ids in product(words, repeat=length):
            ended = ids[-1] == STOP or length == limit
            if ended and STOP not in ids[:-1]:
                found.append(ids)
    return found


@torch.no_grad()
def distribution(model: Any, limit: int) -> Tensor:
    """Probability of each response by the model's own plain forward pass, float64."""
    chances = []
    for ids in responses(limit):
        logits = model(input_ids=torch.tensor([[*PROMPT, *ids]])).logits[0].double()
        table = logits[len(PROMPT) - 1 :].log_softmax(dim=-1)
        chances.append(sum(table[place, token] for place, token in enumerate(ids)))
    return torch.stack(chances).exp()


def score_table(seed: int, limit: int) -> dict[str, float]:
    """A score in [0, 1] for what each response says."""
    draw = random.Random(seed)
    return {text: draw.random() for text in sorted({said(ids) for ids in responses(limit)})}


def said(ids: tuple[int, ...]) -> str:
    """What a person reads of a response."""
    return " ".join(WORDS[token] for token in ids if token != STOP)


def best(reference: Tensor, scores: dict[str, float], limit: int, beta: float) -> Tensor:
    """Reference * exp(score / beta), normalised."""
    each = torch.tensor([scores[said(ids)] for ids in responses(limit)], dtype=torch.float64)
    weights = reference * (each / beta).exp()
    return weights / weights.sum()


def total_variation(one: Tensor, other: Tensor) -> float:
    """Half the sum of the absolute differences: 0 alike, 1 disjoint."""
    return float((one - other).abs().sum() / 2)


def learn(
    seed: int,
    steps: int,
    limit: int = 2,
    goal_beta: float = BETA,
    **sections: dict[str, Any],
) -> tuple[float, float]:
    """Total variation distance to the best policy for `goal_beta`, before and after PPO.

    The run is the real one, from sampling to optimizer; only tokenizer, model and reward are toys.
    """
    defaults: dict[str, dict[str, Any]] = {
        "rollout": {"batch_size": 64, "max_new_tokens": limit},
        "ppo": {"learning_rate": 0.01, "schedule": "linear", "epochs": 2, "adam_beta2": 0.99},
        "kl": {"beta": BETA},
        "value": {"coefficient": 0.5, "clip_range": None},
    }
    merged = {name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults | sections}
    merged["ppo"]["steps"] = steps
    config = make_config(seed=seed, **merged)
    scores = score_table(seed, limit)
    lm, reference = language_model(seed), language_model(seed)
    size = config.rollout.batch_size
    prompts = [EncodedPrompt(Prompt(row, "", "?", {}), PROMPT) for row in range(size)]

    def score(response: str) -> float:
        return scores[response.strip()]  # the space that parts it from the prompt is its own

    run = assemble(config, lm, reference, tokenizer(), score, prompts, (STOP,))
    goal = best(distribution(reference, limit), scores, limit, goal_beta)
    before = total_variation(distribution(lm, limit), goal)
    progress = replace(START, beta=config.kl.beta, penalty=config.ppo.penalty)
    for step in range(1, steps + 1):
        progress, _, _ = ppo_step(run, step, progress)
    return before, total_variation(distribution(lm, limit), goal)
