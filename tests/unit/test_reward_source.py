"""The reward model scores a conversation alike alone, among longer ones, padded and packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from helpers import byte_tokenizer, random_tokens, tiny_model
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification

from rlhf_ppo.config import ModelSource, RewardConfig, ValueConfig
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.forward import lay_out
from rlhf_ppo.models.packing import takes_packed
from rlhf_ppo.models.policy import build_policy
from rlhf_ppo.rewards.classifier import RewardModel, output_of
from rlhf_ppo.rewards.judgement import Missing
from rlhf_ppo.rewards.sources import Places, load_sources

PROMPTS = ["the cat ", "the dog is on the boat ", "a "]
RESPONSES = ["is red.", "and the boat is green.", "b"]


def scores_of(reward: RewardModel, prompts: list[str], responses: list[str]) -> Tensor:
    return torch.tensor(reward.score_texts(prompts, responses))


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
    reward = RewardModel(
        GPT2ForSequenceClassification(config).eval(), tokenizer, ModelSource(), "here"
    )
    together = scores_of(reward, PROMPTS, RESPONSES)
    alone = torch.cat(
        [scores_of(reward, [p], [r]) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    )
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


def reward_of(model: Any, config: ModelSource | None = None) -> RewardModel:
    return RewardModel(model.eval(), byte_tokenizer(chat=False), config or ModelSource(), "here")


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
            reward = reward_of(model, ModelSource(batch_tokens=budget))
            if padded:
                model.set_attn_implementation("sdpa")
            scores = scores_of(reward, PROMPTS, RESPONSES)
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
    assert reward.ways == ["padded", "alone"]
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


TEMPLATE = (  # another order, other marks and another end than the policy's
    "{{ '%' }}{% for m in messages %}{{ m['role'][0] + '#' + m['content'] + '~' }}{% endfor %}"
)
CHAT = [[{"role": "user", "content": text}] for text in ("what is red?", "a", "who is the cat?")]


def judge_folder(folder: Path, labels: int) -> str:
    """A classifier with a byte tokenizer that adds a mark of its own, and a chat template."""
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.chat_template = TEMPLATE
    tokenizer.pad_token = "%"
    torch.manual_seed(3)
    config = hf.LlamaConfig(
        **GQA | {"vocab_size": len(tokenizer), "num_labels": labels, "max_position_embeddings": 99}
    )
    config.pad_token_id = tokenizer.pad_token_id
    config.id2label = {number: f"grade {number}" for number in range(labels)}
    config.label2id = {name: number for number, name in config.id2label.items()}
    model = hf.LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def load(**settings: Any) -> RewardModel:
    reward = RewardConfig.model_validate({"sources": [{"kind": "model"} | settings]})
    found = load_sources(reward, "nowhere", Places(torch.device("cpu"))).first_model()
    assert found is not None
    return found


@pytest.mark.parametrize(("labels", "label"), [(1, None), (3, 2), (3, "grade 0")])
def test_a_judge_with_its_own_tokenizer_and_template_says_what_its_own_pipeline_says(
    labels: int, label: int | str | None, tmp_path: Path
) -> None:
    """TRL fed the policy's token ids to the reward model."""
    path = judge_folder(tmp_path / "judge", labels)
    answers = ["it is red.", "no", "the dog, and not the cat."]
    found = load(path=path, label=label).score_texts(CHAT, answers)
    pipeline = hf.pipeline("text-classification", model=path, function_to_apply="none")
    wanted = "grade 0" if label is None or label == "grade 0" else "grade 2"
    for prompt, answer, score in zip(CHAT, answers, found, strict=True):
        text = f"%u#{prompt[0]['content']}~a#{answer}~"  # the template, by hand
        grades = {entry["label"]: entry["score"] for entry in pipeline(text, top_k=None)}
        assert len(grades) == labels
        assert score == pytest.approx(grades[wanted], abs=1e-5)
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("labels", "label", "said"),
    [(3, None, "3 outputs"), (3, 3, "label = 3"), (3, "good", "'good'"), (1, "good", "grade 0")],
)
def test_an_output_that_is_not_chosen_or_not_there_is_refused(
    labels: int, label: int | str | None, said: str, tmp_path: Path
) -> None:
    path = judge_folder(tmp_path / "judge", labels)
    with pytest.raises(UserError) as caught:
        load(path=path, label=label, name="judge")
    assert said in str(caught.value) and "reward.sources[judge]" in str(caught.value)


def test_a_conversation_that_is_too_long_is_missing_and_the_others_are_scored() -> None:
    model = classifier(DECODERS, "llama")
    texts = ["a", "a longer one", "b"]
    whole = reward_of(model).score_texts(["x"] * 3, texts)
    found = reward_of(model, ModelSource(max_tokens=6)).score_texts(["x"] * 3, texts)
    assert found[0] == pytest.approx(whole[0]) and found[2] == pytest.approx(whole[2])
    assert found[1] == Missing("the conversation has 14 tokens, more than max_tokens = 6")


def test_a_conversation_as_long_as_the_limit_is_scored_and_one_token_more_is_not() -> None:
    """Two tokens beside the answer's: the prompt's one and the end."""
    model = classifier(DECODERS, "llama")
    found = reward_of(model, ModelSource(max_tokens=6)).score_texts(["x"] * 2, ["abcd", "abcde"])
    assert isinstance(found[0], float)
    assert found[1] == Missing("the conversation has 7 tokens, more than max_tokens = 6")


@pytest.mark.parametrize("label", ["right", 2])
def test_an_output_is_chosen_by_its_name_or_number_and_not_by_its_place_in_the_alphabet(
    label: int | str,
) -> None:
    config = hf.LlamaConfig(num_labels=3, id2label={0: "wrong", 1: "odd", 2: "right"})
    assert output_of(config, ModelSource(path="p", label=label), "here") == 2
    assert output_of(config, ModelSource(path="p", label="wrong"), "here") == 0


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_a_family_that_can_be_packed_is(family: str) -> None:
    """A pooling that differed from the model's would send it back to padded rows, in silence."""
    assert reward_of(classifier(DECODERS, family)).ways == ["packed", "padded", "alone"]
