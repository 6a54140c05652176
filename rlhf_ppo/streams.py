"""Standard output and error that never end a run: unknown letters, a reader that has gone."""

import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Embeddings, overrides and isolates: they turn what is printed after a text as well.
_DIRECTIONS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def visible(text: str) -> str:
    r"""A text that moves no cursor and changes no colour, of letters that UTF-8 can write.

    Control characters and escape sequences are spelled out (`\x1b[31m`), and so are the marks that
    turn the direction of writing; letters written from right to left stay as they are. Half of a
    surrogate pair becomes U+FFFD.
    """
    if text.isprintable() or all(letter.isprintable() or letter in "\n\t" for letter in text):
        return text  # by far the most: not printable are the categories Cc, Cf, Cs and others
    return "".join(map(_visible_letter, text.replace("\r\n", "\n")))


def _visible_letter(letter: str) -> str:
    code, kind = ord(letter), unicodedata.category(letter)
    if letter in "\n\t":
        return letter
    if kind == "Cs":
        return "\N{REPLACEMENT CHARACTER}"
    if kind == "Cc":
        return f"\\x{code:02x}"
    if code in _DIRECTIONS or kind in ("Zl", "Zp"):
        return f"\\u{code:04x}"
    return letter


class TolerantStream:
    """A text stream that writes `?` for what its encoding lacks, and survives its reader.

    When nobody reads any more (`| head`, a closed terminal, a full disk), what is written from then
    on is lost: the numbers of a run are in its folder.
    """

    lost: str | None = None  # why nobody reads any more

    def __init__(self, stream: Any) -> None:
        """Wrap a stream; all that is not below is the stream's own."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            shown = text.encode(encoding, "replace").decode(encoding, "replace")
            self._try(lambda: self._stream.write(shown))
        except (OSError, ValueError) as error:  # ValueError: the file is closed
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        self._try(self._stream.flush)

    def _try(self, action: Any) -> None:
        try:
            action()
        except (OSError, ValueError) as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """Send the rest to nowhere, also what the interpreter flushes at its end."""
        if self.lost is not None:
            return
        self.lost = getattr(error, "strerror", None) or str(error)
        try:
            number = self._stream.fileno()
        except (OSError, ValueError, AttributeError):
            number = None
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if number is None:
            self._stream = os.fdopen(nowhere, "w")
        else:
            os.dup2(nowhere, number)
            os.close(nowhere)


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """Put tolerant streams in place of standard output and error, and their own back at the end."""
    before = sys.stdout, sys.stderr
    _occupy_standard_files()
    # None: closed before the program began.
    sys.stdout, sys.stderr = (
        stream if stream is None or isinstance(stream, TolerantStream) else TolerantStream(stream)
        for stream in before
    )
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def _occupy_standard_files() -> None:
    """A closed standard file's number would go to the next file: a model with messages inside."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
