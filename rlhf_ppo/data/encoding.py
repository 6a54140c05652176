"""Demonstrations and pairs as token ids: learnt where the policy will sample them.

PPO samples after the prompt's ids, generation prompt included. What a template writes of a finished
conversation need not begin with them: it may leave out reasoning, or the last letters of a prompt
and the first of an answer may be one token. A demonstration is then put after the prompt's ids; a
reward model reads what its template writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from rlhf_ppo.data.special_tokens import encode_text, mark
from rlhf_ppo.data.template import (
    Text,
    as_text,
    encode_after,
    encode_conversation,
    encode_prompt,
    end_of_text,
    frame_of,
    joined,
    lost_messages,
    render,
)

LEFT_OUT = (
    "the chat template leaves out or rewrites part of the answer: it is learnt as it stands in the "
    "data, after the generation prompt"
)
NOT_OPENED = (
    "the generation prompt opens reasoning and the answer has none: it is learnt right after that"
)
ONE_TOKEN = (
    "the end of the prompt and the beginning of the answer would be one token: encoded apart, as "
    "the policy samples"
)
ELSEWHERE = (
    "the template writes a finished answer at another place than the generation prompt asks for "
    "it: learnt where the template writes it, not where the policy samples"
)
SAME_TOKENS = (
    "chosen and rejected are the same tokens: the chat template or the tokenizer leaves out that "
    "in which they differ"
)
EARLIER = "the chat template leaves out or rewrites part of an earlier message"
ANSWER = "the chat template leaves out or rewrites part of an answer, so the model does not read it"


@dataclass(frozen=True)
class Example:
    """A prompt and an answer as token ids."""

    ids: list[int]
    start: int  # of the answer
    notes: tuple[str, ...] = ()  # what the data report says of the row


def encode_answer(tokenizer: PreTrainedTokenizerBase, prompt: Text, answer: Text) -> Example:
    """A demonstration: the prompt's own ids, the answer, the end of its turn.

    Raises:
        UserError: the template fails, or refuses the messages.
    """
    begun = encode_prompt(tokenizer, prompt)
    if isinstance(prompt, str):
        whole = encode_conversation(tokenizer, prompt, answer)
        if whole[: len(begun)] == begun:
            return Example(whole, len(begun))
        return _text_after(tokenizer, begun, as_text(answer)) or _elsewhere(begun, whole)
    whole, lost = _written(tokenizer, prompt, answer)
    notes = (EARLIER,) if any(number < len(prompt) for number in lost) else ()
    complete = all(number < len(prompt) for number in lost)
    if whole[: len(begun)] == begun and complete:
        return Example(whole, len(begun), notes)
    found = None
    if isinstance(answer, str) or len(answer) == 1:
        found = _message_after(tokenizer, begun, prompt, as_text(answer), complete=complete)
    found = found or _elsewhere(begun, whole)
    return replace(found, notes=notes + found.notes)


def encode_side(tokenizer: PreTrainedTokenizerBase, prompt: Text, answer: Text) -> Example:
    """One side of a preference, as a reward model reads it; `start` is not looked for.

    Raises:
        UserError: the template fails, or refuses the messages.
    """
    if isinstance(prompt, str):
        return Example(encode_conversation(tokenizer, prompt, answer), 0)
    ids, lost = _written(tokenizer, prompt, answer)
    notes = [EARLIER] if any(number < len(prompt) for number in lost) else []
    notes += [ANSWER] if any(number >= len(prompt) for number in lost) else []
    return Example(ids, 0, tuple(notes))


def cut_answer(example: Example, most: int) -> Example | None:
    """The first `most` tokens; the end of the turn is lost with the rest, and not learnt.

    None: nothing of the answer would be left.
    """
    return None if example.start >= most else replace(example, ids=example.ids[:most])


def cut_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, pair: tuple[Example, Example], most: int
) -> tuple[Example, Example] | None:
    """Both sides cut at the same place of their answers, each with the end of its turn.

    At the same place, so that which side was cut says nothing; with its end, because there a
    reward model reads its score. None: nothing of the answers would be left.
    """
    begun, end = encode_prompt(tokenizer, prompt), _end_of_turn(tokenizer, prompt)
    after = [len(end) if end and side.ids[-len(end) :] == end else 0 for side in pair]
    room = most - max(after)
    if any(_shared(begun, side.ids) >= room for side in pair):
        return None
    first, second = (
        replace(side, ids=side.ids[: len(side.ids) - n][:room] + side.ids[len(side.ids) - n :])
        for side, n in zip(pair, after, strict=True)
    )
    return first, second


def _written(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, answer: Text
) -> tuple[list[int], list[int]]:
    """Ids of a whole conversation, and the numbers of the messages that are not whole in it."""
    turns = joined(prompt, answer)
    assert not isinstance(turns, str)  # the prompt is messages
    text = render(tokenizer, turns, generation_prompt=False)
    return encode_text(tokenizer, text), lost_messages(tokenizer, turns, text)


def _text_after(
    tokenizer: PreTrainedTokenizerBase, begun: list[int], answer: str
) -> Example | None:
    """A plain text that goes on after a plain prompt, whatever the two would be as one."""
    stop, end = tokenizer.eos_token or "", end_of_text(tokenizer)
    going_on = encode_after(tokenizer, begun, answer.removesuffix(stop) if stop else answer)
    if going_on is None:
        return None
    return Example(begun + going_on + end, len(begun), notes=(ONE_TOKEN,))


def _message_after(
    tokenizer: PreTrainedTokenizerBase,
    begun: list[int],
    prompt: Text,
    answer: str,
    *,
    complete: bool,
) -> Example | None:
    """An answer after the generation prompt, without what that has already written of it."""
    frame = None if isinstance(prompt, str) else frame_of(tokenizer, prompt)
    if frame is None:
        return None
    if not (frame.prompt.startswith(frame.before) or frame.before.startswith(frame.prompt)):
        return None
    notes: tuple[str, ...] = () if complete else (LEFT_OUT,)
    if frame.opened.strip():
        if answer.lstrip().startswith(frame.opened.strip()):
            answer = answer.lstrip()[len(frame.opened.strip()) :]
            answer = answer.removeprefix(frame.opened[len(frame.opened.rstrip()) :])
        else:
            notes += (NOT_OPENED,)
    rest = mark(tokenizer, answer) + frame.after
    whole = encode_text(tokenizer, frame.prompt + rest)
    if whole[: len(begun)] == begun:
        return Example(whole, len(begun), notes)
    going_on = encode_after(tokenizer, begun, rest)
    return None if going_on is None else Example(begun + going_on, len(begun), notes)


def _elsewhere(begun: list[int], whole: list[int]) -> Example:
    return Example(whole, _shared(begun, whole), notes=(ELSEWHERE,))


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> list[int]:
    """Ids that stand after every answer."""
    if isinstance(prompt, str):
        return end_of_text(tokenizer)
    frame = frame_of(tokenizer, prompt)
    return [] if frame is None else encode_text(tokenizer, frame.after)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that both begin with."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length
