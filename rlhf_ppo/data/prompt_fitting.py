"""Prompts as policy and reward models will read them: short enough, with tokens that they know."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from transformers import PreTrainedTokenizerBase

from rlhf_ppo.data.encoding import EARLIER
from rlhf_ppo.data.fitting import LongRows, notes_of, place_named
from rlhf_ppo.data.lengths import LengthLimit
from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.data.report import DataReport, TooLong
from rlhf_ppo.data.template import (
    Message,
    Text,
    as_text,
    check_template,
    encode_conversation,
    encode_prompt,
    lost_messages,
    render,
)
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.limits import missing_token


@dataclass(frozen=True)
class Reader:
    """A model that reads prompts: the policy, or a reward model."""

    tokenizer: PreTrainedTokenizerBase
    limit: LengthLimit


@dataclass(frozen=True)
class FittedPrompts:
    """The prompts that all models can read."""

    prompts: list[Prompt]
    longest: int  # tokens of the policy


def fit_prompts(
    items: Sequence[Prompt],
    policy: Reader,
    scorers: Sequence[Reader],
    setting: str,
    long_rows: LongRows,
    report: DataReport,
) -> FittedPrompts:
    """Leave out, or cut, the prompts that are too long for the policy or for a reward model.

    Args:
        items: prompts.
        policy: who answers them; its limit leaves room for a response.
        scorers: who read them with a response.
        setting: that names the data.
        long_rows: `truncate` keeps the end: the last turns, or the last words of the last turn.
        report: is given what is left out, cut, or worth a note.

    Raises:
        UserError: the template fails, a prompt has no tokens or one without an embedding, or no
            prompt is left.
    """
    tokenizer, limit = policy.tokenizer, policy.limit
    check_template(tokenizer, [item.text for item in items], setting)
    found = _Found()
    for item in items:
        with place_named(setting, item.where):
            _fit(item, policy, long_rows, found)
    refuse = long_rows == "refuse"
    report.add_long(setting, found.long, limit, found.lengths, refuse=refuse)
    cut = f"longer than {limit}: the beginning is cut off (data.long_rows = truncate)"
    report.add(setting, cut, found.cut, dropped=False)
    for note, places in found.notes.items():
        report.add(setting, note, places, dropped=False)
    kept = found.kept
    if not kept:
        _raise_all_long(setting, found.lengths, limit)
    missing = missing_token(limit.limits, tokenizer, found.encoded)
    if missing is not None:
        raise UserError(f"{setting}: {kept[missing[0]].where} {missing[1]}.")
    sizes = {item.row: len(ids) for item, ids in zip(kept, found.encoded, strict=True)}
    for scorer in scorers:
        kept = _readable(kept, scorer, setting, long_rows, report)
    return FittedPrompts(kept, max(sizes[item.row] for item in kept))


@dataclass
class _Found:
    """What became of the prompts under the policy's tokenizer."""

    kept: list[Prompt] = field(default_factory=list)
    encoded: list[list[int]] = field(default_factory=list)  # those that are kept
    lengths: list[int] = field(default_factory=list)  # tokens of all
    long: list[TooLong] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def _fit(item: Prompt, policy: Reader, long_rows: LongRows, found: _Found) -> None:
    """Keep a prompt, its end, or its length."""
    tokenizer, most = policy.tokenizer, policy.limit.tokens
    ids = encode_prompt(tokenizer, item.text)
    if not ids:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path!r} makes no token of this prompt, so there "
            "is nothing to answer. Mend the row or the chat template."
        )
    found.lengths.append(len(ids))
    if len(ids) > most:
        shorter = cut_prompt(tokenizer, item.text, most) if long_rows == "truncate" else None
        if shorter is None:
            found.long.append(TooLong(item.where, len(ids)))
            return
        found.cut.append(item.where)
        item, ids = replace(item, text=shorter), encode_prompt(tokenizer, shorter)
    for note in _notes(tokenizer, item.text):
        found.notes[note].append(item.where)
    found.kept.append(item)
    found.encoded.append(ids)


