"""What a response is worth: a sequence-classification model, read as its own pipeline reads it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_ppo.config import RewardConfig
from rlhf_ppo.data.template import Text, check_template, encode_conversation
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.forward import micro_batches
from rlhf_ppo.models.packing import enable_packing, run_packed, takes_packed


class RewardModel:
    """Scores prompt and response with the reward model's own tokenizer and chat template.

    The text is rendered again even when the tokenizer is the policy's: so the reward model always
    sees what it was trained on, whatever the policy's template leaves after the stop token.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: RewardConfig
    ) -> None:
        """Freeze the model, make its pad token known to its pooling, pack its rows if it can."""
        self.model = model.eval().requires_grad_(False)
        if self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = tokenizer.pad_token_id
        self.tokenizer = tokenizer
        self.config = config
        # The model's, not the tokenizer's: its pooling looks for the last token that is not this.
        self.pad = int(self.model.config.pad_token_id or 0)
        if enable_packing(model, model.base_model):
            self._check_packing()

    @torch.no_grad()
    def score(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        """Scores (B,) float32 on the CPU, reward units.

        Raises:
            UserError: chat messages without a chat template, a conversation longer than
                `reward.max_tokens`, or a score that is not finite.
        """
        check_template(self.tokenizer, prompts, "reward.path")
        encoded = [
            encode_conversation(self.tokenizer, prompt, response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        lengths = torch.tensor([len(ids) for ids in encoded])
        if int(lengths.max()) > self.config.max_tokens:
            raise UserError(
                f"reward.max_tokens: a conversation has {int(lengths.max())} tokens for the reward "
                f"model, more than {self.config.max_tokens}. Raise it, or shorten prompts or "
                "responses."
            )
        scores = torch.zeros(len(encoded))
        for rows in micro_batches(lengths, self.config.batch_tokens):
            scores[rows] = self._forward([encoded[row] for row in rows.tolist()])
        if not bool(scores.isfinite().all()):
            row = int((~scores.isfinite()).nonzero()[0])
            raise UserError(
                f"the reward model gave {float(scores[row])} for the response "
                f"{responses[row]!r}. Check its weights and dtype (reward.dtype)."
            )
        return scores

    def _forward(self, encoded: list[list[int]]) -> Tensor:
        fits = takes_packed(self.model.base_model, max(len(ids) for ids in encoded))
        outputs = self._packed(encoded) if fits else self._padded(encoded)
        return outputs[:, 0].float().cpu()

    def _packed(self, encoded: list[list[int]]) -> Tensor:
        """Outputs (B, 1): the head sees one token a conversation, the last that is not padding."""
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
        """Outputs (B, 1) by the model's own forward pass and pooling."""
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
    def _check_packing(self) -> None:
        """Go back to padded rows if the model pools in a way that `_packed` does not know."""
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        rows = [[(7 * row + place) % vocabulary for place in range(row + 2)] for row in range(4)]
        rows[1][-1] = self.pad
        try:
            found, expected = self._packed(rows).float(), self._padded(rows).float()
            alike = torch.allclose(found, expected, rtol=2e-2, atol=2e-2 * float(expected.std()))
        except (AttributeError, ValueError, RuntimeError):
            alike = False
        if not alike:
            self.model.set_attn_implementation("sdpa")
