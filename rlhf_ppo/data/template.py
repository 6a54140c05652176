"""Text and chat messages to token ids: the one place where a template is applied.

A conversational prompt (a list of messages) goes through the tokenizer's chat template; a plain
string is taken as it is. This is TRL's rule, so that all stages see the same tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_ppo.data.special_tokens import encode_text, mark, unmark
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


# A word that no template changes, to see what it writes around an answer.
_PROBE = "xqzprobezqx"
# What templates write as the date of today: they would make other tokens every day.
WRITTEN_DATE = datetime(2024, 7, 26)


@dataclass(frozen=True)
class Frame:
    """What a template writes around an answer."""

    prompt: str  # up to the point where a response begins, generation prompt included
    before: str  # what stands before the answer of a finished conversation
    after: str  # what ends its turn

    @property
    def opened(self) -> str:
        """What the generation prompt has already written of the answer, such as "<think>"."""
        begins = self.prompt.startswith(self.before)
        return self.prompt[len(self.before) :] if begins else ""


def check_template(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], where: str) -> None:
    """Make sure that conversational data meets a chat template that takes its roles and words.

    A tokenizer without a template gets the default one, which is saved with the model.

    Args:
        tokenizer: of the model that will read the texts.
        texts: strings and conversations.
        where: the setting that names the data or the model.

    Raises:
        UserError: a template that fails, refuses the messages, or writes nothing of them.
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
        written = render(tokenizer, text, generation_prompt=False, where=where)
        last = text[-1]["content"]
        if last.strip() and not any(word in written for word in last.split()):
            raise UserError(
                f"{where}: the chat template of {tokenizer.name_or_path!r} writes nothing of "
                f"{shortened(repr(last))} (it may be empty, or want contents in another form). "
                "Mend chat_template.jinja, or chat_template in tokenizer_config.json."
            )


def assumed_template(
    tokenizer: PreTrainedTokenizerBase, setting: str, texts: Sequence[Text]
) -> str | None:
    """How messages will be written for a tokenizer that does not say, in a line for a person.

    Args:
        tokenizer: as it was loaded.
        setting: that names it.
        texts: what it will be given.
    """
    if all(isinstance(text, str) for text in texts):
        return None
    if "strftime_now" in str(tokenizer.chat_template):
        return (
            f"{setting}: the chat template writes the date. All stages write "
            f"{WRITTEN_DATE:%d %b %Y}, so that a run has the same tokens on every day."
        )
    if tokenizer.chat_template is not None:
        return None
    end = tokenizer.eos_token or tokenizer.sep_token
    return (
        f"{setting}: the tokenizer has no chat template, so messages are written as "
        f"'User:\\n...\\n\\nAssistant:\\n...{end}'. To have another form, set chat_template in the "
        f"tokenizer_config.json of {tokenizer.name_or_path}."
    )


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, *, typed: bool = False
) -> list[int]:
    """Token ids up to the point where the response begins: no end token after a plain string.

    Args:
        tokenizer: of the model that goes on from there.
        prompt: messages, or a string that is taken as it is.
        typed: a person typed the string, so special tokens that it spells stay letters; a string
            of the data is the model's raw input, in which they are tokens.

    Raises:
        UserError: the template fails, or refuses the messages.
    """
    if isinstance(prompt, str):
        begin, _ = added_tokens(tokenizer)
        return _begun(begin, encode_text(tokenizer, mark(tokenizer, prompt) if typed else prompt))
    return encode_text(tokenizer, render(tokenizer, prompt, generation_prompt=True))


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, response: Text, *, sampled: bool = False
) -> list[int]:
    """Token ids of prompt and finished response, as the model's own pipeline would read them.

    The stop token is included, exactly once.

    Args:
        tokenizer: may be another model's; its own template is used.
        prompt: string or messages.
        response: string, or messages that follow the prompt.
        sampled: the response was sampled: special tokens that it spells stay letters.

    Raises:
        UserError: the template fails, or refuses the messages.
    """
    whole = joined(prompt, response)
    if not isinstance(whole, str):
        return encode_text(tokenizer, render(tokenizer, whole, generation_prompt=False))
    begin, end = added_tokens(tokenizer)
    stop = tokenizer.eos_token or ""
    text = as_text(response)
    if stop and text.endswith(stop):
        text = text[: -len(stop)]
    text = mark(tokenizer, text) if sampled else text
    ids = encode_text(tokenizer, as_text(prompt) + text + ("" if end else stop))
    return _begun(begin, ids) + end


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    *,
    generation_prompt: bool,
    where: str = "",
) -> str:
    """Messages as the template writes them; special tokens that contents spell are marked.

    Raises:
        UserError: the template fails, or refuses the messages.
    """
    marked: list[Any] = [
        message | {"content": mark(tokenizer, message["content"])} for message in messages
    ]
    try:
        text: Any = tokenizer.apply_chat_template(
            marked,
            chat_template=_undated(tokenizer.chat_template),
            add_generation_prompt=generation_prompt,
            tokenize=False,
        )
    except Exception as error:  # a template is a program: it may raise anything
        place = f"{where}: " if where else ""
        raise UserError(
            f"{place}the chat template of {tokenizer.name_or_path!r} fails on "
            f"{shortened(repr(messages))}: {type(error).__name__}: {shortened(str(error), 300)}"
        ) from error
    return str(text)


