"""The exceptions a user is meant to see."""

from collections.abc import Callable, Sequence
from typing import Any


class UserError(Exception):
    """Bad input, with a message that says what, where, which value and what to do.

    The scripts print it without a traceback and exit with code 2. Anything else that is raised
    is a bug of ours and keeps its traceback.
    """


class GuardError(Exception):
    """A run ended before its time by `guard`: its policy is saved, and the message says why.

    The scripts print it without a traceback and exit with code 3.
    """


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
