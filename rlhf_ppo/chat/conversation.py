"""One model's side of a conversation: its history, and answers that stream."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from rlhf_ppo.chat.models import ChatModel, Settings
from rlhf_ppo.data.template import Message, Text, encode_prompt
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.limits import limits_of
from rlhf_ppo.rollout.noise import generator

Tell = Callable[[str], None]


class BrokenOffError(Exception):
    """Raised by what is told of an answer, to end it there."""


class Conversation:
    """What was said to one model and by it; the model goes by its own words only."""

    def __init__(self, model: ChatModel) -> None:
        """Begin with nothing said."""
        self.model = model
        self.history: list[Message] = []

    def asked(self, system: str | None) -> Text:
        """What the last answer answered: all messages before it, or the words alone."""
        if not self.model.chats:
            return self.history[-2]["content"]
        first: list[Message] = [{"role": "system", "content": system}] if system else []
        return [*first, *self.history[:-1]]

    def reset(self) -> None:
        """Forget what was said."""
        self.history = []

    @torch.no_grad()
    def answer(self, said: str, settings: Settings, tell: Tell) -> str:
        """Generate the answer, a piece of text at a time.

        An answer that is broken off (Ctrl-C, `BrokenOffError`) stays in the history as far as it
        came; one that had not begun leaves none.

        Args:
            said: by the person.
            settings: temperature, seed, system prompt, length.
            tell: is given each piece; may raise `BrokenOffError`.

        Raises:
            UserError: no room for an answer, or a template that refuses the messages.
        """
        if not settings.history:
            self.reset()
        ids = self._encode(said, settings.system)
        streamer = Pieces(self.model.tokenizer, tell)
        turn = len(self.history) // 2
        sampling: dict[str, Any] = {"do_sample": False}
        if settings.temperature > 0:
            # The same noise for every model, and other noise for each turn and question.
            noise = generator(settings.seed, "chat", turn, said)
            drawn = LogitsProcessorList([Drawn(noise, settings.temperature)])
            sampling["logits_processor"] = drawn
        inputs = torch.tensor([ids], device=self.model.lm.device)
        try:
            self.model.lm.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=self._room(len(ids), settings.max_new_tokens),
                streamer=streamer,
                **sampling,
            )
        except (KeyboardInterrupt, BrokenOffError):
            if streamer.text:
                self._remember(said, streamer.text)
            raise
        self._remember(said, streamer.text)
        return streamer.text

    def _encode(self, said: str, system: str | None) -> list[int]:
        """Token ids of all that was said; a model without a template gets the words alone."""
        text: Text = said
        if self.model.chats:
            first: list[Message] = [{"role": "system", "content": system}] if system else []
            text = [*first, *self.history, {"role": "user", "content": said}]
        ids = encode_prompt(self.model.tokenizer, text, typed=True)
        unknown = limits_of(self.model.lm.config, self.model.name).unknown(ids)
        if unknown is not None:
            token = self.model.tokenizer.convert_ids_to_tokens(unknown)
            raise UserError(
                f"{self.model.name} has no embedding for the token {token!r}: its tokenizer is "
                "larger than the model. Leave that out, or resize the model."
            )
        return ids

    def _room(self, used: int, wanted: int) -> int:
        positions = self.model.positions
        if positions is not None and used >= positions:
            raise UserError(
                f"{self.model.name} knows {positions} tokens, and the conversation has {used}. "
                "Begin anew with /reset."
            )
        return wanted if positions is None else min(wanted, positions - used)

    def _remember(self, said: str, answer: str) -> None:
        self.history += [
            {"role": "user", "content": said},
            {"role": "assistant", "content": answer},
        ]


class Drawn(LogitsProcessor):
    """Leaves one token of each step: drawn at a temperature from the noise of a generator.

    `generate` draws from the one generator of the process, so that two models which answer at the
    same time would disturb one another's noise.
    """

    def __init__(self, noise: torch.Generator, temperature: float) -> None:
        self.noise, self.temperature = noise, temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (1, C): 0 for the drawn token, minus infinity for all others."""
        probabilities = torch.softmax(scores.double() / self.temperature, dim=-1)
        reached = probabilities.cumsum(dim=-1)
        at = torch.rand(1, generator=self.noise, dtype=torch.float64).to(scores.device)
        drawn = torch.searchsorted(reached, (at * reached[:, -1:]), right=True)
        # Rounding may leave the last step of the sum to a token of probability 0.
        last = (probabilities > 0).long().cumsum(dim=-1).argmax(dim=-1, keepdim=True)
        found = torch.full_like(scores, float("-inf"))
        return found.scatter_(1, torch.minimum(drawn, last), 0.0)


class Pieces(BaseStreamer):
    """Gives `generate`'s tokens on as text, each as soon as its letters are whole.

    Transformers' own `TextStreamer` waits for a space, which some languages never write.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tell: Tell) -> None:
        self.tokenizer, self.tell = tokenizer, tell
        self.ids: list[int] | None = None  # None: the prompt is still to come
        self.text = ""

    def put(self, value: torch.Tensor) -> None:
        """The prompt (1, L) at first, then a token (1,) at a time."""
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        text = self._decoded()
        # A letter of several bytes shows as this sign until its last byte is there.
        if not text.endswith("\ufffd"):
            self._pass_on(text)

    def end(self) -> None:
        """What was held back."""
        self._pass_on(self._decoded())

    def _decoded(self) -> str:
        return str(self.tokenizer.decode(self.ids or [], skip_special_tokens=True))

    def _pass_on(self, text: str) -> None:
        piece, self.text = text[len(self.text) :], text
        if piece:
            self.tell(piece)
