"""What a response is worth: a sequence-classification model, pooled as its own forward pools."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_ppo.config import ModelSource
from rlhf_ppo.console import tick
from rlhf_ppo.data.lengths import LengthLimit
from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.data.responses import Response, sampled_conversation
from rlhf_ppo.data.template import Text, check_template, encode_conversation, frame_of
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.forward import micro_batches
from rlhf_ppo.models.limits import limits_of
from rlhf_ppo.models.packing import enable_packing, run_packed, takes_packed
from rlhf_ppo.models.trial import as_evaluated, first_line
from rlhf_ppo.rewards.judgement import Missing, Score, as_score

Way = Literal["packed", "padded", "alone"]


class RewardModel:
    """Scores prompt and response as its own tokenizer and chat template write them.

    A response of a policy with the same tokenizer and template is read as the very tokens that
    were sampled, with the end of its turn: decoded and encoded again they could be others. For any
    other policy the text is rendered by the reward model's own template.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        source: ModelSource,
        setting: str,
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Find the output that is the score, and pack the model's rows if it can.

        Args:
            model: without dropout; it may stand on a base that another role trains.
            tokenizer: the model's own.
            source: settings.
            setting: for messages.
            within: makes the context that it is asked in: its adapter on, its weights here.

        Raises:
            UserError: several outputs and no label, or a label that is not there.
        """
        self.model = model
        self.within = within
        self.tokenizer = tokenizer
        self.source, self.setting = source, setting
        self.output = output_of(model.config, source, setting)
        self.limits = limits_of(model.config, setting)
        # The model's, not the tokenizer's: its pooling looks for the last token that is not this.
        # None: it pools at the last token of all, and a token that no row holds is put behind it.
        self.pad: int | None = self.model.config.pad_token_id
        self._vocabularies: dict[int, bool] = {}
        with self.within():
            enable_packing(model, model.base_model)
            self.ways = self._try_ways()

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """One entry a response; see `score_texts`."""
        return self.score_texts([prompt.text for prompt in prompts], responses)

    def score_texts(self, prompts: Sequence[Text], responses: Sequence[Text]) -> list[Score]:
        """One entry a response, missing where it is too long or the score is not finite.

        Raises:
            UserError: the chat template refuses the messages.
        """
        check_template(self.tokenizer, prompts, f"{self.setting}.path")
        pairs = zip(prompts, responses, strict=True)
        return self.score_ids([self.encode(prompt, response) for prompt, response in pairs])

    def encode(self, prompt: Text, response: Text) -> list[int]:
        """The tokens of a conversation that the model reads.

        Raises:
            UserError: the chat template refuses the messages.
        """
        if not isinstance(response, Response):
            return encode_conversation(self.tokenizer, prompt, response)
        sampled = response.sampled
        known = self._vocabularies.get(id(sampled.tokenizer))
        if known is None:
            known = sampled.tokenizer.get_vocab() == self.tokenizer.get_vocab()
            self._vocabularies[id(sampled.tokenizer)] = known
        found = sampled_conversation(self.tokenizer, prompt, response) if known else None
        if found is not None:
            return found
        text = str(response)
        if not isinstance(prompt, str):  # what the policy's generation prompt wrote of it
            frame = frame_of(sampled.tokenizer, prompt)
            text = text if frame is None else frame.opened + text
        return encode_conversation(self.tokenizer, prompt, text, sampled=True)

    @torch.no_grad()
    def score_ids(self, encoded: Sequence[list[int]]) -> list[Score]:
        """One entry a conversation, given as token ids.

        Missing where it is too long, holds a token without an embedding, or the score is not
        finite.
        """
        found: list[Score] = [self._unread(ids) or Missing("not scored") for ids in encoded]
        short = [row for row, ids in enumerate(encoded) if self._unread(ids) is None]
        lengths = torch.tensor([len(encoded[row]) for row in short], dtype=torch.int64)
        with self.within():
            for group in micro_batches(lengths, self.source.batch_tokens):
                rows = [short[place] for place in group.tolist()]
                scores = self._forward([encoded[row] for row in rows])
                for row, score in zip(rows, scores.tolist(), strict=True):
                    found[row] = as_score(score)
                tick(len(rows))
        return found

    def _unread(self, ids: Sequence[int]) -> Missing | None:
        """Why a conversation cannot be read; None: it can."""
        limit = LengthLimit("max_tokens", self.source.max_tokens, self.limits)
        if len(ids) > limit.tokens:
            return Missing(f"the conversation has {len(ids)} tokens, more than {limit}")
        unknown = self.limits.unknown(ids)
        if unknown is not None:
            token = self.tokenizer.convert_ids_to_tokens(unknown)
            return Missing(f"the model has no embedding for the token {token!r} ({unknown})")
        return None if ids else Missing("the conversation has no tokens")

    def _forward(self, encoded: list[list[int]]) -> Tensor:
        longest = max(len(ids) for ids in encoded)
        fits = takes_packed(self.model.base_model, longest)
        way = next(way for way in self.ways if fits or way != "packed")
        return self._outputs(encoded, way)[:, self.output].float().cpu()

    def _outputs(self, encoded: list[list[int]], way: Way) -> Tensor:
        """Outputs (B, L) of conversations: in one row, padded, or each by itself."""
        if way == "packed":
            return self._packed(encoded)
        if way == "padded":
            return self._padded(encoded)
        return torch.cat([self._padded([ids]) for ids in encoded])

    def _packed(self, encoded: list[list[int]]) -> Tensor:
        """Outputs (B, L): the head sees one token a conversation, the last that is not padding."""
        lengths = tuple(len(ids) for ids in encoded)
        places, start = [], 0
        for ids in encoded:
            words = [place for place, token in enumerate(ids) if token != self.pad]
            places.append(start + (words[-1] if words else 0))
            start += len(ids)
        device = self.model.device
        row = torch.tensor([token for ids in encoded for token in ids], device=device)
        positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
        states = run_packed(self.model.base_model, row, positions, lengths)
        head: nn.Linear = getattr(self.model, "score")  # noqa: B009
        with torch.autocast(device.type, enabled=False):  # scores are not rounded
            outputs: Tensor = head(states[places].to(head.weight.dtype))
        return outputs

    def _padded(self, encoded: list[list[int]]) -> Tensor:
        """Outputs (B, L) by the model's own forward pass and pooling."""
        pad = _unused(encoded) if self.pad is None else self.pad
        width = max(len(ids) for ids in encoded)
        ids = torch.full((len(encoded), width), pad)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        device, config = self.model.device, self.model.config
        config.pad_token_id = pad if len(encoded) > 1 else self.pad
        try:
            outputs: Tensor = self.model(
                input_ids=ids.to(device), attention_mask=mask.to(device)
            ).logits
        finally:
            config.pad_token_id = self.pad
        return outputs

    @torch.no_grad()
    def _try_ways(self) -> list[Way]:
        """Those that give each conversation the score that it has by itself, the fastest first.

        Models that pool at the very last place, or count end tokens over a batch, cannot be padded.

        Raises:
            UserError: the model cannot score a conversation at all.
        """
        rows = self._trial_rows()
        with as_evaluated(self.model):
            try:
                expected = self._outputs(rows, "alone")
            except Exception as error:  # of any model's own code
                kind = f"{type(self.model).__name__} (model type {self.model.config.model_type})"
                raise UserError(
                    f"{self.setting}.path: {kind} cannot score a conversation: {first_line(error)}"
                ) from error
            ways: list[Way] = ["packed", "padded"]
            if not takes_packed(self.model.base_model, 1):
                ways = ["padded"]
            return [*(way for way in ways if self._says_the_same(rows, way, expected)), "alone"]

    def _says_the_same(self, rows: list[list[int]], way: Way, expected: Tensor) -> bool:
        try:
            found = self._outputs(rows, way).float()
        except Exception:  # of any model's own code: another way is tried
            return False
        if not bool(torch.isfinite(expected).all()):  # `as_score` says so of each conversation
            return True
        half = self.model.dtype in (torch.bfloat16, torch.float16)
        tolerance = 2e-2 if half else 1e-4
        size = float(expected.abs().nan_to_num().max())
        atol = tolerance * max(size, 1e-6)
        # A model that says NaN says it in every way; its scores are missing ones, with that reason.
        return torch.allclose(found, expected.float(), rtol=0, atol=atol, equal_nan=True)

    def _trial_rows(self) -> list[list[int]]:
        """Four short rows of different lengths, one with the pad token at its end."""
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        rows = [[(7 * row + place) % vocabulary for place in range(row + 2)] for row in range(4)]
        if self.pad is not None:
            rows[1][-1] = self.pad
        if self.model.config.is_encoder_decoder:  # there they read their score
            rows = [[*row, int(self.model.config.eos_token_id)] for row in rows]
        return rows


def _unused(encoded: list[list[int]]) -> int:
    """The smallest id that no row holds."""
    used = {token for ids in encoded for token in ids}
    return next(token for token in range(len(used) + 1) if token not in used)


def output_of(model: PretrainedConfig, source: ModelSource, setting: str) -> int:
    """Which output of a model is the score.

    Raises:
        UserError: several outputs and no label, or a label that is not there.
    """
    labels: dict[Any, Any] = model.id2label or {}
    count = int(model.num_labels or 0)  # a config may name more than there are
    names = {int(n): str(name) for n, name in labels.items() if int(n) < count}
    known = ", ".join(f"{number}: {names[number]}" for number in sorted(names))
    if source.label is None:
        if model.num_labels != 1:
            raise UserError(
                f"{setting}.path: {source.path!r} has {model.num_labels} outputs ({known}). Choose "
                f"one by {setting}.label, by name or number; or train a reward model from it with "
                "the reward_model section."
            )
        return 0
    for number, name in names.items():
        if source.label in (number, name):
            return number
    raise UserError(
        f"{setting}.label = {source.label!r}: {source.path!r} has no such output, but {known}."
    )