def _raise_all_long(setting: str, lengths: Sequence[int], limit: LengthLimit) -> NoReturn:
    raise UserError(
        f"{setting}: all {len(lengths)} prompts are longer than {limit} (the shortest has "
        f"{min(lengths)} tokens). {limit.remedy(min(lengths))}"
    )


def cut_prompt(tokenizer: PreTrainedTokenizerBase, text: Text, most: int) -> Text | None:
    """The end of a prompt that has at most `most` tokens, the template's included.

    Of messages the system's stay, the oldest turns go first; of the last turn, and of a string, the
    first words go. None: not even the last word fits.
    """

    def fits(candidate: Text) -> bool:
        return len(encode_prompt(tokenizer, candidate)) <= most

    if isinstance(text, str):
        return _last_words(text, fits)
    first: list[Message] = []
    while len(first) < len(text) and text[len(first)]["role"] in ("system", "developer"):
        first.append(text[len(first)])
    turns = text[len(first) :]
    for start, turn in enumerate(turns):
        if start and turn["role"] == "user" and fits([*first, *turns[start:]]):
            return [*first, *turns[start:]]
    last = turns[-1]
    words = _last_words(last["content"], lambda end: fits([*first, last | {"content": end}]))
    return None if words is None else [*first, last | {"content": words}]


def _last_words(text: str, fits: Callable[[str], bool]) -> str | None:
    """The longest end of a text, from the beginning of a word, that fits."""
    starts = [n for n in range(1, len(text)) if text[n - 1].isspace() and not text[n].isspace()]
    low, high = 0, len(starts)  # the first start that fits is in [low, high]
    while low < high:
        middle = (low + high) // 2
        if fits(text[starts[middle] :]):
            high = middle
        else:
            low = middle + 1
    return text[starts[low] :] if low < len(starts) else None


def _readable(
    items: Sequence[Prompt],
    scorer: Reader,
    setting: str,
    long_rows: LongRows,
    report: DataReport,
) -> list[Prompt]:
    """The prompts that a reward model can read even with an empty response."""
    limit, tokenizer = scorer.limit, scorer.tokenizer
    most = limit.limits.most(limit.max_tokens)
    check_template(tokenizer, [item.text for item in items], limit.limits.setting)
    larger = limit.limits.vocabulary is not None and len(tokenizer) > limit.limits.vocabulary
    added: dict[tuple[str, ...], int] = {}
    kept, lengths, long, risky = [], [], [], []
    for item in items:
        order = tuple(turn["role"] for turn in item.text) if isinstance(item.text, list) else ()
        # A token stands for one byte at least; what the template adds is known.
        length = len(as_text(item.text).encode()) + added.get(order, most)
        if larger or length + limit.reserved > most:
            with place_named(setting, item.where):
                ids = encode_conversation(tokenizer, item.text, "")
            missing = missing_token(limit.limits, tokenizer, [ids])
            if missing is not None:
                raise UserError(f"{setting}: {item.where} {missing[1]}.")
            length = len(ids)
            added.setdefault(order, length)
        lengths.append(length)
        if length > most:
            long.append(TooLong(item.where, length))
            continue
        if length + limit.reserved > most:
            risky.append(item.where)
        kept.append(item)
    alone = replace(limit, reserved=0)
    report.add_long(setting, long, alone, lengths, refuse=long_rows == "refuse")
    reason = (
        f"a response of rollout.max_new_tokens = {limit.reserved} may be longer than {alone} "
        "leaves: it then has no score (reward.max_failed)"
    )
    report.add(setting, reason, risky, dropped=False)
    if not kept:
        _raise_all_long(setting, lengths, alone)
    return kept


def _notes(tokenizer: PreTrainedTokenizerBase, text: Text) -> list[str]:
    notes = notes_of(tokenizer, text)
    if not isinstance(text, str):
        written = render(tokenizer, text, generation_prompt=True)
        notes += [EARLIER] if lost_messages(tokenizer, text, written) else []
    return list(dict.fromkeys(notes))
