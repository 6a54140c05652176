"""Prompts to train and to evaluate on."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_ppo.config import DataConfig
from rlhf_ppo.data.conversation import (
    BadRow,
    canonical,
    check_answers,
    ends_with_answer,
    is_transcript,
    read_text,
    split_answer,
    split_pair,
    to_form,
)
from rlhf_ppo.data.loading import Row
from rlhf_ppo.data.report import DataReport, TooLong, raise_problems
from rlhf_ppo.data.sources import load, missing_column
from rlhf_ppo.data.template import Text, as_text, check_template, encode_prompt
from rlhf_ppo.errors import UserError, shown
from rlhf_ppo.models.limits import limits_of


@dataclass(frozen=True)
class Prompt:
    """What the user said, and whatever else its row holds for the reward function."""

    row: int  # place in the data set; the sampling noise hangs on it
    where: str
    text: Text
    columns: dict[str, Any]

    @cached_property
    def key(self) -> Hashable:
        """Equal for the same prompt, whatever its other columns."""
        return canonical(self.text)


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt and its token ids under the policy's tokenizer."""

    prompt: Prompt
    ids: tuple[int, ...]


def read_prompts(source: str, setting: str, rules: DataConfig, report: DataReport) -> list[Prompt]:
    """Rows with `prompt`, with `messages`, or with `chosen` and `rejected` that share a beginning.

    Messages and transcripts that end with an answer lose it: it becomes the column `completion`.
    Every prompt gets the columns that any of them has, None where its own row has none.

    Raises:
        UserError: missing source, no rows, or rows that are to be refused, each named.
    """

    def parse(number: int, row: Row) -> Prompt:
        text, columns = _parse(row, rules)
        return Prompt(number, row.where, to_form(text, [], rules)[0], columns)

    prompts = load(source, setting, rules, report, parse)
    names = sorted({name for prompt in prompts for name in prompt.columns})
    return [replace(p, columns={name: p.columns.get(name) for name in names}) for p in prompts]


def settle_overlap(
    train: Sequence[Prompt], heldout: Sequence[Prompt], rules: DataConfig, report: DataReport
) -> list[Prompt]:
    """The training prompts without those that are held out.

    Raises:
        UserError: a prompt stands in both sets and `data.overlap` is `refuse`; names the places.
    """
    held = {prompt.key: prompt.where for prompt in heldout}
    shared = [prompt for prompt in train if prompt.key in held]
    if rules.overlap == "refuse":
        raise_problems(
            [f"{held[prompt.key]} is the same prompt as {prompt.where}" for prompt in shared],
            "Held-out prompts must not be trained on: remove them from one of the two, or set "
            "data.overlap = drop, which drops them from data.prompts.",
        )
    places = [prompt.where for prompt in shared]
    report.add("data.prompts", "is held out (data.heldout_prompts)", places, dropped=True)
    if len(shared) == len(train) > 0:
        raise UserError("data.prompts: every prompt is also in data.heldout_prompts.")
    return [prompt for prompt in train if prompt.key not in held]


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, max_tokens: int, setting: str
) -> tuple[list[EncodedPrompt], list[TooLong]]:
    """Apply the chat template and tokenize; drop what is too long.

    Returns:
        The encoded prompts, and those that were dropped.

    Raises:
        UserError: the chat template refuses the messages, or nothing is left.
    """
    check_template(tokenizer, [prompt.text for prompt in prompts], setting)
    encoded = [EncodedPrompt(p, tuple(encode_prompt(tokenizer, p.text))) for p in prompts]
    kept = [item for item in encoded if len(item.ids) <= max_tokens]
    if not kept:
        shortest = min(len(item.ids) for item in encoded)
        raise UserError(
            f"{setting}: all {len(encoded)} prompts are longer than data.max_prompt_tokens = "
            f"{max_tokens} (the shortest has {shortest} tokens). Raise it."
        )
    long = [TooLong(p.prompt.where, len(p.ids)) for p in encoded if len(p.ids) > max_tokens]
    return kept, long


def check_room(
    prompts: Sequence[EncodedPrompt], model: PretrainedConfig, max_new_tokens: int, setting: str
) -> None:
    """Prompt and response together must fit the positions that a model knows.

    Raises:
        UserError: a response to the longest prompt would run past the last position.
    """
    positions = limits_of(model, setting).trained
    longest = max(prompts, key=lambda item: len(item.ids))
    if positions is not None and len(longest.ids) + max_new_tokens > positions:
        raise UserError(
            f"{setting}: {longest.prompt.where} has {len(longest.ids)} tokens, and with "
            f"rollout.max_new_tokens = {max_new_tokens} that is more than the {positions} "
            "positions of the model. Lower rollout.max_new_tokens, or drop long prompts by "
            f"data.max_prompt_tokens = {max(1, positions - max_new_tokens)}."
        )


def _parse(row: Row, rules: DataConfig) -> tuple[Text, dict[str, Any]]:
    """The prompt of a row, and its other columns."""
    values = row.values
    name = next((name for name in ("prompt", "messages") if name in values), None)
    if name is None:
        return _of_pair(row, rules)
    columns = {key: value for key, value in values.items() if key != name}
    text = read_text(values[name], name, rules)
    if name == "messages" and isinstance(text, str) and not is_transcript(text):
        raise BadRow("messages must be a list of messages, or a transcript", shown(text, 60))
    whole = name == "messages" or isinstance(values[name], str)  # may end with an answer
    if whole and ends_with_answer(text):
        if "completion" in columns:
            raise BadRow(
                f"{name} ends with an answer and there is a column `completion` too; remove one, "
                "or rename the column by data.columns"
            )
        text, answer = split_answer(text, name)
        columns["completion"] = as_text(answer).strip()
    if not isinstance(text, str) and text[-1]["role"] in ("assistant", "system"):
        raise BadRow(
            f"{name} ends with the {text[-1]['role']}; it must end where the response begins (a "
            "conversation with its answer belongs in a column `messages`)"
        )
    return text, columns


def _of_pair(row: Row, rules: DataConfig) -> tuple[Text, dict[str, Any]]:
    """The prompt that the two sides of a preference share; their answers stay as columns."""
    if "chosen" not in row.values or "rejected" not in row.values:
        raise missing_column(row, rules, "prompt")
    check_answers(row.values)
    sides = [read_text(row.values[name], name, rules) for name in ("chosen", "rejected")]
    prompt, chosen, rejected = split_pair(sides[0], sides[1])
    return prompt, row.values | {"chosen": as_text(chosen), "rejected": as_text(rejected)}
