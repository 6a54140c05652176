"""What a response is worth: a sequence-classification model, read as its own pipeline reads it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_ppo.config import ModelSource
from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.data.template import Text, check_template, encode_conversation
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.forward import micro_batches
from rlhf_ppo.models.packing import enable_packing, run_packed, takes_packed
from rlhf_ppo.models.trial import as_evaluated, first_line
from rlhf_ppo.rewards.judgement import Missing, Score, as_score

Way = Literal["packed", "padded", "alone"]


class RewardModel:
    """Scores prompt and response with the reward model's own tokenizer and chat template.

    The text is rendered again even when the tokenizer is the policy's: so the reward model always
    sees what it was trained on, whatever the policy's template leaves after the stop token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        source: ModelSource,
        setting: str,
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Make the pad token known to the model's pooling, and pack its rows if it can.

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
        if self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = tokenizer.pad_token_id
        self.tokenizer = tokenizer
        self.source, self.setting = source, setting
        self.output = output_of(model.config, source, setting)
        # The model's, not the tokenizer's: its pooling looks for the last token that is not this.
        self.pad = int(self.model.config.pad_token_id or 0)
        with self.within():
            enable_packing(model, model.base_model)
            self.way = self._try_ways()

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """One entry a response; see `score_texts`."""
        return self.score_texts([prompt.text for prompt in prompts], responses)

    @torch.no_grad()
    def score_texts(self, prompts: Sequence[Text], responses: Sequence[Text]) -> list[Score]:
        """One entry a response, missing where it is too long or the score is not finite.

        Raises:
            UserError: the chat template refuses the messages.
        """
        check_template(self.tokenizer, prompts, f"{self.setting}.path")
        encoded = [
            encode_conversation(self.tokenizer, prompt, response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        limit = self.source.max_tokens
        found: list[Score] = [
            Missing(f"the conversation has {len(ids)} tokens, more than max_tokens = {limit}")
            for ids in encoded
        ]
        short = [row for row, ids in enumerate(encoded) if len(ids) <= limit]
        lengths = torch.tensor([len(encoded[row]) for row in short], dtype=torch.int64)
        with self.within():
            for group in micro_batches(lengths, self.source.batch_tokens):
                rows = [short[place] for place in group.tolist()]
                scores = self._forward([encoded[row] for row in rows])
                for row, score in zip(rows, scores.tolist(), strict=True):
                    found[row] = as_score(score)
        return found

    def _forward(self, encoded: list[list[int]]) -> Tensor:
        longest = max(len(ids) for ids in encoded)
        fits = self.way != "packed" or takes_packed(self.model.base_model, longest)
        outputs = self._outputs(encoded, self.way if fits else "padded")
        return outputs[:, self.output].float().cpu()

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
            last = max((place for place, token in enumerate(ids) if token != self.pad), default=0)
            places.append(start + last)
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
        width = max(len(ids) for ids in encoded)
        ids = torch.full((len(encoded), width), self.pad)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        device = self.model.device
        outputs: Tensor = self.model(
            input_ids=ids.to(device), attention_mask=mask.to(device)
        ).logits
        return outputs

    @torch.no_grad()
    def _try_ways(self) -> Way:
        """The fastest way that gives each conversation the score that it has by itself.

        Raises:
            UserError: the model cannot score a conversation at all.
        """
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        rows = [[(7 * row + place) % vocabulary for place in range(row + 2)] for row in range(4)]
        rows[1][-1] = self.pad
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
            return next((way for way in ways if self._says_the_same(rows, way, expected)), "alone")

    def _says_the_same(self, rows: list[list[int]], way: Way, expected: Tensor) -> bool:
        try:
            found = self._outputs(rows, way).float()
        except Exception:  # of any model's own code: another way is tried
            return False
        if not bool(torch.isfinite(expected).all()):  # `as_score` says so of each conversation
            return True
        half = self.model.dtype in (torch.bfloat16, torch.float16)
        tolerance = 2e-2 if half else 1e-4
        size = float(expected.abs().max())
        return torch.allclose(found, expected.float(), rtol=0, atol=tolerance * max(size, 1e-6))


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
