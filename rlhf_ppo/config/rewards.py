"""What pays a response: one or more sources, weighed and added up, then shaped."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from rlhf_ppo.config.base import (
    BelowOne,
    Count,
    CountOrZero,
    Number,
    Place,
    Positive,
    PositiveOrZero,
    Settings,
    Url,
)


def _at_least(count: int) -> AfterValidator:
    """Like `min_length`, which would also count the items that are refused themselves."""

    def check(items: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(items) < count:
            raise ValueError(f"needs {count} or more entries")
        return items

    return AfterValidator(check)


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class _Source(Settings):
    """What all sources have; here so that it is said once."""

    weight: Number = 1.0
    """Factor of this source in the sum; negative: less is better; 0: only shown."""
    normalization: Literal["none", "standardize"] = "none"
    """standardize: to mean 0 and variance 1 over all scores of this source so far."""


class ModelSource(_Source):
    """A sequence-classification model, with its own tokenizer and chat template."""

    kind: Literal["model"] = "model"
    """A sequence-classification model."""
    name: Name = "reward_model"
    """What metrics and messages call it."""
    path: Place | None = None
    """Folder or hub id; null: the one that this run trains from `data.preferences`."""
    allow_unmatched: tuple[str, ...] = ()
    """Patterns of weights in which files and model may differ, as ["v_head.*"] (docs/models.md)."""
    label: str | int | None = None
    """Which output is the score, by name or number from 0, before any softmax; null: the one."""
    max_tokens: Count = 2048
    """A longer conversation gets no score, it is never cut (tokens of the model's tokenizer)."""
    batch_tokens: Count = 16384
    """Tokens in one forward pass."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in memory."""


class FunctionSource(_Source):
    """A Python function: `function(prompts, responses, **columns) -> list of numbers`."""

    kind: Literal["function"]
    """A Python function."""
    name: Name = "function"
    """What metrics and messages call it."""
    path: Place
    """Where it is: "folder/file.py:function" or "module:function"."""
    timeout: Positive | None = None
    """A call without an answer for so long gives no scores (seconds); null: wait for ever."""
    correctness: bool = False
    """Its scores are 1 (right) and 0 (wrong): evaluation counts solved prompts, and pass@k."""


class HttpSource(_Source):
    """A service that takes prompts and responses as JSON and answers scores (docs/rewards.md)."""

    kind: Literal["http"]
    """A service."""
    name: Name = "http"
    """What metrics and messages call it."""
    url: Url
    """Where it is asked, by POST."""
    timeout: Positive = 30.0
    """A request without an answer for so long has failed (seconds)."""
    retries: CountOrZero = 3
    """Further tries of a failed request, after 1, 2, 4, ... and at most 30 seconds."""
    batch_size: Count = 64
    """Most responses in one request."""
    correctness: bool = False
    """Its scores are 1 (right) and 0 (wrong): evaluation counts solved prompts, and pass@k."""


Leaf = ModelSource | FunctionSource | HttpSource


class EnsembleSource(_Source):
    """Several sources that score the same thing, made into one number."""

    kind: Literal["ensemble"]
    """Several sources."""
    name: Name = "ensemble"
    """What metrics and messages call it."""
    members: Annotated[tuple[Annotated[Leaf, Field(discriminator="kind")], ...], _at_least(2)]
    """The sources, each with its own normalization; they have no weights."""
    combine: Literal["mean", "minimum", "lower"] = "mean"
    """Their mean, their minimum, or mean - k * standard deviation (`lower`)."""
    k: Positive | None = None
    """lower: how many standard deviations below the mean."""


Source = Annotated[
    ModelSource | FunctionSource | HttpSource | EnsembleSource, Field(discriminator="kind")
]


class RewardConfig(Settings):
    """What a response is worth: the weighted sum of the sources, then shaped."""

    sources: Annotated[tuple[Source, ...], _at_least(1)] = (ModelSource(),)
    """What scores a response, each of kind model, function, http or ensemble (docs/rewards.md)."""
    max_failed: BelowOne = 0.0
    """Share of a step's responses that may get no score and are left out; more stop the run."""
    missing_stop_penalty: PositiveOrZero = 0.0
    """Subtracted from the score of a response that did not end by itself (reward units)."""
    missing_stop_score: Number | None = None
    """If set, the whole score of a response that did not end by itself (reward units)."""
    length_penalty: PositiveOrZero = 0.0
    """Subtracted from the score for each token beyond `length_free_tokens` (reward units)."""
    length_free_tokens: CountOrZero = 0
    """Tokens of a response that the length penalty leaves alone."""
    normalization: Literal["none", "center", "scale", "standardize"] = "none"
    """Bring scores to mean 0 (center), to variance 1 (scale), or both (standardize)."""
    normalization_from: Literal["reference", "running"] = "reference"
    """Mean and variance of the reference's responses in the first step, or of all so far."""
    clip_range: Positive | None = None
    """Scores are held within this distance of 0, after normalization; null: never."""
    whiten: bool = False
    """Divide the rewards of a step (score and KL together) by their deviation; keep the mean."""


KINDS = (ModelSource, FunctionSource, HttpSource, EnsembleSource)


def leaves(sources: Sequence[Leaf | EnsembleSource]) -> list[tuple[str, Leaf]]:
    """Every source that is asked, by the name of its metrics; members as ENSEMBLE/MEMBER."""
    found: list[tuple[str, Leaf]] = []
    for source in sources:
        if isinstance(source, EnsembleSource):
            found += [(f"{source.name}/{member.name}", member) for member in source.members]
        else:
            found.append((source.name, source))
    return found


def trained_source(reward: RewardConfig) -> ModelSource | None:
    """The source whose model this run trains, if there is one."""
    for _, leaf in leaves(reward.sources):
        if isinstance(leaf, ModelSource) and leaf.path is None:
            return leaf
    return None


def correctness_source(reward: RewardConfig) -> str | None:
    """Name of the source whose scores say right or wrong, if one is declared to."""
    for source in reward.sources:
        if isinstance(source, FunctionSource | HttpSource) and source.correctness:
            return source.name
    return None
