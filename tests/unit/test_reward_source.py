"""The reward model scores a conversation alike alone and among longer ones."""

from __future__ import annotations

import pytest
import torch
from helpers import byte_tokenizer
from transformers import GPT2Config, GPT2ForSequenceClassification

from rlhf_ppo.config import RewardConfig
from rlhf_ppo.rollout.reward import RewardModel

PROMPTS = ["the cat ", "the dog is on the boat ", "a "]
RESPONSES = ["is red.", "and the boat is green.", "b"]


@pytest.mark.parametrize("model_pad", [None, "<|endoftext|>", "#"])
@pytest.mark.parametrize("tokenizer_pad", ["<|endoftext|>", "%"])
def test_padding_is_what_the_models_pooling_takes_for_it(
    model_pad: str | None, tokenizer_pad: str
) -> None:
    """Padded with the tokenizer's token, a model that knew another one pooled on the padding."""
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.pad_token = tokenizer_pad
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        num_labels=1,
        initializer_range=0.3,
        pad_token_id=None if model_pad is None else tokenizer.convert_tokens_to_ids(model_pad),
    )
    reward = RewardModel(GPT2ForSequenceClassification(config), tokenizer, RewardConfig())
    together = reward.score(PROMPTS, RESPONSES)
    alone = torch.cat([reward.score([p], [r]) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert len(set(together.tolist())) == 3
