"""JSON by its standard: what Python's reader lets pass, or ends on, is found and named.

Python reads `NaN`, keeps the second of two equal keys, and raises other errors than its own for
numbers of thousands of digits and for deep nesting.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

DEEPEST = 100  # levels; what handles a row later calls itself once a level
MOST_DIGITS = 1000
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}\n]')


@dataclass(frozen=True)
class Unusable:
    """Stands in a value where JSON holds something that cannot be used."""

    reason: str  # goes on after "holds": the same words for the same mistake
    detail: str


class JsonError(ValueError):
    """A text that is no JSON at all."""

    def __init__(self, reason: str, line: int) -> None:
        """`line` is counted from 1 within the text."""
        super().__init__(reason)
        self.line = line


def parse_json(text: str) -> Any:
    """The value of a JSON text; in it, `Unusable` for what `fault_of` will report.

    Raises:
        JsonError: it is no JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(
            text,
            parse_constant=lambda word: Unusable("a number that JSON does not have", word),
            parse_int=_whole_number,
            parse_float=_real_number,
            object_pairs_hook=_object,
        )
    except json.JSONDecodeError as error:
        raise JsonError(error.msg, error.lineno) from error
    except RecursionError as error:
        raise JsonError(f"nested more than {DEEPEST} levels deep", _deep_line(text)) from error


def fault_of(value: Any) -> Unusable | None:
    """The first part of a value that no stage could use: see `Unusable`, and halves of characters.

    JSON can write half of a character outside the basic plane; no tokenizer or file takes it.
    """
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, Unusable):
            return item
        if isinstance(item, str) and not item.isascii():
            try:
                item.encode()
            except UnicodeEncodeError as error:
                return Unusable("half of a character", f"{item[error.start]!r} at {error.start}")
        elif isinstance(item, dict | list):
            if depth > DEEPEST:
                return Unusable(f"something nested more than {DEEPEST} levels deep", "")
            parts = [*item, *item.values()] if isinstance(item, dict) else item
            pending += [(part, depth + 1) for part in reversed(parts)]
    return None


def _whole_number(digits: str) -> int | Unusable:
    if len(digits) > MOST_DIGITS:
        return Unusable("a number that is too long", f"{len(digits)} digits")
    return int(digits)


def _real_number(digits: str) -> float | Unusable:
    number = float(digits)
    return Unusable("a number out of range", digits[:40]) if math.isinf(number) else number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Unusable:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    return Unusable("an object that names a key twice", repr(twice[:40]))


def _deep_line(text: str) -> int:
    """The line in which brackets first nest too deeply; strings are passed over."""
    line, depth = 1, 0
    for token in TOKEN.finditer(text):
        mark = token[0]
        line += mark.count("\n")
        depth += (mark in "[{") - (mark in "]}")
        if depth > DEEPEST:
            break
    return line
