"""The one exception a user is meant to see."""


class UserError(Exception):
    """Bad input, with a message that says what, where, which value and what to do.

    The scripts print it without a traceback and exit with code 2. Anything else that is raised
    is a bug of ours and keeps its traceback.
    """
