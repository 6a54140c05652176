"""Text and messages to token ids, with and without a chat template."""

from __future__ import annotations

import pytest
from helpers import byte_tokenizer

from rlhf_ppo.data.prompts import Prompt, encode_prompts
from rlhf_ppo.data.template import (
    Text,
    assumed_template,
    check_template,
    encode_conversation,
    encode_prompt,
)
from rlhf_ppo.errors import UserError

ASKED: Text = [{"role": "user", "content": "what colour is the cat?"}]
ANSWER = "it is red."


def prompt(text: Text, row: int = 0) -> Prompt:
    return Prompt(row, f"here:{row}", text, {})


def test_messages_go_through_the_chat_template_and_end_where_the_answer_begins() -> None:
    tokenizer = byte_tokenizer()
    text = tokenizer.decode(encode_prompt(tokenizer, ASKED))
    assert text == "<|user|>what colour is the cat?<|end|><|assistant|>"


def test_a_plain_string_is_taken_as_it_is_even_when_there_is_a_template() -> None:
    for chat in (True, False):
        tokenizer = byte_tokenizer(chat=chat)
        assert tokenizer.decode(encode_prompt(tokenizer, "The cat is ")) == "The cat is "


def test_a_conversation_begins_with_its_prompt_and_ends_with_the_stop_token() -> None:
    tokenizer = byte_tokenizer()
    whole = encode_conversation(tokenizer, ASKED, ANSWER)
    beginning = encode_prompt(tokenizer, ASKED)
    assert whole[: len(beginning)] == beginning
    assert tokenizer.decode(whole[len(beginning) :]) == "it is red.<|end|>"
    assert whole == encode_conversation(
        tokenizer, ASKED, [{"role": "assistant", "content": ANSWER}]
    )


def test_plain_text_gets_exactly_one_stop_token() -> None:
    tokenizer = byte_tokenizer(chat=False)
    stop = tokenizer.eos_token_id
    for response in ("red", "red<|endoftext|>"):
        whole = encode_conversation(tokenizer, "The cat is ", response)
        assert whole[-1] == stop and whole.count(stop) == 1
        assert tokenizer.decode(whole[:-1]) == "The cat is red"


def test_long_prompts_are_dropped_whole_and_counted() -> None:
    tokenizer = byte_tokenizer(chat=False)
    kept, dropped = encode_prompts(
        [prompt("short", 0), prompt("a" * 50, 1), prompt("longer", 2)], tokenizer, 6, "data.prompts"
    )
    assert [item.prompt.row for item in kept] == [0, 2]
    assert [len(item.ids) for item in kept] == [5, 6]
    assert dropped == [("here:1", 50)]


def test_when_all_prompts_are_too_long_the_message_says_by_how_much() -> None:
    with pytest.raises(UserError, match="shortest has 20 tokens") as caught:
        encode_prompts([prompt("a" * 20)], byte_tokenizer(chat=False), 6, "data.prompts")
    assert "data.max_prompt_tokens = 6" in str(caught.value)


def test_a_tokenizer_without_a_template_gets_a_plain_one_that_is_said() -> None:
    tokenizer = byte_tokenizer(chat=False)
    line = assumed_template(tokenizer, "policy.path", ["plain", ASKED]) or ""
    assert "policy.path" in line and r"Assistant:\n...<|endoftext|>" in line
    assert assumed_template(tokenizer, "policy.path", ["plain"]) is None
    kept, _ = encode_prompts([prompt(ASKED)], tokenizer, 99, "data.prompts")
    asked = "User:\nwhat colour is the cat?\n\nAssistant:\n"
    assert tokenizer.decode(kept[0].ids) == asked
    whole = encode_conversation(tokenizer, ASKED, ANSWER)
    assert tokenizer.decode(whole) == f"{asked}{ANSWER}<|endoftext|>"
    assert assumed_template(tokenizer, "policy.path", [ASKED]) is None  # said once


def test_the_plain_template_keeps_the_tokens_that_a_model_expects_around_a_text() -> None:
    """An encoder reads its score at the class token, which plain messages had not."""
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.add_special_tokens({"cls_token": "[C]", "sep_token": "[S]"})
    tokenizer.eos_token = None
    check_template(tokenizer, [ASKED], "reward")
    text = tokenizer.decode(encode_conversation(tokenizer, ASKED, ANSWER))
    assert text.startswith("[C]User:\n") and text.endswith(f"{ANSWER}[S]")
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.add_special_tokens({"bos_token": "[B]"})
    check_template(tokenizer, [ASKED], "policy")
    assert tokenizer.decode(encode_prompt(tokenizer, ASKED)).startswith("[B]User:\n")
