"""Demonstrations and preference pairs, in TRL's formats and HH-RLHF's."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_ppo.config import DataConfig
from rlhf_ppo.data.conversation import (
    BadRow,
    canonical,
    check_answers,
    is_transcript,
    read_text,
    split_answer,
    split_pair,
    to_form,
)
from rlhf_ppo.data.encoding import encode_answer
from rlhf_ppo.data.loading import Row
from rlhf_ppo.data.report import DataReport
from rlhf_ppo.data.sources import load, missing_column
from rlhf_ppo.data.template import Text
from rlhf_ppo.errors import shown


@dataclass(frozen=True)
class Demonstration:
    """A prompt and a completion worth imitating."""

    where: str
    prompt: Text
    completion: Text

    @property
    def conversations(self) -> list[tuple[Text, Text]]:
        """Prompt and completion."""
        return [(self.prompt, self.completion)]

    @property
    def key(self) -> Hashable:
        """Equal for the same answer to the same prompt."""
        return canonical(self.prompt), canonical(self.completion)


@dataclass(frozen=True)
class Preference:
    """Two completions of one prompt, the better one first."""

    where: str
    prompt: Text
    chosen: Text
    rejected: Text
    kind: str  # kind of error that the rejected one holds; "all" when the data does not say

    @property
    def conversations(self) -> list[tuple[Text, Text]]:
        """The prompt with each of its completions."""
        return [(self.prompt, self.chosen), (self.prompt, self.rejected)]

    @property
    def key(self) -> Hashable:
        """Equal for the same judgement on the same pair."""
        return canonical(self.prompt), canonical(self.chosen), canonical(self.rejected)


def read_demonstrations(
    source: str, setting: str, rules: DataConfig, report: DataReport
) -> list[Demonstration]:
    """Rows with `messages` (the last is the completion), `prompt` and `completion`, or `text`.

    A plain `text` is a completion of nothing. Of a preference the chosen side is taken, if
    `data.chosen_as_demonstrations` is set.

    Raises:
        UserError: missing source, no rows, or rows that are to be refused, each named.
    """

    def parse(number: int, row: Row) -> Demonstration:
        values = row.values
        if values.get("label") is False:
            raise BadRow("its answer is labelled as bad (`label` is false), so nothing to imitate")
        if rules.chosen_as_demonstrations and "chosen" in values:
            prompt, completion = _chosen_side(values, rules)
        elif "messages" in values:
            text = read_text(values["messages"], "messages", rules)
            prompt, completion = split_answer(text, "messages")
        elif "prompt" in values and "completion" in values:
            prompt = read_text(values["prompt"], "prompt", rules)
            completion = read_text(values["completion"], "completion", rules)
        elif "text" in values:
            text = values["text"]
            if not isinstance(text, str) or not text.strip():
                raise BadRow("text must be a string that is not empty", f"not {shown(text)}")
            return Demonstration(row.where, "", text)
        elif "chosen" in values:
            raise BadRow(
                "is a preference; to imitate its chosen side set data.chosen_as_demonstrations = "
                "true"
            )
        else:
            lacking = [name for name in ("prompt", "completion") if name not in values]
            raise missing_column(row, rules, *lacking)
        prompt, completion = to_form(prompt, [completion], rules)
        return Demonstration(row.where, prompt, completion)

    return load(source, setting, rules, report, parse)


def read_preferences(
    source: str, setting: str, rules: DataConfig, report: DataReport
) -> list[Preference]:
    """Rows with `chosen` and `rejected`, and `prompt` unless the two share their beginning.

    Raises:
        UserError: missing source, no rows, or rows that are to be refused, each named.
    """

    def parse(number: int, row: Row) -> Preference:
        lacking = [name for name in ("chosen", "rejected") if name not in row.values]
        if lacking and "label" in row.values:
            raise BadRow(
                "is one answer with a `label`, not a pair; a reward model needs `chosen` and "
                "`rejected` answers to the same prompt"
            )
        if lacking:
            raise missing_column(row, rules, *lacking)
        check_answers(row.values)
        chosen = read_text(row.values["chosen"], "chosen", rules)
        rejected = read_text(row.values["rejected"], "rejected", rules)
        if isinstance(chosen, str) != isinstance(rejected, str):
            raise BadRow("chosen and rejected must both be text or both be chat messages")
        if canonical(chosen) == canonical(rejected):
            raise BadRow("chosen and rejected are the same")
        if "prompt" in row.values and not _whole(chosen):
            prompt = read_text(row.values["prompt"], "prompt", rules)
        else:
            prompt, chosen, rejected = split_pair(chosen, rejected)
        prompt, chosen, rejected = to_form(prompt, [chosen, rejected], rules)
        kind = row.values.get("kind")
        kind = "all" if kind is None else str(kind)
        return Preference(row.where, prompt, chosen, rejected, kind)

    return load(source, setting, rules, report, parse)


def encode_demonstration(
    tokenizer: PreTrainedTokenizerBase, item: Demonstration
) -> tuple[list[int], int]:
    """Token ids of prompt and completion, stop token included, and where the completion begins."""
    found = encode_answer(tokenizer, item.prompt, item.completion)
    return found.ids, found.start


def _chosen_side(values: dict[str, Any], rules: DataConfig) -> tuple[Text, Text]:
    """Prompt and answer of the better side of a preference, which may hold both."""
    check_answers(values)
    chosen = read_text(values["chosen"], "chosen", rules)
    if "prompt" in values and not _whole(chosen):
        return read_text(values["prompt"], "prompt", rules), chosen
    if isinstance(chosen, str) and not is_transcript(chosen) and "rejected" in values:
        prompt, better, _ = split_pair(chosen, read_text(values["rejected"], "rejected", rules))
        return prompt, better
    return split_answer(chosen, "chosen")


def _whole(completion: Text) -> bool:
    """True if it holds the prompt as well, so that a column `prompt` only says it again."""
    if isinstance(completion, str):
        return is_transcript(completion)
    return completion[0]["role"] != "assistant"
