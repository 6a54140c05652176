"""What a person sees while a run goes on: lines, samples, findings, bars with the time left.

Everything that is printed goes through here or through `streams.py`, so that nothing that is shown
can end a run.
"""

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock, Timer
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

from rlhf_ppo.diagnostics import Finding
from rlhf_ppo.streams import TolerantStream, visible

NARROW = 20  # columns; a terminal with fewer breaks lines itself
LINE_SECONDS = 10  # between two lines of a bar at first; later a twentieth of the time spent
SHORT_SECONDS = 1  # what takes less is not worth a line
WARM_STEPS = 5  # after which the time of the stages that follow is estimated
SAMPLE_LETTERS = 300  # of a prompt's end


class _SafeConsole(Console):
    """A console that spells out control characters wherever they stand: in a text, in a table."""

    def __init__(self, **words: Any) -> None:
        """As Rich's, but COLUMNS=0, which would hide everything, is not taken at its word."""
        super().__init__(**words)
        if self.width < 1:
            self.width = 80

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Segments of a renderable; only the console's own carry control codes."""
        for segment in super().render(renderable, options):
            if segment.control is not None or segment.text.isprintable():
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)


console = _SafeConsole(highlight=False, soft_wrap=True)


def first_process() -> bool:
    """Whether this process is the one that prints, before there is a process group to ask."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """Print lines; no markup, so that brackets in a message stay; a terminal gets whole words."""
    console.print(Text(_fitted(message, console.is_terminal)))


def complain(message: str) -> None:
    """Print on standard error."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    print(_fitted(message, terminal), file=sys.stderr, flush=True)


def begin(doing: str) -> None:
    """The first line of a command, printed before libraries that take seconds are imported."""
    if first_process():
        say(f"{doing} ...")


def report_lost_output() -> None:
    """Tell on standard error, once, that a run goes on although nobody reads its output."""
    out = sys.stdout
    if isinstance(out, TolerantStream) and out.lost is not None and not _lost_told:
        _lost_told.append(out.lost)
        complain(f"standard output cannot be written any more ({out.lost}); the run goes on.")


_lost_told: list[str] = []


def _fitted(message: str, terminal: bool) -> str:
    """Lines that a terminal need not break within words."""
    lines = visible(message).split("\n")
    if terminal:
        lines = [row for line in lines for row in _wrapped(line, console.width)]
    return "\n".join(lines)


