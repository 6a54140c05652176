"""The reward model scores a conversation alike alone, among longer ones, padded and packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from helpers import byte_tokenizer, random_tokens, tiny_model
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification

from rlhf_ppo.config import RewardConfig, ValueConfig
from rlhf_ppo.models.forward import lay_out
from rlhf_ppo.models.packing import takes_packed
from rlhf_ppo.models.policy import build_policy
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


PAD = 3
COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "num_labels": 1,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GQA = COMMON | {"num_key_value_heads": 2}
DECODERS: dict[str, Callable[[int], Any]] = {
    "llama": lambda v: hf.LlamaForSequenceClassification(hf.LlamaConfig(vocab_size=v, **GQA)),
    "qwen3": lambda v: hf.Qwen3ForSequenceClassification(
        hf.Qwen3Config(vocab_size=v, head_dim=8, **GQA)
    ),
    "neox": lambda v: hf.GPTNeoXForSequenceClassification(hf.GPTNeoXConfig(vocab_size=v, **COMMON)),
    "gpt2": lambda v: hf.GPT2ForSequenceClassification(hf.GPT2Config(vocab_size=v, **COMMON)),
    "mistral": lambda v: hf.MistralForSequenceClassification(
        hf.MistralConfig(vocab_size=v, sliding_window=8, **GQA)
    ),
}
ENCODERS: dict[str, Callable[[int], Any]] = {
    "bert": lambda v: hf.BertForSequenceClassification(hf.BertConfig(vocab_size=v, **COMMON)),
    "roberta": lambda v: hf.RobertaForSequenceClassification(
        hf.RobertaConfig(vocab_size=v, **COMMON)
    ),
    "deberta": lambda v: hf.DebertaV2ForSequenceClassification(
        hf.DebertaV2Config(vocab_size=v, **COMMON)
    ),
    "modernbert": lambda v: hf.ModernBertForSequenceClassification(
        hf.ModernBertConfig(vocab_size=v, cls_token_id=1, sep_token_id=2, **COMMON)
    ),
    "gemma2": lambda v: hf.Gemma2ForSequenceClassification(
        hf.Gemma2Config(vocab_size=v, head_dim=8, **GQA)
    ),
}
# The pad token at the end, inside, at both, and nowhere else.
CONVERSATIONS = [[5, 6, 7], [8, 9, PAD], [10, PAD, 11, 12], [PAD, PAD], [PAD], [14, PAD, PAD], [15]]


def classifier(builders: dict[str, Callable[[int], Any]], family: str) -> Any:
    torch.manual_seed(0)
    return builders[family](len(byte_tokenizer(chat=False))).eval()


def reward_of(model: Any, config: RewardConfig | None = None) -> RewardModel:
    return RewardModel(model, byte_tokenizer(chat=False), config or RewardConfig())


def own_score(model: Any, ids: list[int]) -> float:
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids])).logits)


@pytest.mark.parametrize("family", DECODERS)
def test_packed_scores_are_padded_ones_and_the_models_own(family: str) -> None:
    reward, plain = reward_of(classifier(DECODERS, family)), classifier(DECODERS, family)
    assert takes_packed(reward.model.base_model, 1)
    long = list(range(20, 32))  # beyond the window of those that have one
    found = float(reward._forward([[5, 6], long])[1])
    assert found == pytest.approx(own_score(plain, long), abs=1e-5)
    packed = reward._forward(CONVERSATIONS)
    own = torch.tensor([own_score(plain, ids) for ids in CONVERSATIONS])
    torch.testing.assert_close(packed, own, rtol=1e-5, atol=1e-5)
    reward.model.set_attn_implementation("sdpa")
    padded = reward._forward(CONVERSATIONS)
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    assert len({round(score, 3) for score in own.tolist()}) >= len(CONVERSATIONS) - 1


@pytest.mark.parametrize("family", DECODERS)
def test_scores_of_texts_do_not_depend_on_packing_or_the_token_budget(family: str) -> None:
    expected: Tensor | None = None
    for budget in (1, 30, 10_000):
        for padded in (False, True):
            model = classifier(DECODERS, family)
            reward = reward_of(model, RewardConfig(batch_tokens=budget))
            if padded:
                model.set_attn_implementation("sdpa")
            scores = reward.score(PROMPTS, RESPONSES)
            expected = scores if expected is None else expected
            torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ENCODERS)
def test_a_classifier_that_does_not_fit_is_asked_in_padded_rows(family: str) -> None:
    model, plain = classifier(ENCODERS, family), classifier(ENCODERS, family)
    before = model.config._attn_implementation
    reward = reward_of(model)
    assert not takes_packed(model.base_model, 1)
    assert model.config._attn_implementation == before
    found = reward._forward([[5, 6, 7], [8, 9, 10, 11, 12], [13, 14]])
    own = [own_score(plain, ids) for ids in ([5, 6, 7], [8, 9, 10, 11, 12], [13, 14])]
    torch.testing.assert_close(found, torch.tensor(own), rtol=1e-5, atol=1e-5)


class MeanPooled(hf.LlamaForSequenceClassification):
    """Packs well and then pools in a way of its own."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None] / attention_mask.sum(-1)[:, None, None]
        return hf.modeling_outputs.SequenceClassifierOutput(
            logits=self.score((states * weights).sum(1))
        )


class TwoHeads(hf.LlamaForSequenceClassification):
    """Its last layer is not `score`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.head = self.score
        del self.score

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(-1) - 1
        return hf.modeling_outputs.SequenceClassifierOutput(
            logits=self.head(states[torch.arange(len(last)), last])
        )


class LastPooled(hf.LlamaForSequenceClassification):
    """Reads the last token even where it is the pad token."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(-1) - 1
        return hf.modeling_outputs.SequenceClassifierOutput(
            logits=self.score(states[torch.arange(len(last)), last])
        )


@pytest.mark.parametrize("kind", [MeanPooled, TwoHeads, LastPooled])
def test_a_classifier_that_pools_in_its_own_way_goes_back_to_padded_rows(kind: Any) -> None:
    torch.manual_seed(0)
    model = kind(hf.LlamaConfig(vocab_size=300, **GQA))
    reward = reward_of(model)
    assert not takes_packed(model.base_model, 1)
    rows = [[5, 6, 7], [8, 9, 10, 11], [12, 13, PAD]]
    for ids, score in zip(rows, reward._forward(rows).tolist(), strict=True):
        with torch.no_grad():
            mask = torch.ones(1, len(ids), dtype=torch.int64)
            own = float(model(torch.tensor([ids]), mask).logits)
        assert score == pytest.approx(own, abs=1e-5)


def test_values_that_start_from_a_packed_reward_model_are_its_scores() -> None:
    """The value trunk is a copy of a model that may already read packed rows."""
    model, plain = classifier(DECODERS, "llama"), classifier(DECODERS, "llama")
    reward_of(model)
    value = ValueConfig.model_validate({"model": "reward"})
    policy = build_policy(tiny_model("llama"), None, value, model, False)
    assert takes_packed(policy.value_trunk, 1)  # type: ignore[arg-type]
    tokens = random_tokens(4)
    with torch.no_grad():
        values = policy(lay_out(tokens), 1.0).values
    for row in range(4):
        prompt = tokens.prompt_ids[row, : tokens.prompt_lengths[row]].tolist()
        if prompt[-1] != PAD:  # the model's own pooling would look before it
            assert float(values[row, 0]) == pytest.approx(own_score(plain, prompt), abs=1e-4)
