"""The same conversation as a web page on this machine: a column a model. Needs NiceGUI.

NiceGUI because it serves all of its scripts and fonts itself: the page asks no other host for
anything, and nothing is reported to anyone.
"""

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from nicegui import run, ui

from rlhf_ppo.chat.conversation import BrokenOffError, Conversation
from rlhf_ppo.chat.models import ChatModel, Settings
from rlhf_ppo.console import say
from rlhf_ppo.errors import UserError

HOST = "127.0.0.1"


class Page:
    """What one visitor sees: own histories, own settings; the models are shared."""

    def __init__(self, models: Sequence[ChatModel], settings: Settings, lock: Any) -> None:
        """Build the page.

        Args:
            models: one column each.
            settings: to begin with.
            lock: held while a model answers; the noise is drawn from one global generator.
        """
        self.conversations = [Conversation(model) for model in models]
        self.settings, self.lock = settings, lock
        self.stop = threading.Event()
        self._build()

    def _build(self) -> None:
        with ui.row().classes("w-full items-end"):
            self.system = ui.input("System prompt", value=self.settings.system or "")
            self.system.classes("grow")
            self.temperature = ui.number(
                "Temperature (0: greedy)", value=self.settings.temperature, min=0, step=0.1
            )
            self.seed = ui.number("Seed", value=self.settings.seed, min=0, precision=0)
            ui.button("New conversation", on_click=self.reset).props("outline")
        self.columns: list[ui.column] = []
        with ui.row(wrap=False).classes("w-full grow"):
            for conversation in self.conversations:
                with ui.column().classes("flex-1 min-w-0"):
                    ui.label(conversation.model.name).classes("text-lg font-bold")
                    self.columns.append(ui.column().classes("w-full"))
        with ui.row().classes("w-full items-end"):
            self.said = ui.input("Say something").classes("grow")
            self.said.on("keydown.enter", self.send)
            self.send_button = ui.button("Send", on_click=self.send)
            self.stop_button = ui.button("Stop", on_click=self.stop.set).props("outline")
            self.stop_button.disable()

    def reset(self) -> None:
        """Forget what was said."""
        self.stop.set()
        for conversation, column in zip(self.conversations, self.columns, strict=True):
            conversation.reset()
            column.clear()

    async def send(self) -> None:
        """Show what was said in every column, then each model's answer as it comes."""
        said = str(self.said.value or "").strip()
        if not said or not self.send_button.enabled:
            return
        self.said.value = ""
        settings = replace(
            self.settings,
            temperature=max(0.0, float(self.temperature.value or 0)),
            seed=max(0, int(self.seed.value or 0)),
            system=str(self.system.value).strip() or None,
        )
        self.stop.clear()
        self.send_button.disable()
        self.stop_button.enable()
        labels = [
            self._bubble(column, conversation.model.name, said)
            for column, conversation in zip(self.columns, self.conversations, strict=True)
        ]
        try:
            for conversation, label in zip(self.conversations, labels, strict=True):
                await run.io_bound(self._answer, conversation, said, settings, label)
        finally:
            self.send_button.enable()
            self.stop_button.disable()

    def _bubble(self, column: ui.column, name: str, said: str) -> ui.label:
        """The words of the person, and an empty answer below them."""
        with column:
            ui.chat_message(said, name="you", sent=True).classes("w-full")
            with ui.chat_message(name=name).classes("w-full answer"):
                return ui.label("").style("white-space: pre-wrap")

    def _answer(
        self, conversation: Conversation, said: str, settings: Settings, label: ui.label
    ) -> None:
        def tell(piece: str) -> None:
            if self.stop.is_set():
                raise BrokenOffError
            label.text += piece

        with self.lock:
            try:
                conversation.answer(said, settings, tell)
            except BrokenOffError:
                label.text += " (stopped)"
            except UserError as error:
                label.text += str(error)


def serve(models: Sequence[ChatModel], settings: Settings, port: int) -> None:
    """Serve the page on this machine alone, until interrupted.

    Args:
        models: one column each.
        settings: to begin with.
        port: of 127.0.0.1.

    Raises:
        UserError: something else uses the port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: {error}. Choose another one.") from error
    lock = threading.Lock()
    say(f"chat on http://{HOST}:{port}/ (Ctrl-C ends)")
    with suppress(KeyboardInterrupt):
        ui.run(
            lambda: _page(models, settings, lock),
            host=HOST,
            port=port,
            title="rlhf_ppo chat",
            reload=False,
            show=False,
            show_welcome_message=False,
        )


def _page(models: Sequence[ChatModel], settings: Settings, lock: Any) -> None:
    Page(models, settings, lock)
