r"""What a row says, in one form: strings, chat messages, HH-RLHF transcripts as prompt and answer.

A transcript is one string, "\n\nHuman: ...\n\nAssistant: ...", as Anthropic's HH-RLHF has them.
"""

import contextlib
import re
from collections.abc import Sequence
from typing import Any

from rlhf_ppo.config import DataConfig
from rlhf_ppo.data.template import Message, Text
from rlhf_ppo.errors import shown

TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
LAST_TURN = "\n\nAssistant:"
OPEN_TURN = re.compile(r"\n\nAssistant:\s*$")


class BadRow(Exception):  # noqa: N818  # not an error of ours: it is caught and counted
    """Why a row cannot be used.

    `reason` is the same for the same mistake, so that a report can count; `detail` is the row's.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def read_text(value: Any, name: str, rules: DataConfig) -> Text:
    """A prompt, completion or conversation: a string, or messages without their empty fields.

    A transcript becomes messages, unless `data.to_chat` is `never`.

    Args:
        value: should be a non-empty string or a non-empty list of {"role", "content"}.
        name: of the column, for the message.
        rules: the settings of the data section.

    Raises:
        BadRow: it is something else, or empty.
    """
    if value is None:
        raise BadRow(f"{name} is null")
    if isinstance(value, str):
        if not value.strip():
            raise BadRow(f"{name} is empty")
        if value.lstrip().startswith("[{") and re.search(r"""["']content["']\s*:""", value):
            raise BadRow(
                f"{name} is the text of a list of messages, not a list (store it as a list, or as "
                "JSON in a CSV cell)",
                shown(value, 60),
            )
        chat = rules.to_chat != "never" and is_transcript(value)
        return transcript_messages(value, name) if chat else value
    if not isinstance(value, list):
        raise BadRow(f"{name} must be a string or a list of chat messages", f"not {shown(value)}")
    if not value:
        raise BadRow(f"{name} is an empty list")
    messages = [_message(item, name) for item in value]
    if not messages[-1]["content"].strip():
        raise BadRow(f"{name} is empty in its last message", shown(messages[-1]))
    return messages


def is_transcript(text: Text) -> bool:
    """True for a string that begins as HH-RLHF's transcripts do."""
    if not isinstance(text, str):
        return False
    begins = text.lstrip().startswith("Human:")
    return begins and (text.startswith("\n\n") or LAST_TURN in text)


def transcript_messages(text: str, name: str) -> list[Message]:
    """The turns of a transcript; an open "Assistant:" at its end is left out.

    Raises:
        BadRow: a turn before the end is empty, or the same side speaks twice in a row.
    """
    parts = TURN.split("\n\n" + text.lstrip())[1:]
    turns = list(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))
    if turns[-1] == ("Assistant", ""):
        turns.pop()
    for (side, words), (following, _) in zip(turns, [*turns[1:], ("", "")], strict=True):
        if not words:
            raise BadRow(f"{name} is a transcript with an empty turn", f"of {side}")
        if side == following:
            raise BadRow(f"{name} is a transcript in which one side has two turns in a row", side)
    return [{"role": ROLES[side], "content": words} for side, words in turns]


def check_answers(values: dict[str, Any]) -> None:
    """Both sides of a preference hold an answer; some transcripts of HH-RLHF end before it.

    Raises:
        BadRow: one of them is a transcript with nothing after its last "Assistant:".
    """
    for name in ("chosen", "rejected"):
        value = values.get(name)
        if isinstance(value, str) and is_transcript(value) and OPEN_TURN.search(value):
            raise BadRow(f"the answer of {name} is empty", "nothing after its last 'Assistant:'")


def ends_with_answer(text: Text) -> bool:
    """True if the assistant has the last word of messages or of a transcript."""
    if isinstance(text, str):
        turns = TURN.split("\n\n" + text.lstrip())
        return is_transcript(text) and turns[-2] == "Assistant" and bool(turns[-1].strip())
    return text[-1]["role"] == "assistant"


def split_answer(text: Text, name: str) -> tuple[Text, Text]:
    """A conversation as its beginning and its last answer.

    Raises:
        BadRow: it does not end with the assistant, after at least one other message.
    """
    if isinstance(text, str):
        if not ends_with_answer(text):
            raise BadRow(f"{name} must be a list of messages, or a transcript, with an answer last")
        cut = text.rfind(LAST_TURN) + len(LAST_TURN)
        return text[:cut], text[cut:]
    if len(text) < 2 or not ends_with_answer(text):
        roles = ", ".join(message["role"] for message in text)
        reason = f"{name} must end with the assistant, after at least one other message"
        raise BadRow(reason, f"roles: {roles}")
    return text[:-1], text[-1:]


