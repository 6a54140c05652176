"""All data of a run, read and tried on its models before anything is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rlhf_ppo.config import Config
from rlhf_ppo.data.preferences import (
    Demonstration,
    Preference,
    read_demonstrations,
    read_preferences,
)
from rlhf_ppo.data.prompts import Prompt, check_no_overlap, read_prompts
from rlhf_ppo.data.template import Text, joined
from rlhf_ppo.errors import UserError, problem_of, raise_all
from rlhf_ppo.evaluation.gold import GoldScorer
from rlhf_ppo.models.load import load_model_config, load_tokenizer
from rlhf_ppo.preflight import check_policy, check_reward
from rlhf_ppo.training.sft import starting_point

T = TypeVar("T")


@dataclass(frozen=True)
class Inputs:
    """All data of a run, read and checked before anything is written."""

    demonstrations: list[Demonstration]
    preferences: list[Preference]
    probes: list[Preference]
    train_prompts: list[Prompt]
    heldout_prompts: list[Prompt]
    gold: GoldScorer | None

    @property
    def prompts(self) -> dict[str, Sequence[Prompt]]:
        """What responses are sampled for, by setting."""
        return {"data.prompts": self.train_prompts, "data.heldout_prompts": self.heldout_prompts}

    @property
    def conversations(self) -> dict[str, Sequence[Text]]:
        """What the supervised stages learn from, by setting."""
        shown = [joined(item.prompt, item.completion) for item in self.demonstrations]
        pairs = [joined(item.prompt, item.chosen) for item in self.preferences + self.probes]
        return {"data.demonstrations": shown, "data.preferences": pairs}

    @property
    def texts(self) -> list[Text]:
        """All that some model will read."""
        asked = [prompt.text for prompts in self.prompts.values() for prompt in prompts]
        return asked + [text for texts in self.conversations.values() for text in texts]


def read_inputs(config: Config, stages: Sequence[str]) -> Inputs:
    """Read all data that the stages need; every problem in one message."""
    problems: list[str] = []

    def read(
        setting: str, stage: str, source: str | None, reader: Callable[[str, str], list[T]]
    ) -> list[T]:
        if stage not in stages:
            return []
        if source is None:
            problems.append(f"{setting}: missing; the {stage} stage needs it")
            return []
        try:
            return reader(source, setting)
        except UserError as error:
            problems.append(str(error))
            return []

    data = config.data
    heldout_stage = "ppo" if "ppo" in stages else "evaluation"
    demonstrations = read("data.demonstrations", "sft", data.demonstrations, read_demonstrations)
    preferences = read("data.preferences", "reward_model", data.preferences, read_preferences)
    probes: list[Preference] = []
    if data.heldout_preferences is not None:
        setting = "data.heldout_preferences"
        probes = read(setting, "reward_model", data.heldout_preferences, read_preferences)
    train = read("data.prompts", "ppo", data.prompts, read_prompts)
    heldout = read("data.heldout_prompts", heldout_stage, data.heldout_prompts, read_prompts)
    problems += problem_of(lambda: check_no_overlap(train, heldout))
    gold = None
    if config.evaluation.gold is not None:
        try:
            gold = GoldScorer(config.evaluation.gold)
        except UserError as error:
            problems.append(str(error))
    raise_all(problems)
    return Inputs(demonstrations, preferences, probes, train, heldout, gold)


def check_inputs(config: Config, stages: Sequence[str], inputs: Inputs) -> dict[str, int]:
    """Try the data on the models, as far as they are known, and the gold scorer on silence.

    Returns:
        By setting: how many prompts are short enough, as far as that is known.
    """
    sizes = {
        "data.prompts": len(inputs.train_prompts),
        "data.heldout_prompts": len(inputs.heldout_prompts),
    }
    tokenizer, model = None, None
    if config.policy.path is not None:
        tokenizer = load_tokenizer(config.policy.path, "policy.path")
        model = load_model_config(config.policy.path, "policy.path")
    elif "sft" in stages:
        made, tokenizer = starting_point(config, inputs.demonstrations)
        model = made.config
    problems: list[str] = []
    if tokenizer is not None:
        try:
            sizes = check_policy(config, tokenizer, model, inputs.prompts, inputs.conversations)
        except UserError as error:
            problems.append(str(error))
    asked = inputs.train_prompts + inputs.heldout_prompts
    problems += problem_of(lambda: check_reward(config, tokenizer, asked))
    gold = inputs.gold
    if gold is not None and inputs.heldout_prompts:
        problems += problem_of(lambda: gold.check(asked))
    raise_all(problems)
    return sizes
