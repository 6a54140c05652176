"""All sources of a run: built from the settings, asked one after the other."""

from collections.abc import Sequence

import torch

from rlhf_ppo.config import FunctionSource, HttpSource, Leaf, ModelSource, RewardConfig, leaves
from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.models.load import load_classifier, load_tokenizer
from rlhf_ppo.rewards.classifier import RewardModel
from rlhf_ppo.rewards.function import RewardFunction
from rlhf_ppo.rewards.judgement import Failure, Judgement, Missing, Source
from rlhf_ppo.rewards.service import RewardService


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


def load_sources(reward: RewardConfig, trained: str, device: torch.device) -> Sources:
    """Load every model and function.

    Args:
        reward: settings.
        trained: folder of the reward model that this run trains.
        device: of the models.

    Raises:
        UserError: a source cannot be loaded.
    """
    return Sources(
        [(name, _load(leaf, name, trained, device)) for name, leaf in leaves(reward.sources)]
    )


def setting_of(name: str) -> str:
    """How messages call the source of a name."""
    return f"reward.sources[{name}]"


def _load(leaf: Leaf, name: str, trained: str, device: torch.device) -> Source:
    setting = setting_of(name)
    match leaf:
        case ModelSource():
            path = leaf.path or trained
            model = load_classifier(path, leaf.dtype, f"{setting}.path")
            model.to(device)  # type: ignore[arg-type]
            return RewardModel(model, load_tokenizer(path, f"{setting}.path"), leaf, setting)
        case FunctionSource():
            return RewardFunction(leaf, setting)
        case HttpSource():
            return RewardService(leaf, setting)
