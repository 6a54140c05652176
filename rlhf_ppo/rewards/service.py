"""A reward that is asked over HTTP; the contract stands in docs/rewards.md."""

import json
import time
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rlhf_ppo.config import HttpSource
from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.errors import UserError
from rlhf_ppo.rewards.judgement import Missing, Score, as_score

LONGEST_WAIT = 30.0  # seconds between two tries


class _ServiceError(Exception):
    """A request that got no scores; `again`: another try may help."""

    def __init__(self, reason: str, again: bool) -> None:
        super().__init__(reason)
        self.again = again


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
        except _ServiceError as error:
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
                scores += self._ask_again(prompts[part], responses[part])
            except _ServiceError as error:
                scores += [Missing(f"{self.source.url}: {error}")] * len(responses[part])
        return scores

    def _ask_again(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        for tried in range(self.source.retries):
            try:
                return self._ask(prompts, responses)
            except _ServiceError as error:
                if not error.again:
                    raise
            time.sleep(min(2.0**tried, LONGEST_WAIT))
        return self._ask(prompts, responses)

    def _ask(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        names = sorted(set.intersection(*(set(prompt.columns) for prompt in prompts)))
        question = {
            "prompts": [prompt.text for prompt in prompts],
            "responses": list(responses),
            "columns": {name: [prompt.columns[name] for prompt in prompts] for name in names},
        }
        body = json.dumps(question, default=str).encode()  # dates, as `datasets` holds them
        request = Request(self.source.url, body, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=self.source.timeout) as reply:
                answer = json.loads(reply.read())
        except HTTPError as error:
            said = error.read(500).decode("utf-8", "replace").strip()
            again = error.code >= 500 or error.code in (408, 429)
            raise _ServiceError(f"HTTP {error.code} {error.reason} {said}".strip(), again) from None
        except TimeoutError:
            reason = f"no answer within timeout = {self.source.timeout:g} s"
            raise _ServiceError(reason, again=True) from None
        except (OSError, HTTPException) as error:  # URLError is an OSError
            raise _ServiceError(str(getattr(error, "reason", error)), again=True) from None
        except ValueError as error:
            raise _ServiceError(f"the answer is not JSON ({error})", again=True) from None
        return _read(answer, len(responses))


def _read(answer: Any, count: int) -> list[Score]:
    """The scores of an answer, with the service's own reasons for those that are missing."""
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list):
        raise _ServiceError('the answer has no list "scores"', again=False)
    if len(scores) != count:
        raise _ServiceError(f"it answered {len(scores)} scores for {count} responses", again=False)
    reasons = answer.get("reasons")
    if not isinstance(reasons, list) or len(reasons) != count:
        reasons = [None] * count
    return [
        Missing(str(reason)) if score is None and reason else as_score(score)
        for score, reason in zip(scores, reasons, strict=True)
    ]
