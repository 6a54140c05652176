"""What a person sees while a run goes on: a bar in a terminal, one line a step without one."""

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from rlhf_ppo.diagnostics import Finding

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


def show_finding(finding: Finding) -> None:
    """Say what looks wrong, when it is first seen; the remedies come at the end of the run."""
    style = "red" if finding.severity == "problem" else "yellow"
    line = Text(f"  {finding.severity} ", style=style)
    console.print(line + Text(f"{finding.name} at step {finding.step}: {finding.message}", ""))


def show_findings(findings: Sequence[Finding]) -> None:
    """Everything that looked wrong in a run, with what to try."""
    if not findings:
        say("\nhealth: nothing looked wrong (docs/debugging.md says what was looked for)")
        return
    say(f"\nhealth: {len(findings)} finding(s); docs/debugging.md says more about each")
    for finding in findings:
        show_finding(finding)
        say(f"    try: {finding.remedy}")


class Stepper:
    """Progress over a known number of steps.

    In a terminal a bar with the time left and a line of numbers below it; otherwise one line every
    `line_every` steps. Silent where `shown` is False (all processes but the main one).
    """

    def __init__(self, title: str, total: int, *, shown: bool, line_every: int = 1) -> None:
        """Prepare; use as a context manager."""
        self.title, self.total, self.line_every = title, total, line_every
        self.shown = shown
        self.done = self.first = 0
        self.started = time.monotonic()
        self.live: Live | None = None
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = TaskID(0)

    def __enter__(self) -> "Stepper":
        """Show the bar, if there is a terminal."""
        if self.shown and console.is_terminal:
            self.task = self.bar.add_task(self.title, total=self.total)
            self.live = Live(self.bar, console=console)
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it stands."""
        if self.live is not None:
            self.live.stop()

    def start_at(self, step: int) -> None:
        """Count from a step that was reached before: the time left follows from the steps since."""
        self.done = self.first = step
        if self.live is not None:
            self.bar.reset(self.task, completed=step)

    def advance(self, note: str = "", *, to: int | None = None) -> None:
        """One step further (or to step `to`), with the numbers of that step."""
        self.done = self.done + 1 if to is None else to
        if self.live is not None:
            self.bar.update(self.task, completed=self.done)
            self.live.update(Group(self.bar, Text(f"  {note}")))
        elif self.shown and (self.done % self.line_every == 0 or self.done == self.total):
            seconds = time.monotonic() - self.started
            made = max(1, self.done - self.first)
            left = seconds / made * (self.total - self.done)
            say(
                f"{self.title} {self.done}/{self.total}  {seconds:.0f} s, {left:.0f} s left  {note}"
            )
