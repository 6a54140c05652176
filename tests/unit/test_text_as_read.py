"""What is trained, sampled and scored are the same tokens, whatever tokenizer and template."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers_of_kinds import KINDS, TEMPLATES, byte_level, metaspace, word_piece

from rlhf_ppo.algorithm.batch import Tokens
from rlhf_ppo.config import ModelSource
from rlhf_ppo.data.encoding import ANSWER, LEFT_OUT, NOT_OPENED, ONE_TOKEN, encode_answer
from rlhf_ppo.data.encoding import encode_side as side
from rlhf_ppo.data.special_tokens import special_ids
from rlhf_ppo.data.template import (
    DEFAULT_TEMPLATE,
    check_template,
    encode_conversation,
    encode_prompt,
    render,
)
from rlhf_ppo.errors import UserError
from rlhf_ppo.rewards.classifier import RewardModel
from rlhf_ppo.rollout.collect import response_texts


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def texts_of(tokenizer: Any, prompt: Any, written: list[int]) -> list[Any]:
    """What scorers are given of sampled tokens."""
    ids = encode_prompt(tokenizer, prompt)
    tokens = Tokens(
        torch.tensor([ids]),
        torch.tensor([len(ids)]),
        torch.tensor([written]),
        torch.ones(1, len(written), dtype=torch.bool),
    )
    return response_texts(tokenizer, tokens, [prompt])


def classifier(tokenizer: Any, kind: str = "Llama", **settings: Any) -> Any:
    torch.manual_seed(0)
    length = {} if kind == "XLNet" else {"max_position_embeddings": 128}
    config = getattr(hf, f"{kind}Config")(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_labels=1,
        initializer_range=0.4,
        **{"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2} | length | settings,
    )
    return getattr(hf, f"{kind}ForSequenceClassification")(config).eval()


def own_score(model: Any, ids: list[int]) -> float:
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_space_before_a_plain_response_is_not_lost(kind: str) -> None:
    """Decoded alone, " ask Rosa" came back from a SentencePiece tokenizer as "ask Rosa"."""
    tokenizer, prompt = KINDS[kind](), "Q: where is the drum A:"
    begun = encode_prompt(tokenizer, prompt)
    whole = encode_conversation(tokenizer, prompt, " ask Rosa")
    assert whole[: len(begun)] == begun
    (text,) = texts_of(tokenizer, prompt, whole[len(begun) :])
    assert text == " ask Rosa"
    assert type(pickle.loads(pickle.dumps(text))) is str  # failures travel between processes
    assert encode_conversation(tokenizer, prompt, str(text)) == whole


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ["yes", "<think>\nno\n</think>\n\nask Rosa"])
def test_a_demonstration_is_learnt_behind_the_prompt_that_ppo_samples_after(
    kind: str, template: str, answer: str
) -> None:
    """Templates that leave out or open reasoning had it learnt at another place, or not at all."""
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = TEMPLATES[template]
    found = encode_answer(tokenizer, user("where is it?"), answer)
    begun = encode_prompt(tokenizer, user("where is it?"))
    assert found.ids[: found.start] == begun and found.start == len(begun)
    learnt = "".join(str(tokenizer.decode(found.ids[found.start :])).split())
    opened = "<think>" if template == "deepseek" and "<think>" in answer else ""
    assert "".join(answer.split()) in opened + learnt  # nothing of it is lost
    assert ("<think>" in answer and template == "deepseek") == (LEFT_OUT in found.notes)
    assert ("<think>" not in answer and template == "deepseek") == (NOT_OPENED in found.notes)


@pytest.mark.parametrize("template", ["chatml", "llama3", "mistral", "qwen3"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_model_with_the_policys_tokenizer_reads_the_sampled_tokens(
    kind: str, template: str
) -> None:
    """Also where they are not those that the text would be encoded to."""
    tokenizer = KINDS[kind]()
    tokenizer.pad_token, tokenizer.chat_template = "<unk>", TEMPLATES[template]
    prompt = user("where is it?")
    begun = encode_prompt(tokenizer, prompt)
    end = encode_answer(tokenizer, prompt, "yes")
    stop = next(
        place
        for place, token in enumerate(end.ids)
        if place >= end.start and token in special_ids(tokenizer)
    )
    letters = tokenizer.convert_tokens_to_ids(["y", "e", "s"])  # not the one token "yes"
    reward = RewardModel(classifier(tokenizer), tokenizer, ModelSource(), "reward")
    (text,) = texts_of(tokenizer, prompt, [*letters, end.ids[stop]])
    assert text == "yes"
    (score,) = reward.score_texts([prompt], [text])
    read = begun + letters + end.ids[stop:]
    if template == "qwen3":  # its template writes something between: it has never read the tokens
        read = encode_conversation(tokenizer, prompt, "yes")
    assert score == pytest.approx(own_score(classifier(tokenizer), read), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_text_is_scored_as_its_sampled_tokens_and_their_end(kind: str) -> None:
    tokenizer, prompt = KINDS[kind](), "where is it? "
    tokenizer.pad_token = "<unk>"
    begun = encode_prompt(tokenizer, prompt)
    letters = tokenizer.convert_tokens_to_ids(["y", "e", "s"])
    end = [tokenizer.eos_token_id]
    (text,) = texts_of(tokenizer, prompt, [*letters, *end])
    whole = encode_conversation(tokenizer, prompt, text, sampled=True)
    read = begun + letters + end if whole[: len(begun)] == begun else whole
    model = classifier(tokenizer)
    reward = RewardModel(classifier(tokenizer), tokenizer, ModelSource(), "reward")
    (score,) = reward.score_texts([prompt], [text])
    assert score == pytest.approx(own_score(model, read), abs=1e-5)


def test_a_template_that_leaves_out_reasoning_says_so_of_a_pair() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = TEMPLATES["deepseek"]
    chosen, rejected = (
        side(tokenizer, user("where?"), f"<think>\n{word}\n</think>ask Rosa")
        for word in ("yes", "no")
    )
    assert chosen.ids == rejected.ids and chosen.notes == rejected.notes == (ANSWER,)


def test_the_answer_is_learnt_apart_where_it_would_melt_into_the_prompt() -> None:
    """Policy and demonstration met a prompt with a space at its end as different tokens."""
    tokenizer = byte_level()
    prompt = "Q: where is the drum A: "
    found = encode_answer(tokenizer, prompt, "ask Rosa")
    assert (
        encode_conversation(tokenizer, prompt, "ask Rosa")[: found.start]
        != found.ids[: found.start]
    )
    assert found.ids[: found.start] == encode_prompt(tokenizer, prompt)
    assert tokenizer.decode(found.ids) == prompt + "ask Rosa</s>" and found.notes == (ONE_TOKEN,)


@pytest.mark.parametrize("kind", [*KINDS, "words"])
def test_a_special_token_that_a_user_spells_ends_no_turn(kind: str) -> None:
    """`<|end|>` in a question closed the user's turn; a Unigram has it among its words."""
    tokenizer = word_piece() if kind == "words" else KINDS[kind]()
    spelled = "[SEP]" if kind == "words" else "<|end|>"
    tokenizer.chat_template = DEFAULT_TEMPLATE
    plain, typed = (encode_prompt(tokenizer, user(f"what is {word}?")) for word in ("it", spelled))
    special = special_ids(tokenizer) - {tokenizer.unk_token_id}
    assert sum(i in special for i in typed) == sum(i in special for i in plain)
    text = "".join(str(tokenizer.decode(typed)).split()).lower()
    assert kind == "words" or f"whatis{spelled}?" in text
    one, other = (encode_prompt(tokenizer, f"what is {spelled}", typed=flag) for flag in (1, 0))
    assert sum(i in special for i in other) == sum(i in special for i in one) + 1


