"""Models with random weights whose responses have a known length, as folders that all can load."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import peft
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlhf_ppo.models.scratch import train_tokenizer

Model = TypeVar("Model", bound=torch.nn.Module)
PROMPTS = 256  # at least
SHORTEST, LONGEST = 8, 64  # tokens of a prompt
WORDS = 8192  # most pieces of the tokenizer; of a larger vocabulary the rest have no text


@dataclass(frozen=True)
class Shape:
    """A size of model and of step."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    key_heads: int
    vocabulary: int
    batch: int  # prompts a step
    response: int  # most tokens of a response; their mean is about half of it

    @property
    def trunk_parameters(self) -> int:
        """Weights that each token passes."""
        attention = self.hidden * 64 * (2 * self.heads + 2 * self.key_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_parameters(self) -> int:
        """Weights that each response token passes besides."""
        return self.hidden * self.vocabulary


SHAPES = {
    "XS": Shape(64, 2, 128, 1, 1, 512, batch=8, response=16),  # to try the command
    "W": Shape(768, 6, 2048, 12, 12, 8192, batch=8, response=32),  # weights, and little work
    "S": Shape(256, 4, 768, 4, 2, 2048, batch=32, response=64),
    "M": Shape(512, 8, 1536, 8, 4, 8192, batch=16, response=128),
}
# Each axis with its field of `Shape` and the values it takes, from the shape S.
AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "prompts": ("batch", (8, 32, 128, 512)),
    "response": ("response", (32, 64, 128, 256, 512)),
    "vocabulary": ("vocabulary", (2048, 8192, 32768, 151936)),
}


def make_assets(shape: Shape, folder: Path) -> None:
    """Write `policy/`, `reward/` and `prompts.jsonl` for a shape; the same bytes each time."""
    draw = random.Random(0)
    texts = _texts(draw)
    tokenizer = train_tokenizer(texts, min(shape.vocabulary, WORDS))
    config = _config(shape, tokenizer)
    policy = _with_random_weights(LlamaForCausalLM(config), seed=1)
    _calibrate(policy, shape)
    reward_config = LlamaConfig.from_dict(config.to_dict() | {"num_labels": 1})
    reward = _with_random_weights(LlamaForSequenceClassification(reward_config), seed=2)
    for model, place in ((policy, "policy"), (reward, "reward")):
        model.save_pretrained(folder / place)
        tokenizer.save_pretrained(folder / place)
    ids = [token for text in texts for token in tokenizer(text)["input_ids"]]
    rows, start = [], 0
    for _ in range(max(PROMPTS, shape.batch)):
        length = draw.randint(SHORTEST, LONGEST)
        part = ids[start : start + length]
        start += length
        rows.append(json.dumps({"prompt": tokenizer.decode(part), "input_ids": part}))
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def make_reward_adapter(folder: Path, rank: int) -> None:
    """Write `reward_adapter/`: a reward model that is an adapter on `policy/`, as PEFT saves it."""
    base = LlamaForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
    settings = peft.LoraConfig(r=rank, target_modules="all-linear", task_type="SEQ_CLS")
    adapter = peft.get_peft_model(base, settings)
    adapter.save_pretrained(str(folder / "reward_adapter"))
    PreTrainedTokenizerFast.from_pretrained(folder / "policy").save_pretrained(
        folder / "reward_adapter"
    )


def _texts(draw: random.Random) -> list[str]:
    """Sentences of invented words, some common and most rare, for a tokenizer to learn from."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(9000)]
    weights = [1 / (place + 4) for place in range(len(words))]
    return [" ".join(draw.choices(words, weights, k=30)) + "." for _ in range(5000)]


def _config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=64,
        vocab_size=shape.vocabulary,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


@torch.no_grad()
def _with_random_weights(model: Model, seed: int) -> Model:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            spread = 0.5 if "embed" in name else parameter.shape[1] ** -0.5
            parameter.normal_(0, spread, generator=generator)
    return model.eval()


@torch.no_grad()
def _calibrate(model: LlamaForCausalLM, shape: Shape) -> None:
    """Let a response end at each token with the chance that gives it half the most length.

    The first channel of the residual stream is a constant that no layer writes to, and the output
    row of the stop token reads nothing else; its weight is found by halving an interval.
    """
    model.model.embed_tokens.weight[:, 0] = 4.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0
        layer.mlp.down_proj.weight[0] = 0
    pad, stop = model.config.pad_token_id, model.config.eos_token_id
    head = model.lm_head.weight
    head[:, 0] = 0
    head[pad] = 0
    head[pad, 0] = -50.0  # never said
    head[stop] = 0
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, shape.vocabulary, (8, 64), generator=generator)
    states = model.model(input_ids=ids).last_hidden_state
    wanted = 1.6 / shape.response
    low, high = -5.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        head[stop, 0] = middle
        chance = float(model.lm_head(states).softmax(-1)[..., stop].mean())
        low, high = (middle, high) if chance < wanted else (low, middle)
