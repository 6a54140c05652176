"""A reward that is a Python function of the user."""

from collections.abc import Sequence

from rlhf_ppo.config import FunctionSource
from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.errors import UserError
from rlhf_ppo.rewards.judgement import Missing, Score, as_score
from rlhf_ppo.rewards.user_function import UserCodeError, UserFunction


class RewardFunction:
    """Calls the function; a response that makes it raise is told apart from the others."""

    def __init__(self, source: FunctionSource, setting: str) -> None:
        """Load the function.

        Raises:
            UserError: it is not there, or takes other arguments.
        """
        self.setting = setting
        self.function = UserFunction(source.path, f"{setting}.path")

    def check(self, prompts: Sequence[Prompt]) -> None:
        """See that its columns are there, and try it on an empty response.

        Raises:
            UserError: a column is missing, or the function raises.
        """
        self.function.check(prompts)
        try:
            self.function.call(prompts[:1], [""])
        except UserCodeError as error:
            raise UserError(
                f"{self.setting}.path: {self.function.target} fails on an empty response to "
                f"{prompts[0].where}: {error}"
            ) from error

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """What the function returns, one entry a response.

        Raises:
            UserError: it returned another number of scores than it got responses.
        """
        try:
            return [as_score(value) for value in self.function.call(prompts, responses)]
        except UserCodeError as error:
            if len(responses) == 1:
                return [Missing(str(error))]
        # One response that it cannot take must not cost the others their scores.
        pairs = zip(prompts, responses, strict=True)
        return [self.score([prompt], [response])[0] for prompt, response in pairs]
