"""What is asked on held-out prompts: which models, how often, by whom they are judged."""

from pydantic import Field, field_validator

from rlhf_ppo.config.base import BelowOne, Count, CountOrZero, Place, Positive, Settings, Url
from rlhf_ppo.config.rewards import Name

PLACES = ("{prompt}", "{answer_a}", "{answer_b}")  # what a judge's template must hold


class JudgeConfig(Settings):
    """A language model that compares answers, behind any OpenAI-compatible chat endpoint."""

    url: Url
    """Base address, as in http://localhost:8000/v1; `/chat/completions` below it is asked."""
    model: str
    """Its name there."""
    api_key_env: str | None = None
    """Environment variable that holds the key; null: none is sent."""
    prompts: Count = 64
    """Held-out prompts that are judged, from the first on; each is asked in both orders."""
    template: str | None = None
    """What is asked, with {prompt}, {answer_a} and {answer_b}; null: see docs/evaluation.md."""
    options: dict[str, str | bool | int | float] = Field(
        default={"temperature": 0, "max_tokens": 1024}
    )
    """Further fields of each request."""
    timeout: Positive = 60.0
    """A request without an answer for so long has failed (seconds)."""
    retries: CountOrZero = 3
    """Further tries of a failed request, after 1, 2, 4, ... and at most 30 seconds."""
    parallel: Count = 4
    """Requests of one process that are under way at once."""
    max_failed: BelowOne = 0.1
    """Share of the prompts that may get no verdict and are left out; more: no win rate."""

    @field_validator("template")
    @classmethod
    def _template_has_its_places(cls, value: str | None) -> str | None:
        missing = [place for place in PLACES if value is not None and place not in value]
        if missing:
            raise ValueError(f"lacks {', '.join(missing)}")
        return value


class EvaluationConfig(Settings):
    """Policy against reference on held-out prompts: see docs/evaluation.md."""

    every: CountOrZero = 50
    """PPO steps between evaluations during training; 0: only at the end."""
    prompts_during_training: Count = 64
    """Held-out prompts of an evaluation during training; the last one takes all."""
    gold: Place | None = None
    """Scorer that training never sees, as "folder/file.py:function" or "module:function"."""
    policy: Place | None = None
    """Folder or hub id of the model to evaluate; null: the policy that the run has made."""
    models: dict[Name, Place] = Field(default={})
    """Other models to compare with the reference, by name: folders or hub ids."""
    allow_unmatched: tuple[str, ...] = ()
    """Patterns of weights in which files of `models` and `policy` may differ (docs/models.md)."""
    greedy: bool = True
    """Evaluate the most probable responses (temperature 0) too, not only sampled ones."""
    best_of: CountOrZero = 16
    """Samples a prompt behind best-of-n of the reference, the frontier's baseline; 0: none."""
    best_of_prompts: Count = 64
    """Held-out prompts of best-of-n, from the first on."""
    judge: JudgeConfig | None = None
    bootstrap_samples: Count = 10000
    """Resamples behind each 95 % interval."""
    samples_shown: CountOrZero = 4
    """Before/after samples printed at the end."""
