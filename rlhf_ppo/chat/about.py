"""What a run folder tells a person who comes to talk: questions to ask, what it learnt from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf_ppo.chat.models import is_run
from rlhf_ppo.command_line import validate
from rlhf_ppo.config import trained_source
from rlhf_ppo.config.reading import read_config
from rlhf_ppo.data.template import Text
from rlhf_ppo.models.load import load_classifier, load_tokenizer
from rlhf_ppo.report.folder import read_lines
from rlhf_ppo.rewards.classifier import RewardModel
from rlhf_ppo.rewards.judgement import Missing
from rlhf_ppo.stamps import FOLDERS

EXAMPLES = 4
LONGEST = 120  # characters of an example
SINGLE = (
    "All prompts of this run are single questions, so its policy has never seen a second turn: "
    "each question is answered on its own."
)
SINGLE_WITH_HISTORY = (
    "All prompts of this run are single questions: with the history kept, answers from the second "
    "turn on are of a kind that its policy was never trained for."
)


@dataclass(frozen=True)
class AboutRun:
    """Of the first run among the paths; empty where there is none, or it has no evaluation yet."""

    examples: tuple[str, ...] = ()
    """Held-out prompts, spread over the set."""
    single_turn: bool = False
    """Every held-out prompt is one question without history."""
    scorer: RewardModel | None = None
    """The reward model that the run has trained."""

    def score(self, prompt: Text, answer: str) -> float | None:
        """What the reward model says of an answer (reward units); None without one.

        Args:
            prompt: all that stood before the answer.
            answer: of the model.

        Raises:
            UserError: its chat template refuses the messages.
        """
        if self.scorer is None:
            return None
        (found,) = self.scorer.score_texts([prompt], [answer])
        return None if isinstance(found, Missing) else found


def about_run(paths: Sequence[str], device: torch.device) -> AboutRun:
    """Read the first run folder among some paths, and load its reward model.

    Raises:
        UserError: a damaged file in it, or a reward model that cannot be loaded.
    """
    folder = next((Path(path) for path in paths if is_run(Path(path))), None)
    if folder is None:
        return AboutRun()
    rows = read_lines(folder / "evaluation" / "samples.jsonl")
    questions = [_question(row.get("prompt")) for row in rows]
    known = [text for text in questions if text is not None and len(text) <= LONGEST]
    count = min(EXAMPLES, len(known))
    examples = tuple(known[place * len(known) // count] for place in range(count))
    single = bool(rows) and all(text is not None for text in questions)
    return AboutRun(examples, single, _scorer(folder, device))


def _question(prompt: Any) -> str | None:
    """The words of a prompt that is one question, perhaps below a system prompt; else None."""
    if isinstance(prompt, str):
        return prompt
    turns = [turn for turn in prompt or () if isinstance(turn, Mapping)]
    asked = [turn for turn in turns if turn.get("role") != "system"]
    if len(asked) != 1 or not isinstance(asked[0].get("content"), str):
        return None
    return str(asked[0]["content"])


def _scorer(folder: Path, device: torch.device) -> RewardModel | None:
    path = folder / FOLDERS["reward_model"]
    config = validate(read_config(folder / "config.yaml"), str(folder / "config.yaml"))
    source = trained_source(config.reward)
    if source is None or not (path / "config.json").is_file():
        return None
    setting = f"reward.sources[{source.name}].path"
    model: Any = load_classifier(str(path), source.dtype, setting)
    model.to(device).eval()
    return RewardModel(model, load_tokenizer(str(path), setting), source, setting)
