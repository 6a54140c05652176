"""The exceptions a user is meant to see, and how their messages stay short enough to read."""

import reprlib
from collections.abc import Callable, Sequence
from typing import Any

LONGEST_VALUE = 120  # characters of one shown value
LONGEST_LINE = 800  # characters of one line of a message, of which values are a small part
LONGEST_MESSAGE = 4000  # characters of a whole message


class UserError(Exception):
    """Bad input, with a message that says what, where, which value and what to do.

    The scripts print it without a traceback and exit with code 2. Anything else that is raised
    is a bug of ours and keeps its traceback. A message that is too long is shortened here.
    """

    def __init__(self, message: str) -> None:
        super().__init__(readable(message))


class GuardError(Exception):
    """A run ended before its time, and the message says why; its policy is saved.

    Only where the first step shows that the numbers of the policy are wrong, nothing is saved.

    The scripts print it without a traceback and exit with code 3.
    """


def shown(value: Any, width: int = LONGEST_VALUE, text_width: int | None = None) -> str:
    """A value as Python would write it, in at most `width` characters, whatever it is.

    Raises nothing: a number of thousands of digits, a value nested a thousand levels deep and one
    whose `repr` fails are described.

    Args:
        value: anything.
        width: characters of the whole.
        text_width: characters of each string within it, of which both ends are kept.
    """
    excerpt = _Excerpt()
    excerpt.maxstring = excerpt.maxother = text_width or width
    text = excerpt.repr(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def readable(message: str) -> str:
    """A message whose lines and whole length a person can read; what is left out is marked.

    Both ends of a line stay: a message begins with the place and ends with the remedy. Of a long
    message the last line stays for the same reason.
    """
    lines = [_fitted(line) for line in message.split("\n")]
    if sum(len(line) + 1 for line in lines) <= LONGEST_MESSAGE:
        return "\n".join(lines)
    *body, last = lines
    room = LONGEST_MESSAGE - len(last) - 40  # characters, less the line that says what is missing
    kept: list[str] = []
    for line in body:
        room -= len(line) + 1
        if room < 0:
            break
        kept.append(line)
    return "\n".join([*kept, f"... {len(body) - len(kept)} lines left out ...", last])


class StoppedError(KeyboardInterrupt):
    """A run was ended from outside, by Ctrl-C or SIGTERM; the message says what it can go on from.

    Like its base class no `except Exception`, and so no user's function, can swallow it.
    """

    def __init__(self, message: str = "", code: int = 130) -> None:
        """`code` is the exit code: 128 and the number of the signal."""
        super().__init__(message)
        self.code = code


def problem_of(action: Callable[[], Any]) -> list[str]:
    """The message of the `UserError` that `action` raises, or nothing."""
    try:
        action()
    except UserError as error:
        return [str(error)]
    return []


def raise_all(problems: Sequence[str]) -> None:
    """Raise one `UserError` that holds all problems, if there are any.

    Raises:
        UserError: `problems` is not empty.
    """
    if problems:
        raise UserError("\n".join(problems))


class _Excerpt(reprlib.Repr):
    """Python's own excerpts of long values, for numbers of any size too."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple = 4, 8, 6, 6

    def repr_int(self, x: int, level: int) -> str:
        """Digits are counted, not written: Python refuses to write more than 4300."""
        digits = int(x.bit_length() * 0.30103) + 1
        return repr(x) if digits <= 40 else f"a whole number of about {digits} digits"


def _fitted(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    tail = 110
    return f"{line[: LONGEST_LINE - tail - 7]} [...] {line[-tail:]}"
