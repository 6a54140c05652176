"""Text and chat messages to token ids: the one place where a template is applied.

A conversational prompt (a list of messages) goes through the tokenizer's chat template; a plain
string is taken as it is. This is TRL's rule, so that all stages see the same tokens.
"""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_ppo.errors import UserError

Message = dict[str, str]
Text = str | list[Message]


def check_text(value: Any, name: str) -> str | None:
    """What is wrong with a prompt or completion, or None.

    Args:
        value: should be a non-empty string or a non-empty list of {"role", "content"}.
        name: of the column, for the message.
    """
    if isinstance(value, str):
        return None if value.strip() else f"{name} is empty"
    if not isinstance(value, list):
        return f"{name} must be a string or a list of chat messages, not {value!r}"
    if not value:
        return f"{name} is an empty list"
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"{name} needs messages like {{'role': 'user', 'content': ...}}, not {message!r}"
        if not isinstance(message.get("content"), str):
            return f"{name} has a message whose content is not text: {message!r}"
    return None


def check_template(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], where: str) -> None:
    """Make sure that conversational data meets a chat template that takes its roles.

    Raises:
        UserError: messages, but no template, or a template that refuses them.
    """
    if tokenizer.chat_template is None and any(not isinstance(text, str) for text in texts):
        raise UserError(
            f"{where}: holds chat messages, but the tokenizer {tokenizer.name_or_path!r} has no "
            "chat template. Use plain string prompts, or add a chat_template to the tokenizer."
        )
    # Templates refuse orders of roles, not words: one conversation of each order is enough.
    orders = {
        tuple(message["role"] for message in text): text
        for text in texts
        if not isinstance(text, str)
    }
    for text in orders.values():
        _render(tokenizer, text, add_generation_prompt=False)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> list[int]:
    """Token ids up to the point where the response begins."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    return _render(tokenizer, prompt, add_generation_prompt=True)


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, response: Text
) -> list[int]:
    """Token ids of prompt and finished response, stop token included.

    Args:
        tokenizer: may be another model's; its own template is used.
        prompt: string or messages.
        response: string, or messages that follow the prompt.
    """
    if isinstance(prompt, str):
        text = prompt + as_text(response)
        if tokenizer.eos_token and not text.endswith(tokenizer.eos_token):
            text += tokenizer.eos_token
        return list(tokenizer(text)["input_ids"])
    answer = [{"role": "assistant", "content": response}] if isinstance(response, str) else response
    return _render(tokenizer, [*prompt, *answer], add_generation_prompt=False)


def joined(prompt: Text, response: Text) -> Text:
    """Prompt and response as one text or one conversation."""
    if isinstance(prompt, str) or isinstance(response, str):
        return as_text(prompt) + as_text(response)
    return [*prompt, *response]


def as_text(text: Text) -> str:
    """A string as it is; of messages, the contents, one below the other."""
    if isinstance(text, str):
        return text
    return "\n".join(message["content"] for message in text)


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, add_generation_prompt: bool
) -> list[int]:
    try:
        encoded: Any = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=True,
        )
    except TemplateError as error:  # a role that the template does not know, for example
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} refuses {messages!r}: {error}"
        ) from error
    return list(encoded["input_ids"])
