"""The same conversation as a web page on this machine: a card a model. Needs NiceGUI.

NiceGUI because it serves all of its scripts and fonts itself: the page asks no other host for
anything, and nothing is reported to anyone.
"""

import asyncio
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nicegui import run, ui

from rlhf_ppo.chat.about import SINGLE, SINGLE_WITH_HISTORY, AboutRun
from rlhf_ppo.chat.conversation import BrokenOffError, Conversation
from rlhf_ppo.chat.models import ChatModel, Settings
from rlhf_ppo.console import say
from rlhf_ppo.errors import UserError

HOST = "127.0.0.1"
STYLE = Path(__file__).with_name("web.css")
TO_THE_END = "window.scrollTo(0, document.body.scrollHeight)"


@dataclass(frozen=True)
class Card:
    """Where one answer is shown."""

    answer: ui.label
    facts: ui.label


class Page:
    """What one visitor sees: own histories, own settings; the models are shared."""

    def __init__(
        self,
        models: Sequence[ChatModel],
        settings: Settings,
        locks: Sequence[Any],
        about: AboutRun,
    ) -> None:
        """Build the page.

        Args:
            models: one card of each turn.
            settings: to begin with.
            locks: one a model, held while it answers.
            about: the run that the models come from.
        """
        self.conversations = [Conversation(model) for model in models]
        self.settings, self.locks, self.about = settings, locks, about
        self.stop = threading.Event()
        ui.dark_mode(None)  # as the system has it
        ui.add_css(STYLE.read_text(encoding="utf-8"))
        self._build_top()
        self.turns = ui.element("div").classes("turns")
        self._build_composer()
        self._show_hint()

    def _build_top(self) -> None:
        names = " and ".join(conversation.model.name for conversation in self.conversations)
        with ui.element("div").classes("top"):
            with ui.row().classes("w-full items-center justify-between"):
                ui.label(f"Talking to {names}").classes("title")
                ui.button("New conversation", on_click=self.reset).props("outline no-caps")
            with ui.expansion("Settings").classes("w-full settings"):
                with ui.row().classes("w-full items-end"):
                    self.temperature = ui.number(
                        "Temperature (0: greedy)", value=self.settings.temperature, min=0, step=0.1
                    )
                    self.seed = ui.number("Seed", value=self.settings.seed, min=0, precision=0)
                self.system = ui.textarea("System prompt", value=self.settings.system or "")
                self.system.props("autogrow").classes("w-full")
            self.history = ui.switch(
                "Keep the history", value=self.settings.history, on_change=self._show_hint
            )
            self.hint = ui.label().classes("hint")

    def _build_composer(self) -> None:
        with ui.footer().classes("composer"), ui.element("div").classes("inner"):
            with ui.row().classes("w-full examples"):
                for question in self.about.examples:
                    button = ui.button(question, on_click=lambda _, q=question: self._ask(q))
                    button.props("outline rounded no-caps dense").classes("example")
            with ui.row(wrap=False).classes("w-full items-center"):
                self.said = ui.input("Say something").props("outlined dense").classes("grow")
                self.said.on("keydown.enter", self.send)
                self.send_button = ui.button("Send", on_click=self.send).props("no-caps")
                self.stop_button = ui.button("Stop", on_click=self.stop.set)
                self.stop_button.props("outline no-caps")
                self.stop_button.disable()

    def _show_hint(self) -> None:
        """What a second turn is worth, where the run has never seen one."""
        self.hint.set_text(SINGLE_WITH_HISTORY if self.history.value else SINGLE)
        self.hint.set_visibility(self.about.single_turn)

    def reset(self) -> None:
        """Forget what was said."""
        self.stop.set()
        for conversation in self.conversations:
            conversation.reset()
        self.turns.clear()

    async def _ask(self, question: str) -> None:
        self.said.value = question
        await self.send()

    async def send(self) -> None:
        """Show what was said, then all models' answers as they come, at the same time."""
        said = str(self.said.value or "").strip()
        if not said or not self.send_button.enabled:
            return
        self.said.value = ""
        settings = replace(
            self.settings,
            temperature=max(0.0, float(self.temperature.value or 0)),
            seed=max(0, int(self.seed.value or 0)),
            system=str(self.system.value).strip() or None,
            history=bool(self.history.value),
        )
        self.stop.clear()
        self.send_button.disable()
        self.stop_button.enable()
        cards = self._turn(said)
        ui.run_javascript(TO_THE_END)
        try:
            await asyncio.gather(
                *(
                    run.io_bound(self._answer, place, said, settings, card)
                    for place, card in enumerate(cards)
                )
            )
        finally:
            self.send_button.enable()
            self.stop_button.disable()
            ui.run_javascript(TO_THE_END)

    def _turn(self, said: str) -> list[Card]:
        """The words of the person, and an empty answer of each model below them."""
        cards = []
        with self.turns:
            ui.label(said).classes("you").props("dir=auto")
            with ui.element("div").classes("answers"):
                for place, conversation in enumerate(self.conversations):
                    with ui.element("div").classes(f"answer model-{place % 6}"):
                        ui.label(conversation.model.name).classes("who")
                        answer = ui.label("").classes("words").props("dir=auto")
                        cards.append(Card(answer, ui.label("").classes("facts")))
        return cards

    def _answer(self, place: int, said: str, settings: Settings, card: Card) -> None:
        conversation, pieces = self.conversations[place], [""]

        def tell(piece: str) -> None:
            if self.stop.is_set():
                raise BrokenOffError
            pieces[0] += piece
            card.answer.text = pieces[0].strip()

        with self.locks[place]:
            try:
                answer = conversation.answer(said, settings, tell)
                score = self.about.score(conversation.asked(settings.system), answer)
                card.facts.text = "" if score is None else f"score {score:.2f}"
            except BrokenOffError:
                card.facts.text = "stopped"
            except UserError as error:
                card.facts.text = str(error)


def serve(models: Sequence[ChatModel], settings: Settings, port: int, about: AboutRun) -> None:
    """Serve the page on this machine alone, until interrupted.

    Args:
        models: one card each.
        settings: to begin with.
        port: of 127.0.0.1.
        about: the run that the models come from.

    Raises:
        UserError: something else uses the port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: {error}. Choose another one.") from error
    locks = [threading.Lock() for _ in models]
    say(f"chat on http://{HOST}:{port}/ (Ctrl-C ends)")
    with suppress(KeyboardInterrupt):
        ui.run(
            lambda: _page(models, settings, locks, about),
            host=HOST,
            port=port,
            title="rlhf_ppo chat",
            reload=False,
            show=False,
            show_welcome_message=False,
        )


def _page(
    models: Sequence[ChatModel], settings: Settings, locks: Sequence[Any], about: AboutRun
) -> None:
    Page(models, settings, locks, about)
