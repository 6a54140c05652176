"""What a person sees while a run goes on: a bar in a terminal, one line a step without one."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print a line; no markup, so that brackets in a message stay."""
    console.print(Text(message))


def quieten_libraries() -> None:
    """Keep the bars and notices of Transformers and Datasets out of ours; errors still show."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


class Stepper:
    """Progress over a known number of steps.

    In a terminal a bar with the time left; otherwise one line every `line_every` steps. Silent
    where `shown` is False (all processes but the main one).
    """

    def __init__(self, title: str, total: int, *, shown: bool, line_every: int = 1) -> None:
        """Prepare; use as a context manager."""
        self.title, self.total, self.line_every = title, total, line_every
        self.shown = shown
        self.done = 0
        self.started = time.monotonic()
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def __enter__(self) -> "Stepper":
        """Show the bar, if there is a terminal."""
        if self.shown and console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
            )
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total, note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()

    def advance(self, note: str = "", *, to: int | None = None) -> None:
        """One step further (or to step `to`), with the numbers of that step."""
        self.done = self.done + 1 if to is None else to
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, note=note)
        elif self.shown and (self.done % self.line_every == 0 or self.done == self.total):
            seconds = time.monotonic() - self.started
            say(f"{self.title} {self.done}/{self.total}  {seconds:.0f} s  {note}")
