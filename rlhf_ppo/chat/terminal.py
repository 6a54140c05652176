"""A conversation in the terminal: models side by side where it is wide enough."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from io import TextIOWrapper

from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf_ppo.chat.about import SINGLE, SINGLE_WITH_HISTORY, AboutRun
from rlhf_ppo.chat.conversation import Conversation
from rlhf_ppo.chat.models import ChatModel, Settings
from rlhf_ppo.console import console, say
from rlhf_ppo.errors import UserError
from rlhf_ppo.streams import visible

NOTHING = AboutRun()
COLUMN = 36  # characters that a column needs to be readable
HELP = """\
  /reset            forget the conversation
  /temperature X    0: the likeliest token each time
  /seed N           the same seed, the same answers
  /system TEXT      system prompt; without text: none
  /history on|off   off: each question on its own
  /help             this
  /quit             end (also Ctrl-D)
Ctrl-C breaks off an answer."""


class Chat:
    """The conversations with all models, and the settings they share."""

    def __init__(
        self, models: Sequence[ChatModel], settings: Settings, about: AboutRun = NOTHING
    ) -> None:
        """Begin.

        Args:
            models: one column each.
            settings: to begin with.
            about: the run that the models come from.
        """
        self.conversations = [Conversation(model) for model in models]
        self.settings, self.about = settings, about

    def talk(self) -> None:
        """Until /quit or the end of input. Lines from a pipe are prompts, each on its own."""
        typed = sys.stdin.isatty()
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # bytes that are no text end no conversation
        if typed:
            import readline  # noqa: F401  # arrow keys and earlier lines in input()

            self._introduce()
        while True:
            try:
                line = input("\n> " if typed else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                say("\n/quit or Ctrl-D ends")
                continue
            if line == "/quit":
                return
            if line.startswith("/"):
                say(self._obey(line))
            elif line:
                if not typed:
                    self._reset()
                    say(f"\n> {line}")
                self._ask(line)

    def _introduce(self) -> None:
        for conversation in self.conversations:
            model = conversation.model
            form = "" if model.chats else "; no chat template, so it goes on with each line alone"
            say(f"  {model.name}: {model.path}{form}")
        say(f"  {_shown(self.settings)}; /help lists the commands")
        if self.about.single_turn:
            say(f"  {SINGLE} /history on keeps the history.")
        if self.about.examples:
            say("  held-out prompts of the run, to begin with:")
            for question in self.about.examples:
                say(f"    {question}")

    def _obey(self, line: str) -> str:
        """Follow a command; returns what to say about it."""
        command, _, value = line.partition(" ")
        value = value.strip()
        try:
            match command:
                case "/reset":
                    self._reset()
                    return "forgotten"
                case "/temperature":
                    self.settings = replace(self.settings, temperature=read_temperature(value))
                case "/seed":
                    self.settings = replace(self.settings, seed=read_seed(value))
                case "/system":
                    self.settings = replace(self.settings, system=value or None)
                case "/history":
                    if value not in ("on", "off"):
                        return f"/history {value}: say on or off."
                    self.settings = replace(self.settings, history=value == "on")
                    if self.settings.history and self.about.single_turn:
                        return SINGLE_WITH_HISTORY
                case "/help":
                    return HELP
                case _:
                    return f"{command} is no command.\n{HELP}"
        except UserError as error:
            return str(error)
        return _shown(self.settings)

    def _reset(self) -> None:
        for conversation in self.conversations:
            conversation.reset()

    def _ask(self, line: str) -> None:
        """Let every model answer, one after the other; Ctrl-C ends the answers, not the chat."""
        wide = console.width >= COLUMN * len(self.conversations)
        try:
            if console.is_terminal and len(self.conversations) > 1 and wide:
                self._in_columns(line)
            else:
                self._below_one_another(line)
        except KeyboardInterrupt:
            say("\n(broken off)")

    def _below_one_another(self, line: str) -> None:
        for conversation in self.conversations:
            console.print(Text(f"{conversation.model.name}: ", style="bold"), end="")
            try:
                conversation.answer(line, self.settings, _print_piece)
                say("")
            except UserError as error:
                say(str(error))

    def _in_columns(self, line: str) -> None:
        answers = ["" for _ in self.conversations]
        # What is longer than the screen is cut while it grows and printed whole at the end.
        live = Live(self._table(answers), console=console, transient=True, refresh_per_second=12)
        try:
            with live:
                for place, conversation in enumerate(self.conversations):

                    def tell(piece: str, place: int = place) -> None:
                        answers[place] += piece
                        live.update(self._table(answers))

                    try:
                        conversation.answer(line, self.settings, tell)
                    except UserError as error:
                        tell(str(error))
        finally:
            console.print(self._table(answers))

    def _table(self, answers: Sequence[str]) -> Table:
        table = Table(expand=True, show_edge=False)
        for conversation in self.conversations:
            table.add_column(Text(conversation.model.name), ratio=1, overflow="fold")
        table.add_row(*(Text(visible(answer)) for answer in answers))
        return table


def read_temperature(text: str) -> float:
    """A temperature as a person writes it.

    Raises:
        UserError: not a number, or below 0.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"temperature: {text!r} is not a number of 0 or more (0: greedy).")
    return value


def read_seed(text: str) -> int:
    """A seed as a person writes it.

    Raises:
        UserError: not a whole number, or below 0.
    """
    if not text.isdecimal():
        raise UserError(f"seed: {text!r} is not a whole number of 0 or more.")
    return int(text)


def _print_piece(piece: str) -> None:
    console.file.write(visible(piece))
    console.file.flush()


def _shown(settings: Settings) -> str:
    drawn = f"temperature {settings.temperature:g}" if settings.temperature else "greedy"
    system = f"system prompt {settings.system!r}" if settings.system else "no system prompt"
    alone = "" if settings.history else ", each question on its own"
    return f"{drawn}, seed {settings.seed}, {system}{alone}"
