"""A reward that is asked over HTTP; the contract stands in docs/rewards.md."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from rlhf_ppo.config import HttpSource
from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.errors import UserError
from rlhf_ppo.rewards.judgement import Missing, Score, as_score, check_correctness
from rlhf_ppo.rewards.post import ServiceError, post_json, with_retries


class RewardService:
    """Sends responses in batches; a request that fails for good leaves its responses unscored."""

    def __init__(self, source: HttpSource, setting: str) -> None:
        """Nothing is asked yet."""
        self.source, self.setting = source, setting

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Ask once for the score of an empty response.

        Raises:
            UserError: the service cannot be reached, or breaks the contract.
        """
        try:
            self._ask(prompts[:1], [""])
        except ServiceError as error:
            raise UserError(
                f"{self.setting}.url: {self.source.url} gave no scores: {error}. Start the service "
                "first, or mend the address; docs/rewards.md says what it must answer."
            ) from error

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """What the service answers, one entry a response."""
        scores: list[Score] = []
        size = self.source.batch_size
        for start in range(0, len(responses), size):
            part = slice(start, start + size)
            try:
                ask = partial(self._ask, prompts[part], responses[part])
                scores += with_retries(ask, self.source.retries)
            except ServiceError as error:
                scores += [Missing(f"{self.source.url}: {error}")] * len(responses[part])
        return scores

    def _ask(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        names = sorted(set.intersection(*(set(prompt.columns) for prompt in prompts)))
        question = {
            "prompts": [prompt.text for prompt in prompts],
            "responses": list(responses),
            "columns": {name: [prompt.columns[name] for prompt in prompts] for name in names},
        }
        answer = post_json(self.source.url, question, self.source.timeout)
        scores = _read(answer, len(responses))
        if self.source.correctness:
            check_correctness(scores, self.setting, self.source.url)
        return scores


def _read(answer: Any, count: int) -> list[Score]:
    """The scores of an answer, with the service's own reasons for those that are missing."""
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list):
        raise ServiceError('the answer has no list "scores"', again=False)
    if len(scores) != count:
        raise ServiceError(f"it answered {len(scores)} scores for {count} responses", again=False)
    reasons = answer.get("reasons")
    if not isinstance(reasons, list) or len(reasons) != count:
        reasons = [None] * count
    return [
        Missing(str(reason)) if score is None and reason else as_score(score)
        for score, reason in zip(scores, reasons, strict=True)
    ]
