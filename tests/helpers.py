"""Tiny models, tokens and data, built on the spot; shared by all tests."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tensors import ragged_mask as ragged_mask
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlhf_ppo.algorithm.batch import Tokens
from rlhf_ppo.config import Config
from rlhf_ppo.data.prompts import EncodedPrompt, Prompt
from rlhf_ppo.models.scratch import train_tokenizer

COLOURS = ("red", "blue", "green", "pink", "grey", "black", "white", "brown")
THINGS = ("cat", "dog", "boat", "tree", "house", "shoe", "lamp", "book")
FAMILIES = ("llama", "gpt2", "neox")
ARCHITECTURES = (*FAMILIES, "qwen3", "gemma2")


def colour_texts() -> list[str]:
    """Every sentence of the tests' little world."""
    return [
        f"what colour is the {thing}? it is {colour}." for thing in THINGS for colour in COLOURS
    ]


@lru_cache
def _trained_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(colour_texts(), 300)


def byte_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte; with the scratch model's chat template or, as GPT-2, without any."""
    if chat:
        return copy.deepcopy(_trained_tokenizer())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {letter: i + 1 for i, letter in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def tiny_model(family: str, vocabulary: int = 50, seed: int = 0, spread: float = 0.3) -> Any:
    """A causal language model of two layers with weights large enough to have opinions."""
    torch.manual_seed(seed)
    common: dict[str, Any] = {"vocab_size": vocabulary, "initializer_range": spread}
    model: PreTrainedModel
    if family == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                intermediate_size=48,
                max_position_embeddings=64,
                tie_word_embeddings=True,
                pad_token_id=0,
                bos_token_id=None,
                eos_token_id=1,
                **common,
            )
        )
    elif family == "gpt2":
        special = {"bos_token_id": 1, "eos_token_id": 1}
        config = GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=2, **special, **common)
        model = GPT2LMHeadModel(config)
    elif family in ("qwen3", "gemma2"):
        kinds = {
            "qwen3": (Qwen3Config, Qwen3ForCausalLM),
            "gemma2": (Gemma2Config, Gemma2ForCausalLM),  # soft caps: attention and logits
        }
        settings, kind = kinds[family]
        model = kind(
            settings(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                intermediate_size=48,
                max_position_embeddings=64,
                pad_token_id=0,
                bos_token_id=None,
                eos_token_id=1,
                **common,
            )
        )
    else:
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=48,
                max_position_embeddings=64,
                bos_token_id=1,
                eos_token_id=1,
                **common,
            )
        )
    return model.eval()


def random_tokens(
    rows: int, vocabulary: int = 50, widths: tuple[int, int] = (9, 7), seed: int = 0
) -> Tokens:
    """Ragged prompts and responses, at least one token each, 0 in the padding."""
    generator = torch.Generator().manual_seed(seed)
    prompt_width, response_width = widths
    prompt_lengths = torch.randint(1, prompt_width + 1, (rows,), generator=generator)
    response_lengths = torch.randint(1, response_width + 1, (rows,), generator=generator)
    prompt_lengths[0], response_lengths[-1] = prompt_width, response_width
    prompt_ids = torch.randint(1, vocabulary, (rows, prompt_width), generator=generator)
    response_ids = torch.randint(1, vocabulary, (rows, response_width), generator=generator)
    in_prompt = torch.arange(prompt_width) < prompt_lengths[:, None]
    mask = torch.arange(response_width) < response_lengths[:, None]
    return Tokens(prompt_ids * in_prompt, prompt_lengths, response_ids * mask, mask)


def encoded_prompts(sequences: Iterable[Sequence[int]]) -> list[EncodedPrompt]:
    """Prompts made of token ids, as generation sees them."""
    return [
        EncodedPrompt(Prompt(row, f"test:{row}", f"prompt {row}", {}), tuple(ids))
        for row, ids in enumerate(sequences)
    ]


def plain_logprobs(model: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Log-probabilities of one response by the model's own forward pass, gathered by hand."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].float()
    table = logits.log_softmax(dim=-1)
    return torch.stack(
        [table[len(prompt) + place - 1, token] for place, token in enumerate(response)]
    )


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Write one JSON object a line; returns the path as text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def make_config(**sections: Any) -> Config:
    """A config with an output folder that nothing writes to."""
    return Config.model_validate({"output_dir": "unused", "logging": {"trackers": []}} | sections)


def given_reward(path: str) -> dict[str, Any]:
    """A reward section of one model that is given."""
    return {"sources": [{"kind": "model", "path": path}]}


def write_chat_data(folder: Path) -> dict[str, str]:
    """Demonstrations, preferences and prompts in chat form; returns the data section."""

    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    asked = [[turn("user", f"what colour is the {thing}?")] for thing in THINGS]
    more = [[turn("user", f"what colour is my {thing}?")] for thing in THINGS]
    answers = [[turn("assistant", f"it is {colour}.")] for colour in COLOURS]
    rude = [[turn("assistant", f"no {colour}.")] for colour in COLOURS]
    pairs = [
        {"prompt": question, "chosen": good, "rejected": bad, "kind": "manners"}
        for question, good, bad in zip(asked, answers, rude, strict=True)
    ]
    return {
        "demonstrations": write_jsonl(
            folder / "demonstrations.jsonl",
            ({"messages": q + a} for q in asked for a in answers[:4]),
        ),
        "preferences": write_jsonl(folder / "preferences.jsonl", pairs),
        "heldout_preferences": write_jsonl(folder / "heldout_preferences.jsonl", pairs[:4]),
        "prompts": write_jsonl(
            folder / "prompts.jsonl", ({"prompt": q, "topic": q[0]["content"]} for q in asked)
        ),
        "heldout_prompts": write_jsonl(
            folder / "heldout.jsonl", ({"prompt": q, "topic": q[0]["content"]} for q in more)
        ),
    }


def write_plain_data(folder: Path) -> dict[str, str]:
    """Prompts as plain strings; returns the data section."""
    train = [{"prompt": f"The {thing} is "} for thing in THINGS]
    heldout = [{"prompt": f"My {thing} is "} for thing in THINGS]
    return {
        "prompts": write_jsonl(folder / "plain_prompts.jsonl", train),
        "heldout_prompts": write_jsonl(folder / "plain_heldout.jsonl", heldout),
    }


def write_gpt2_models(folder: Path) -> dict[str, str]:
    """A policy and a reward model with learned positions and no chat template, as folders."""
    tokenizer = byte_tokenizer(chat=False)
    policy, reward = folder / "gpt2_policy", folder / "gpt2_reward"
    model = tiny_model("gpt2", vocabulary=len(tokenizer))
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(policy)
    torch.manual_seed(1)
    config = GPT2Config.from_dict(model.config.to_dict() | {"num_labels": 1})
    config.pad_token_id = tokenizer.eos_token_id
    GPT2ForSequenceClassification(config).save_pretrained(reward)
    for path in (policy, reward):
        tokenizer.save_pretrained(path)
    return {"policy": str(policy), "reward": str(reward)}


def plain_prompts(*columns: dict[str, Any]) -> list[Prompt]:
    """Prompts as text, one for each row of other columns."""
    return [Prompt(row, f"test:{row}", f"prompt {row}", found) for row, found in enumerate(columns)]
