"""A reward that is a Python function of the user."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from rlhf_ppo.config import FunctionSource
from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.errors import UserError
from rlhf_ppo.rewards.judgement import Missing, Score, as_score, check_correctness
from rlhf_ppo.rewards.user_function import UserCodeError, UserFunction


class RewardFunction:
    """Calls the function; a response that makes it raise is told apart from the others."""

    def __init__(self, source: FunctionSource, setting: str) -> None:
        """Load the function.

        Raises:
            UserError: it is not there, or takes other arguments.
        """
        self.setting, self.timeout = setting, source.timeout
        self.correctness = source.correctness
        self.function = UserFunction(source.path, f"{setting}.path")

    def check(self, prompts: Sequence[Prompt]) -> None:
        """See that its columns are there, and try it on an empty response.

        Raises:
            UserError: a column is missing, or the function raises.
        """
        self.function.check(prompts)
        try:
            found = _within(self.timeout, lambda: self.function.call(prompts[:1], [""]))
        except TimeoutError:
            raise UserError(
                f"{self.setting}.path: {self.function.target} gave no answer on an empty response "
                f"to {prompts[0].where} in {self.setting}.timeout = {self.timeout:g} s."
            ) from None
        except UserCodeError as error:
            raise UserError(
                f"{self.setting}.path: {self.function.target} fails on an empty response to "
                f"{prompts[0].where}: {error}"
            ) from error
        self._read(found)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """What the function returns, one entry a response; none of them where it takes too long.

        Raises:
            UserError: it returned another number of scores than it got responses, or it is
                declared to say right or wrong and said something else.
        """
        try:
            found = _within(self.timeout, lambda: self.function.call(prompts, responses))
            return self._read(found)
        except TimeoutError:  # not asked again one by one: each might take as long
            return [Missing(f"no answer in {self.timeout:g} s") for _ in responses]
        except UserCodeError as error:
            if len(responses) == 1:
                return [Missing(str(error))]
        # One response that it cannot take must not cost the others their scores.
        pairs = zip(prompts, responses, strict=True)
        return [self.score([prompt], [response])[0] for prompt, response in pairs]

    def _read(self, found: Sequence[Any]) -> list[Score]:
        scores = [as_score(value) for value in found]
        if self.correctness:
            check_correctness(scores, self.setting, self.function.target)
        return scores


def _within(seconds: float | None, call: Callable[[], Any]) -> Any:
    """What `call` returns or raises.

    Raises:
        TimeoutError: it has not ended by then. It goes on in its thread, since nothing can end
            code that does not want to end, but it keeps neither the run nor its exit waiting.
    """
    if seconds is None:
        return call()
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append((call(), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not ended:
        raise TimeoutError
    found, error = ended[0]
    if error is not None:
        raise error
    return found