def test_what_is_around_a_spelled_token_is_encoded_as_ever() -> None:
    for make in KINDS.values():
        tokenizer = make()
        tokenizer.chat_template = TEMPLATES["chatml"]
        ids = encode_prompt(tokenizer, user("what does it mean? <|end|>"))
        plain = encode_prompt(tokenizer, user("what does it mean?"))
        shared = next(n for n, (a, b) in enumerate(zip(ids, plain, strict=False)) if a != b)
        assert shared >= len(plain) - len(encode_prompt(tokenizer, user(""))) + 2
        after = encode_prompt(tokenizer, user(""))[-4:]
        assert ids[-4:] == plain[-4:] == after


@pytest.mark.parametrize("unigram", [False, True])
def test_a_tokenizer_that_ends_every_text_leaves_a_prompt_open_and_ends_a_text_once(
    unigram: bool,
) -> None:
    """The policy went on after an end token; RoBERTa's reward models read two of them."""
    tokenizer = metaspace(ends=True, unigram=unigram)
    prompt = "Q: where is the drum A:"
    assert encode_prompt(tokenizer, prompt) == tokenizer(prompt)["input_ids"][:-1]
    for answer in (" yes", " yes</s>"):
        whole = encode_conversation(tokenizer, prompt, answer)
        assert whole == tokenizer(prompt + " yes")["input_ids"]
        assert whole.count(tokenizer.eos_token_id) == 1
    words = word_piece()
    assert encode_prompt(words, "where is it")[-1] != words.sep_token_id