def _wrapped(line: str, width: int) -> list[str]:
    """A line broken between words; rows after the first stand two columns further in."""
    if width < NARROW or cell_len(line) <= width:
        return [line]
    further = " " * min(len(line) - len(line.lstrip()) + 2, width // 2)
    rows = [""]
    for word in re.findall(r"\s*\S+", line):
        if rows[-1].strip() and cell_len(rows[-1] + word) > width:
            rows.append(further + word.lstrip())
        else:
            rows[-1] += word
    return rows


def dialogue(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """A prompt as a person reads it: several messages with their roles, one below the other."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def sample_text(prompt: str | Sequence[Mapping[str, str]], response: str, score: float) -> str:
    """A response with the end of its prompt, as lines for the terminal."""
    shown = dialogue(prompt)
    if len(shown) > SAMPLE_LETTERS:
        end = shown[-SAMPLE_LETTERS:]
        first, space, rest = end.partition(" ")
        shown = f"... {rest if space and len(first) < SAMPLE_LETTERS // 4 else end}"
    asked = shown.replace("\n", "\n         | ")
    answered = response.replace("\n", "\n           ")
    return f"  sample | {asked}\n         > {answered}   (score {score:.2f})"


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
    message = f"  {finding.severity} {finding.name} at step {finding.step}: {finding.message}"
    line = Text(_fitted(message, console.is_terminal))
    line.stylize(style, 2, 2 + len(finding.severity))
    console.print(line)


def show_findings(findings: Sequence[Finding]) -> None:
    """Everything that looked wrong in a run, with what to try."""
    if not findings:
        say("\nhealth: nothing looked wrong (docs/debugging.md says what was looked for)")
        return
    say(f"\nhealth: {len(findings)} finding(s); docs/debugging.md says more about each")
    for finding in findings:
        show_finding(finding)
        say(f"    try: {finding.remedy}")


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class _Ahead:
    """What is known of the time that the stages after the present one take, at least."""

    share = 0.0  # of the time of the present one
    seconds = 0.0


_ahead = _Ahead()
_open: "list[Stepper | None]" = []  # innermost last; None: one that is not shown
_lock = RLock()  # a judge's threads count too


def expect_after(*, share: float = 0.0, seconds: float = 0.0) -> None:
    """Say how long the stages after this one take at least, for the time left of the whole run.

    Args:
        share: of what this stage takes.
        seconds: on top.
    """
    _ahead.share, _ahead.seconds = share, seconds


class Stepper:
    """Progress over a number of steps.

    One line after the first step and the last, and after others so often that a long run does not
    drown in them; in a terminal also a bar with the time left and a line of numbers below it.
    Silent where `shown` is False (all processes but the main one).
    """

    counts_ticks = False

    def __init__(
        self, title: str, total: int | None, *, shown: bool, every_step: bool = False
    ) -> None:
        """Prepare; use as a context manager.

        Args:
            title: what goes on.
            total: steps; None: not known.
            shown: whether anything is printed.
            every_step: without a terminal, one line a step.
        """
        self.title, self.total, self.shown, self.every_step = title, total, shown, every_step
        self.done = self.first = 0.0
        self.started = self.line_at = time.monotonic()
        self.live: Live | None = None
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self.task = TaskID(0)

    def __enter__(self) -> "Stepper":
        """Show the bar, if there is a terminal."""
        _open.append(self if self.shown else None)
        if self.shown and console.is_terminal and console.is_interactive:
            self.task = self.bar.add_task(self.title, total=self.total, count="", left="")
            self.live = Live(self.bar, console=console, transient=self.counts_ticks)
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it stands."""
        _open.pop()
        if self.live is not None:
            self.live.stop()
            self.live = None

    def start_at(self, step: int) -> None:
        """Count from a step that was reached before: the time left follows from the steps since."""
        self.done = self.first = step
        self._draw("")

    def advance(self, note: str = "", *, to: float | None = None, by: float = 1) -> None:
        """Further by some steps (or to step `to`), with the numbers of that step."""
        with _lock:
            first = self.done == self.first
            self.done = self.done + by if to is None else to
            self._draw(note)
            if self.shown and self._line_is_due(first):
                self.line_at = time.monotonic()
                say(self._line(note))
                report_lost_output()

    def _line_is_due(self, first: bool) -> bool:
        if self.every_step and self.live is None:
            return True
        now = time.monotonic()
        waited = now - self.line_at >= max(LINE_SECONDS, (now - self.started) / 20)
        return waited or (not self.counts_ticks and (first or self.done == self.total))

    def _line(self, note: str) -> str:
        seconds = duration(time.monotonic() - self.started)
        left = self._left()
        return f"{self.title} {self._count()}  {seconds}{left and ', ' + left}  {note}".rstrip()

    def _count(self) -> str:
        done = int(self.done + 1e-6)  # shares of a response add up to a whole one but for rounding
        return f"{done}" if self.total is None else f"{done}/{self.total}"

    def _left(self) -> str:
        """The time left, of this stage and of the run; nothing before anything is done."""
        made = self.done - self.first
        if self.total is None or made <= 0:
            return ""
        each = (time.monotonic() - self.started) / made
        left = each * (self.total - self.done)
        ahead = _ahead.share * each * self.total + _ahead.seconds
        # First steps are slow: they would promise too much for "at least".
        if ahead < 1 or made < WARM_STEPS or self.counts_ticks:
            return f"{duration(left)} left"
        return f"{duration(left)} left (whole run: at least {duration(left + ahead)})"

    def _draw(self, note: str) -> None:
        if self.live is not None:
            count, left = self._count(), self._left()
            self.bar.update(self.task, completed=self.done, count=count, left=left)
            self.live.update(Group(self.bar, Text(visible(f"  {note}"))) if note else self.bar)


class _Activity(Stepper):
    """What goes on between the bars of the stages; `tick` moves it."""

    counts_ticks = True


@contextmanager
def activity(doing: str, total: int | None = None) -> Iterator[None]:
    """Show what goes on, if it takes a while: a line, a bar in a terminal, at its end its seconds.

    Inside another activity or a bar, and in all processes but the first, it is silent.

    Args:
        doing: what.
        total: how many `tick` will count; None: not known.
    """
    shown = first_process() and not _open
    started = time.monotonic()
    line = Timer(SHORT_SECONDS, say, [f"{doing} ..."])
    line.daemon = True
    if shown and not (console.is_terminal and console.is_interactive):
        line.start()
    try:
        with _Activity(doing, total, shown=shown):
            yield
    finally:
        line.cancel()
    seconds = time.monotonic() - started
    if shown and (seconds >= LINE_SECONDS or (console.is_terminal and seconds >= 1)):
        say(f"{doing}: {duration(seconds)}")


def tick(count: float = 1) -> None:
    """Count something done in the activity that is shown, if there is one."""
    stepper = _open[-1] if _open else None
    if stepper is not None and stepper.counts_ticks:
        stepper.advance(by=count)
