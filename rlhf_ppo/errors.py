"""The exceptions a user is meant to see."""

from collections.abc import Callable, Sequence
from typing import Any


class UserError(Exception):
    """Bad input, with a message that says what, where, which value and what to do.

    The scripts print it without a traceback and exit with code 2. Anything else that is raised
    is a bug of ours and keeps its traceback.
    """


class GuardError(Exception):
    """A run ended before its time, and the message says why; its policy is saved.

    Only where the first step shows that the numbers of the policy are wrong, nothing is saved.

    The scripts print it without a traceback and exit with code 3.
    """


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
