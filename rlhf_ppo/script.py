"""Around every script: what it prints cannot end it, and how it ends is one message and a code."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from rlhf_ppo.console import complain, first_process
from rlhf_ppo.errors import GuardError, StoppedError, UserError
from rlhf_ppo.streams import tolerant_streams


def run_script(main: Callable[[Sequence[str]], None]) -> None:
    """Call `main(arguments)`; exceptions for the user become one message on stderr and a code.

    2: bad input; 3: `guard` stopped the run, its policy is saved; 130: Ctrl-C; 143: SIGTERM.
    """
    with tolerant_streams(), _terminable():
        try:
            main(sys.argv[1:])
        except UserError as error:
            complain(f"\nerror: {error}")
            raise SystemExit(2) from None
        except GuardError as stop:
            complain(f"\nstopped: {stop}")
            raise SystemExit(3) from None
        except KeyboardInterrupt as stop:
            if first_process():
                complain("\ninterrupted." + (f" {stop}" if str(stop) else ""))
            raise SystemExit(stop.code if isinstance(stop, StoppedError) else 130) from None


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, as schedulers send it, ends a single process like Ctrl-C does.

    Where several processes share a run the signal keeps its own way: one that waits for another
    inside a library would not see an exception, and must end all the same.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not alone or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end is under way
        raise StoppedError(code=128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
