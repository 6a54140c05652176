"""What a policy wrote: its text, and the tokens that it was sampled as."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlhf_ppo.data.special_tokens import encode_text, special_ids, unmark
from rlhf_ppo.data.template import (
    Message,
    Text,
    encode_conversation,
    end_of_text,
    frame_of,
    joined,
    render,
)


@dataclass(frozen=True)
class Sampled:
    """The tokens of one response."""

    tokenizer: PreTrainedTokenizerBase  # the policy's
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]  # without special tokens, as the text


class Response(str):
    """A response as a person reads it, without special tokens; it knows its tokens.

    Whoever scores texts takes it for the string that it is. A reward model with the policy's
    tokenizer reads the tokens.
    """

    sampled: Sampled

    def __new__(cls, text: str, sampled: Sampled) -> "Response":
        """A string that carries its tokens."""
        made = super().__new__(cls, text)
        made.sampled = sampled
        return made

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Copied or sent to another process it is the text alone."""
        return str, (str(self),)


def read_response(
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    ids: Sequence[int],
    prompt: Text = "",
) -> Response:
    """The text of a sampled response, as it stands behind its prompt.

    A tokenizer in the manner of SentencePiece writes a space at the beginning of a word and strips
    it from the first word of a text: decoded alone, a response would lose the space that parts it
    from its prompt. Where a chat template writes that space, it is no part of the message.

    Args:
        tokenizer: of the policy.
        prompt_ids: tokens of the prompt.
        ids: tokens of the response, the stop token included.
        prompt: messages, or a string.
    """
    special = special_ids(tokenizer)
    sampled = Sampled(
        tokenizer, tuple(prompt_ids), tuple(token for token in ids if token not in special)
    )
    alone = str(tokenizer.decode(list(sampled.ids), skip_special_tokens=True))
    before = str(tokenizer.decode(list(prompt_ids), skip_special_tokens=True))
    both = [*prompt_ids, *sampled.ids]
    inside = str(tokenizer.decode(both, skip_special_tokens=True))
    if not inside.startswith(before):  # a tokenizer that tidies up spaces across the two
        return Response(alone, sampled)
    inside = inside[len(before) :]
    if isinstance(prompt, str) or not inside[:1].isspace():
        return Response(inside, sampled)
    return Response(_without_space(tokenizer, sampled, prompt, inside, alone), sampled)


def _without_space(
    tokenizer: PreTrainedTokenizerBase,
    sampled: Sampled,
    prompt: list[Message],
    inside: str,
    alone: str,
) -> str:
    """A response to messages without the space that the template or the tokenizer puts there.

    Args:
        tokenizer: of the policy.
        sampled: its tokens.
        prompt: messages.
        inside: the text as it stands behind its prompt.
        alone: its tokens as a text of their own.
    """
    frame = frame_of(tokenizer, prompt)
    if frame is not None and frame.before.startswith(frame.prompt):
        between = frame.before[len(frame.prompt) :]
        if between.isspace() and inside.startswith(between):
            return inside[len(between) :]
    if alone != inside:
        count = len(sampled.prompt_ids) + 1
        written = tuple(encode_conversation(tokenizer, prompt, alone)[:count])
        if written == sampled.prompt_ids + sampled.ids[:1]:
            return alone
    return inside


def sampled_conversation(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, response: Response
) -> list[int] | None:
    """Prompt and response as they were sampled, and what ends the turn.

    Args:
        tokenizer: of the reward model; it has the policy's vocabulary.
        prompt: string or messages.
        response: sampled.

    Returns:
        Token ids; None where the reward model's template writes this conversation in another way,
        so that it has never read what was sampled.
    """
    begun, kept = list(response.sampled.prompt_ids), list(response.sampled.ids)
    whole = encode_conversation(tokenizer, prompt, response, sampled=True)
    if whole[: len(begun)] != begun:
        return None
    if isinstance(prompt, str):
        return begun + kept + end_of_text(tokenizer)
    frame = frame_of(tokenizer, prompt)
    if frame is None:
        return None
    conversation = joined(prompt, str(response))
    text = render(tokenizer, conversation, generation_prompt=False)  # type: ignore[arg-type]
    behind = unmark(tokenizer, text.removeprefix(frame.prompt).removesuffix(frame.after))
    # As a person reads it: a byte that is no letter decodes to a sign, and so does the text.
    if str(tokenizer.decode(kept, skip_special_tokens=True)).strip() != behind.strip():
        return None
    return begun + kept + encode_text(tokenizer, frame.after)
