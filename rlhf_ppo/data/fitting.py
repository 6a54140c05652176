"""Rows as their stages will read them, and what is to be said of those that cannot be read."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from transformers import PreTrainedTokenizerBase

from rlhf_ppo.console import tick
from rlhf_ppo.data.encoding import (
    SAME_TOKENS,
    Example,
    cut_answer,
    cut_pair,
    encode_answer,
    encode_side,
)
from rlhf_ppo.data.lengths import LengthLimit
from rlhf_ppo.data.preferences import Demonstration, Preference
from rlhf_ppo.data.report import DataReport, TooLong
from rlhf_ppo.data.special_tokens import spelled
from rlhf_ppo.data.template import Text, check_template, joined
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.limits import missing_token

T = TypeVar("T")
Pair = tuple[Example, Example]
LongRows = Literal["drop", "refuse", "truncate"]
SPELLED = "special tokens such as {} that a message spells: encoded as the text that they are"
PLAIN = (
    "special tokens such as {} in a plain string: read as tokens, since a plain string is the raw "
    "input of the model (in chat messages they stay text)"
)


@dataclass
class Fitted(Generic[T]):
    """The rows of one source that a model reads, and what became of the others."""

    setting: str
    limit: LengthLimit
    rows: list[T] = field(default_factory=list)
    places: list[str] = field(default_factory=list)  # of these rows
    lengths: list[int] = field(default_factory=list)  # tokens of all rows of the source
    long: list[TooLong] = field(default_factory=list)
    cut: list[TooLong] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def report(self, report: DataReport, *, refuse: bool) -> None:
        """Put everything into the data report.

        Raises:
            UserError: no row is left, or rows are too long and that is to be refused.
        """
        report.add_long(self.setting, self.long, self.limit, self.lengths, refuse=refuse)
        report.add(self.setting, SAME_TOKENS, self.same, dropped=True)
        cut = f"longer than {self.limit}: cut there (data.long_rows = truncate)"
        report.add(self.setting, cut, [row.where for row in self.cut], dropped=False)
        for reason, places in self.notes.items():
            report.add(self.setting, reason, places, dropped=False)
        if not self.rows and (self.long or self.same):
            self._raise_empty()

    def _raise_empty(self) -> None:
        if not self.long:
            raise UserError(f"{self.setting}: of all {len(self.same)} rows {SAME_TOKENS}.")
        shortest = min(row.tokens for row in self.long)
        rest = f", and of {len(self.same)} {SAME_TOKENS}" if self.same else ""
        raise UserError(
            f"{self.setting}: all {len(self.long)} rows are longer than {self.limit} (the shortest "
            f"has {shortest} tokens){rest}. {self.limit.remedy(shortest)}"
        )


def fit_demonstrations(
    items: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerBase,
    limit: LengthLimit,
    setting: str,
    long_rows: LongRows,
) -> Fitted[Example]:
    """Encode demonstrations and leave out, or cut, those that are too long.

    Args:
        items: prompts and completions.
        tokenizer: of the model that learns them.
        limit: tokens of a row.
        setting: that names the data.
        long_rows: `truncate` cuts the end of the completion.

    Raises:
        UserError: the template fails, or a row holds a token that the model has no embedding for.
    """
    fitted = Fitted[Example](setting, limit)
    check_template(tokenizer, [item.prompt for item in items], setting)
    for item in items:
        with place_named(setting, item.where):
            example = encode_answer(tokenizer, item.prompt, item.completion)
        _count(
            fitted,
            item.where,
            len(example.ids),
            [example],
            [joined(*item.conversations[0])],
            tokenizer,
        )
        cut = None if long_rows != "truncate" else cut_answer(example, limit.tokens)
        _take(fitted, item.where, len(example.ids), example, cut)
        tick()
    _check_vocabulary(fitted, tokenizer, lambda row: [row.ids])
    return fitted


def fit_pairs(
    items: Sequence[Preference],
    tokenizer: PreTrainedTokenizerBase,
    limit: LengthLimit,
    setting: str,
    long_rows: LongRows,
) -> Fitted[Pair]:
    """Encode preferences; of a pair the longer side counts.

    Args:
        items: prompts with two completions.
        tokenizer: of the reward model.
        limit: tokens of a conversation.
        setting: that names the data.
        long_rows: `truncate` cuts both sides at the same place.

    Raises:
        UserError: the template fails, or a row holds a token that the model has no embedding for.
    """
    fitted = Fitted[Pair](setting, limit)
    check_template(tokenizer, [item.prompt for item in items], setting)
    for item in items:
        answers = (item.chosen, item.rejected)
        with place_named(setting, item.where):
            sides = [encode_side(tokenizer, item.prompt, text) for text in answers]
        pair, texts = (sides[0], sides[1]), [joined(*one) for one in item.conversations]
        length = max(len(side.ids) for side in pair)
        _count(fitted, item.where, length, pair, texts, tokenizer)
        cut = None
        if long_rows == "truncate" and length > limit.tokens:
            cut = cut_pair(tokenizer, item.prompt, pair, limit.tokens)
        shown = cut if length > limit.tokens and cut is not None else pair
        if shown[0].ids == shown[1].ids:
            fitted.same.append(item.where)
        else:
            _take(fitted, item.where, length, pair, cut)
        tick()
    _check_vocabulary(fitted, tokenizer, lambda row: [side.ids for side in row])
    return fitted


def _take(fitted: Fitted[T], where: str, length: int, row: T, cut: T | None) -> None:
    """Keep a row, what is left of it, or its length."""
    if length <= fitted.limit.tokens:
        fitted.rows.append(row)
    elif cut is not None:
        fitted.rows.append(cut)
        fitted.cut.append(TooLong(where, length))
    else:
        fitted.long.append(TooLong(where, length))
        return
    fitted.places.append(where)


def _count(
    fitted: Fitted[T],
    where: str,
    length: int,
    examples: Sequence[Example],
    texts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """What is to be said of a row, whether it is kept or not."""
    fitted.lengths.append(length)
    notes = [note for example in examples for note in example.notes]
    notes += [note for text in texts for note in notes_of(tokenizer, text)]
    trained = fitted.limit.limits.trained
    if trained is not None and trained < length <= fitted.limit.tokens:
        name = fitted.limit.limits.setting
        notes.append(
            f"longer than the {trained} positions that {name} was made for: read all the same"
        )
    for note in dict.fromkeys(notes):
        fitted.notes[note].append(where)


@contextmanager
def place_named(setting: str, where: str) -> Iterator[None]:
    """Name setting and row in what goes wrong inside.

    Raises:
        UserError: one was raised.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{setting}: {where}: {error}") from error


def notes_of(tokenizer: PreTrainedTokenizerBase, text: Text) -> list[str]:
    """What is to be said of the special tokens that a text spells."""
    contents = [text] if isinstance(text, str) else [turn["content"] for turn in text]
    found = [token for content in contents for token in spelled(tokenizer, content)]
    if not found:
        return []
    return [(PLAIN if isinstance(text, str) else SPELLED).format(found[0])]


def _check_vocabulary(
    fitted: Fitted[T],
    tokenizer: PreTrainedTokenizerBase,
    sequences: Callable[[T], list[list[int]]],
) -> None:
    for where, row in zip(fitted.places, fitted.rows, strict=True):
        found = missing_token(fitted.limit.limits, tokenizer, sequences(row))
        if found is not None:
            raise UserError(f"{fitted.setting}: {where} {found[1]}.")