def frame_of(tokenizer: PreTrainedTokenizerBase, prompt: list[Message]) -> Frame | None:
    """What the template writes around an answer; None: it leaves out even a plain word."""
    begun = render(tokenizer, prompt, generation_prompt=True)
    answered = [*prompt, {"role": "assistant", "content": _PROBE}]
    before, found, after = render(tokenizer, answered, generation_prompt=False).rpartition(_PROBE)
    return Frame(begun, before, after) if found else None


def encode_after(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str
) -> list[int] | None:
    """Token ids of a text that goes on after `ids`, none of which change.

    Args:
        tokenizer: of the model that reads both.
        ids: what stands before.
        text: from `render`, or plain.

    Returns:
        The ids; None where no encoding of the text alone reads as the text in its place.
    """
    if not text:
        return []
    wanted = unmark(tokenizer, text)
    before = str(tokenizer.decode(list(ids)))
    # A special token in front keeps a tokenizer from treating the text as the first of a line.
    wall = next(iter(tokenizer.all_special_tokens), "")
    behind = encode_text(tokenizer, wall + text)[1:] if wall else []
    for found in (behind, encode_text(tokenizer, text)):
        if tokenizer.decode([*ids, *found]) == before + wanted:
            return found
    return None


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer itself puts before and after every text."""
    core = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = list(tokenizer("a")["input_ids"])
    for start in range(len(framed) - len(core) + 1):
        if framed[start : start + len(core)] == core:
            return framed[:start], framed[start + len(core) :]
    return [], []


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a plain text: what the tokenizer puts there itself, or the end token."""
    end, stop = added_tokens(tokenizer)[1], tokenizer.eos_token_id
    return end or ([] if stop is None else [int(stop)])


def lost_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], written: str
) -> list[int]:
    """Numbers of the messages of which the template has left out or rewritten something.

    Spaces do not count: many templates strip them.

    Args:
        tokenizer: that rendered them.
        messages: a conversation.
        written: what `render` made of it.
    """
    text, place, lost = " ".join(written.split()), 0, []
    for number, message in enumerate(messages):
        content = " ".join(mark(tokenizer, message["content"]).split())
        found = text.find(content, place)
        if found >= 0:
            place = found + len(content)
        elif number + 1 == len(messages) or content not in text:  # some put the system prompt last
            lost.append(number)
    return lost


def shortened(text: str, width: int = 100) -> str:
    """A text of a message, no longer than a line."""
    return text if len(text) <= width else f"{text[:width]}..."


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


def _undated(template: Any) -> Any:
    """A template with a fixed date in place of today's."""
    if not isinstance(template, str):
        return None  # several named ones: Transformers chooses
    return re.sub(
        r"""strftime_now\(\s*["']([^"']*)["']\s*\)""",
        lambda found: repr(WRITTEN_DATE.strftime(found[1])),
        template,
    )


def _begun(begin: list[int], ids: list[int]) -> list[int]:
    """The tokenizer's own first tokens, unless the text has written them."""
    return ids if ids[: len(begin)] == begin else begin + ids
