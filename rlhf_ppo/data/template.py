"""Text and chat messages to token ids: the one place where a template is applied.

A conversational prompt (a list of messages) goes through the tokenizer's chat template; a plain
string is taken as it is. This is TRL's rule, so that all stages see the same tokens.
"""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_ppo.errors import UserError

# For a tokenizer without a template: words that any model can read, no new tokens. An encoder's
# class token and a model's begin token stand first, as the tokenizer would put them around a text.
DEFAULT_TEMPLATE = (
    "{%- if cls_token is defined and cls_token -%}{{- cls_token -}}"
    "{%- elif bos_token is defined and bos_token and bos_token != eos_token -%}"
    "{{- bos_token -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- message['role'] | capitalize ~ ':\\n' ~ message['content'] -}}"
    "{%- if message['role'] != 'assistant' -%}{{- '\\n\\n' -}}"
    "{%- elif eos_token is defined and eos_token -%}{{- eos_token -}}"
    "{%- else -%}{{- sep_token -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:\\n' -}}{%- endif -%}"
)

Message = dict[str, str]
Text = str | list[Message]


def check_template(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], where: str) -> None:
    """Make sure that conversational data meets a chat template that takes its roles.

    A tokenizer without a template gets the default one, which is saved with the model.

    Raises:
        UserError: a template that refuses the messages.
    """
    if tokenizer.chat_template is None and any(not isinstance(text, str) for text in texts):
        tokenizer.chat_template = DEFAULT_TEMPLATE
    # Templates refuse orders of roles, not words: one conversation of each order is enough.
    orders = {
        tuple(message["role"] for message in text): text
        for text in texts
        if not isinstance(text, str)
    }
    for text in orders.values():
        _render(tokenizer, text, add_generation_prompt=False)


def assumed_template(
    tokenizer: PreTrainedTokenizerBase, setting: str, texts: Sequence[Text]
) -> str | None:
    """How messages will be written for a tokenizer that does not say, in a line for a person.

    Args:
        tokenizer: as it was loaded.
        setting: that names it.
        texts: what it will be given.
    """
    if tokenizer.chat_template is not None or all(isinstance(text, str) for text in texts):
        return None
    end = tokenizer.eos_token or tokenizer.sep_token
    return (
        f"{setting}: the tokenizer has no chat template, so messages are written as "
        f"'User:\\n...\\n\\nAssistant:\\n...{end}'. To have another form, set chat_template in the "
        f"tokenizer_config.json of {tokenizer.name_or_path}."
    )


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
    whole = joined(prompt, response)
    if isinstance(whole, str):
        if tokenizer.eos_token and not whole.endswith(tokenizer.eos_token):
            whole += tokenizer.eos_token
        return list(tokenizer(whole)["input_ids"])
    return _render(tokenizer, whole, add_generation_prompt=False)


def long_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[tuple[Text, Text]]], most: int
) -> dict[int, int]:
    """Which rows are too long, and their lengths (tokens).

    Most rows need not be tokenized to know: a token stands for one byte at least, and what the
    template adds is less than one whole conversation with the same order of roles.

    Args:
        tokenizer: of the model that will read them.
        rows: each with its conversations, as prompt and response; the longest one counts.
        most: tokens of a conversation that still fits.

    Returns:
        By number of the row: its length.
    """
    added: dict[tuple[str, ...], int] = {}
    long = {}
    for number, conversations in enumerate(rows):
        lengths = [0]
        for prompt, response in conversations:
            whole = joined(prompt, response)
            order = () if isinstance(whole, str) else tuple(turn["role"] for turn in whole)
            if order not in added:
                added[order] = len(encode_conversation(tokenizer, prompt, response))
            if len(as_text(whole).encode()) + added[order] > most:
                lengths.append(len(encode_conversation(tokenizer, prompt, response)))
        if max(lengths) > most:
            long[number] = max(lengths)
    return long


def joined(prompt: Text, response: Text) -> Text:
    """Prompt and response as one text, or as one conversation if the prompt is one."""
    if isinstance(prompt, str):
        return prompt + as_text(response)
    answer = [{"role": "assistant", "content": response}] if isinstance(response, str) else response
    return [*prompt, *answer]


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
