"""Demonstrations and preference pairs, in TRL's formats."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase
from trl.data_utils import maybe_extract_prompt

from rlhf_ppo.data.loading import Row, raise_problems, read_rows
from rlhf_ppo.data.template import Text, check_text, encode_conversation, encode_prompt


@dataclass(frozen=True)
class Demonstration:
    """A prompt and a completion worth imitating."""

    prompt: Text
    completion: Text


@dataclass(frozen=True)
class Preference:
    """Two completions of one prompt, the better one first."""

    prompt: Text
    chosen: Text
    rejected: Text
    kind: str  # kind of error that the rejected one holds; "all" when the data does not say


def read_demonstrations(source: str, setting: str = "data.demonstrations") -> list[Demonstration]:
    """Rows with `messages` (the last is the completion), `prompt` and `completion`, or `text`.

    A plain `text` is a completion of nothing.

    Raises:
        UserError: missing source, no rows, or broken rows, each named.
    """
    demonstrations, problems = [], []
    for row in read_rows(source, setting):
        found = _demonstration(row)
        if isinstance(found, str):
            problems.append(f"{row.where}: {found}")
        else:
            demonstrations.append(found)
    raise_problems(problems, f"Mend or remove these rows. ({setting})")
    return demonstrations


def read_preferences(source: str, setting: str = "data.preferences") -> list[Preference]:
    """Rows with `chosen` and `rejected`, and `prompt` unless the two share their beginning.

    Raises:
        UserError: missing source, no rows, or broken rows, each named.
    """
    preferences, problems = [], []
    for row in read_rows(source, setting):
        found = _preference(row)
        if isinstance(found, str):
            problems.append(f"{row.where}: {found}")
        else:
            preferences.append(found)
    raise_problems(problems, f"Mend or remove these rows. ({setting})")
    return preferences


def encode_demonstration(
    tokenizer: PreTrainedTokenizerBase, item: Demonstration
) -> tuple[list[int], int]:
    """Token ids of prompt and completion, stop token included, and where the completion begins."""
    whole = encode_conversation(tokenizer, item.prompt, item.completion)
    return whole, _shared_prefix(encode_prompt(tokenizer, item.prompt), whole)


def _shared_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that both begin with; a tokenizer may merge across the end of the prompt."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length


def _demonstration(row: Row) -> Demonstration | str:
    values = row.values
    if "text" in values:
        text = values["text"]
        if not isinstance(text, str) or not text.strip():
            return f"text must be a string that is not empty, not {text!r}"
        return Demonstration("", text)
    if "messages" in values:
        problem = check_text(values["messages"], "messages")
        if problem is not None:
            return problem
        messages = values["messages"]
        if isinstance(messages, str) or len(messages) < 2 or messages[-1]["role"] != "assistant":
            return "messages must be a list that ends with the assistant, after at least one other"
        return Demonstration(messages[:-1], messages[-1:])
    missing = [name for name in ("prompt", "completion") if name not in values]
    if missing:
        columns = ", ".join(sorted(values)) or "none"
        return f"needs `messages`, `prompt` and `completion`, or `text` (columns: {columns})"
    problem = check_text(values["prompt"], "prompt") or check_text(
        values["completion"], "completion"
    )
    if problem is None and isinstance(values["prompt"], str) != isinstance(
        values["completion"], str
    ):
        return "prompt and completion must both be text or both be chat messages"
    return problem or Demonstration(values["prompt"], values["completion"])


def _preference(row: Row) -> Preference | str:
    columns = ", ".join(sorted(row.values)) or "none"
    for name in ("chosen", "rejected"):
        if name not in row.values:
            return f"no column `{name}` (columns: {columns})"
        problem = check_text(row.values[name], name)
        if problem is not None:
            return problem
    if isinstance(row.values["chosen"], str) != isinstance(row.values["rejected"], str):
        return "chosen and rejected must both be text or both be chat messages"
    values = maybe_extract_prompt(dict(row.values))
    problem = check_text(values.get("prompt"), "prompt")
    if problem is not None:
        return problem
    prompt, chosen, rejected = values["prompt"], values["chosen"], values["rejected"]
    if len({isinstance(text, str) for text in (prompt, chosen, rejected)}) > 1:
        return "prompt, chosen and rejected must all be text or all be chat messages"
    if chosen == rejected:
        return "chosen and rejected are the same"
    kind = row.values.get("kind", "all")
    return Preference(prompt, chosen, rejected, str(kind))