def split_pair(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Prompt, chosen and rejected of two conversations that share their beginning.

    Transcripts, as text or as messages that were made of them, are cut at their last answer. Other
    texts are cut between words: not in the middle of one because both begin with the same letters.

    Raises:
        BadRow: they share no beginning, or do not part at an answer.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        if is_transcript(chosen) and is_transcript(rejected):
            prompt, better = split_answer(chosen, "chosen")
            other, worse = split_answer(rejected, "rejected")
            if prompt != other:
                raise BadRow("chosen and rejected differ before their last answer")
            return prompt, better, worse
        cut = _shared_words(chosen, rejected)
        if not chosen[:cut].strip():
            raise BadRow("chosen and rejected share no beginning, and there is no column `prompt`")
        return chosen[:cut], chosen[cut:], rejected[cut:]
    same = _shared(chosen, rejected)
    if same == 0:
        raise BadRow("chosen and rejected share no beginning, and there is no column `prompt`")
    if same == min(len(chosen), len(rejected)):
        raise BadRow("one of chosen and rejected only begins the other")
    if {chosen[same]["role"], rejected[same]["role"]} != {"assistant"}:  # type: ignore[index]
        raise BadRow("chosen and rejected differ before an answer of the assistant")
    return chosen[:same], chosen[same:], rejected[same:]


def to_form(prompt: Text, completions: Sequence[Text], rules: DataConfig) -> list[Text]:
    """Prompt and completions as the data section asks for: all text, or all chat with its system.

    Raises:
        BadRow: text and messages that cannot go together, or a text that needs a system prompt.
    """
    if isinstance(prompt, str) and rules.to_chat == "always":
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, str):
        if any(not isinstance(text, str) for text in completions):
            raise BadRow("the prompt is text and its completion chat messages; both must be one")
        if rules.system_prompt is not None:
            raise BadRow(
                "a plain string takes no system prompt (data.system_prompt): set data.to_chat = "
                "always",
                shown(prompt, 60),
            )
        return [prompt, *completions]
    if rules.system_prompt is not None and prompt[0]["role"] not in ("system", "developer"):
        prompt = [{"role": "system", "content": rules.system_prompt}, *prompt]
    answers: list[Text] = []
    for text in completions:
        if isinstance(text, str):  # a leading space only parts it from the prompt's text
            text = [{"role": "assistant", "content": text.strip()}]
        if text[-1]["role"] != "assistant":
            raise BadRow("a completion must end with the assistant", f"not {text[-1]['role']}")
        if text[: len(prompt)] == prompt:
            raise BadRow("a completion begins with the prompt again; leave one of the two out")
        answers.append(text)
    return [prompt, *answers]


def canonical(text: Text) -> tuple[tuple[str, str], ...]:
    """The same for a string and its conversation of one message: to find the same prompt twice."""
    if isinstance(text, str) and is_transcript(text):
        with contextlib.suppress(BadRow):  # a broken one is only like itself
            text = transcript_messages(text, "transcript")
    if isinstance(text, str):
        return (("user", text.strip()),)
    return tuple((message["role"], message["content"].strip()) for message in text)


def _message(item: Any, name: str) -> Message:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str):
        raise BadRow(
            f"{name} needs messages like {{'role': 'user', 'content': ...}}", f"not {shown(item)}"
        )
    content = item.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, name) for part in content)
    if not isinstance(content, str):
        raise BadRow(f"{name} has a message whose content is not text", shown(item))
    found = {key: value for key, value in item.items() if value is not None}
    return found | {"content": content}


def _part(part: Any, name: str) -> str:
    """The text of one part of a message's content, as OpenAI's chat format has them."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    what = f"of type {kind}" if isinstance(kind, str) and len(kind) < 40 else "that is not text"
    raise BadRow(f"{name} has content with a part {what}; only text can be used", shown(part))


def _shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many elements both begin with."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))


def _shared_words(first: str, second: str) -> int:
    """Characters that both begin with, whole words only where there are spaces at all."""
    shared = first[: _shared(first, second)]
    words = shared.rsplit(maxsplit=1)
    if len(words) == 2 and not shared[-1].isspace():
        shared = shared[: -len(words[1])]
    return len(shared.rstrip())