def test_a_begin_token_that_a_text_has_written_is_not_doubled() -> None:
    tokenizer = metaspace()
    for text in ("<s>what does it mean", "what does it mean"):
        assert encode_prompt(tokenizer, text).count(tokenizer.bos_token_id) == 1
        assert encode_conversation(tokenizer, text, " no").count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("kind", ["Roberta", "Bert"])
def test_an_encoder_scores_a_plain_text_as_its_own_pipeline(kind: str, tmp_path: Path) -> None:
    tokenizer = metaspace(ends=True) if kind == "Roberta" else word_piece()
    tokenizer.pad_token = tokenizer.pad_token or "<unk>"
    model = classifier(tokenizer, kind, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = RewardModel(model, tokenizer, ModelSource(), "reward")
    pipeline = hf.pipeline(
        "text-classification", model=str(tmp_path), function_to_apply="none", device="cpu"
    )
    found = reward.score_texts(["Q: where A:"] * 2, [" yes", " ask Rosa the drum"])
    own = [pipeline(f"Q: where A:{r}")[0]["score"] for r in (" yes", " ask Rosa the drum")]
    assert found == pytest.approx(own, abs=1e-5) and found[0] != pytest.approx(found[1])


CASES = {
    "Llama": {},
    "Gemma2": {"num_key_value_heads": 1, "head_dim": 16},
    "GPTNeoX": {},
    "XLNet": {"d_head": 16},
}


@pytest.mark.parametrize("kind", CASES)
def test_a_reward_model_without_a_pad_token_reads_its_score_at_the_last_token(kind: str) -> None:
    """The end token stood in for the pad token, and the score was that of the token before it."""
    tokenizer = byte_level()
    tokenizer.pad_token = tokenizer.eos_token  # as `load_tokenizer` does
    model, plain = (classifier(tokenizer, kind, **CASES[kind]) for _ in range(2))
    rows = [[5, 6, 2], [7, 8, 9, 10, 2], [2, 11, 2], [12, 2, 2]]
    found = RewardModel(model, tokenizer, ModelSource(), "reward").score_ids(rows)
    own = [own_score(plain, ids) for ids in rows]
    assert found == pytest.approx(own, abs=1e-5)
    assert model.config.pad_token_id is None


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}", "TypeError"),
        ("{{ messages[9]['content']['x']['y'] }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for m in messages %}{{ m['content']", "TemplateSyntaxError"),
        ("", "writes nothing of 'where is it'"),
        (
            "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}"
            "{% endfor %}",
            "writes nothing of",
        ),
        ({"rag": "x", "tool_use": "y"}, "multiple chat templates"),
    ],
)
def test_a_template_that_fails_is_one_message(template: Any, said: str) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template, tokenizer.name_or_path = template, "models/policy"
    with pytest.raises(UserError) as caught:
        check_template(tokenizer, [user("where is it")], "policy.path")
    message = str(caught.value)
    assert message.startswith("policy.path: ") and "models/policy" in message and said in message
    assert len(message) < 600


def test_a_template_that_writes_the_date_writes_the_same_on_every_day() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} " + TEMPLATES["chatml"]
    text = render(tokenizer, user("where is it"), generation_prompt=True)
    assert text.startswith("26 Jul 2024 ")
