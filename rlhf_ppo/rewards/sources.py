"""All sources of a run: built from the settings, asked one after the other."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rlhf_ppo.config import FunctionSource, HttpSource, Leaf, ModelSource, RewardConfig, leaves
from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.models.load import load_classifier, load_tokenizer
from rlhf_ppo.models.lora import is_adapter
from rlhf_ppo.models.offload import borrowed
from rlhf_ppo.models.shared import SharedBase
from rlhf_ppo.rewards.classifier import RewardModel
from rlhf_ppo.rewards.function import RewardFunction
from rlhf_ppo.rewards.judgement import Failure, Judgement, Missing, Source
from rlhf_ppo.rewards.service import RewardService
from rlhf_ppo.seeds import derive_seed


class Sources:
    """Every source that is asked, in the order of the settings; members of ensembles too."""

    def __init__(self, named: Sequence[tuple[str, Source]]) -> None:
        """Names as in the metrics, see `config.leaves`."""
        self.named = named

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Judgement:
        """What each source says of B responses: scores (B, S), NaN where one is missing.

        Raises:
            UserError: a source breaks its contract.
        """
        table = torch.full((len(responses), len(self.named)), torch.nan)
        failures = []
        for place, (name, source) in enumerate(self.named):
            for row, score in enumerate(source.score(prompts, responses)):
                if isinstance(score, Missing):
                    where, response = prompts[row].where, responses[row]
                    failures.append(Failure(name, where, response, score.reason))
                else:
                    table[row, place] = score
        return Judgement(table, failures)

    def first_model(self) -> RewardModel | None:
        """The first source that is a model: what a value model can start from."""
        models = [source for _, source in self.named if isinstance(source, RewardModel)]
        return models[0] if models else None


@dataclass(frozen=True)
class Places:
    """Where reward models stand."""

    device: torch.device  # where they are asked
    offload: bool = False  # in the CPU's memory between
    base: SharedBase | None = None  # what adapters may share
    seed: int = 0  # of weights that a file lacks, where `allow_unmatched` lets it


def load_sources(reward: RewardConfig, trained: str, places: Places) -> Sources:
    """Load every model and function.

    Args:
        reward: settings.
        trained: folder of the reward model that this run trains.
        places: where the models stand.

    Raises:
        UserError: a source cannot be loaded.
    """
    return Sources(
        [(name, _load(leaf, name, trained, places)) for name, leaf in leaves(reward.sources)]
    )


def setting_of(name: str) -> str:
    """How messages call the source of a name."""
    return f"reward.sources[{name}]"


def _load(leaf: Leaf, name: str, trained: str, places: Places) -> Source:
    match leaf:
        case ModelSource():
            return _load_model(leaf, name, leaf.path or trained, places)
        case FunctionSource():
            return RewardFunction(leaf, setting_of(name))
        case HttpSource():
            return RewardService(leaf, setting_of(name))


def _load_model(leaf: ModelSource, name: str, path: str, places: Places) -> RewardModel:
    setting = setting_of(name)
    place = f"{setting}.path"
    tokenizer = load_tokenizer(path, place)
    within: Callable[[], AbstractContextManager[Any]]
    shared = None
    if places.base is not None:
        shared = places.base.classifier(path, leaf.dtype, name, place)
    if shared is not None:
        model, within = shared
    else:
        seed = derive_seed(places.seed, "weights that are not in the file", place)
        model = load_classifier(path, leaf.dtype, place, allow=leaf.allow_unmatched, seed=seed)
        if not places.offload:
            model.to(places.device)  # type: ignore[arg-type]
        within = partial(borrowed, model, places.device)
    if is_adapter(path):  # the base's pad token is not what its head was trained with
        model.config.pad_token_id = tokenizer.pad_token_id
    return RewardModel(model, tokenizer, leaf, setting, within)
