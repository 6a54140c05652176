"""From folders of runs, models and adapters to models that can be talked to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from rlhf_ppo.command_line import validate
from rlhf_ppo.config.reading import read_config
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.limits import limits_of
from rlhf_ppo.models.load import load_causal_lm, load_tokenizer, stop_token_ids
from rlhf_ppo.stamps import FOLDERS

MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class Settings:
    """How answers are drawn, alike for all models that are asked."""

    temperature: float = 1.0  # 0: the likeliest token each time
    seed: int = 1
    system: str | None = None  # put before the conversation
    max_new_tokens: int = MAX_NEW_TOKENS
    history: bool = True  # earlier turns stand before a question; False: each on its own


@dataclass(frozen=True)
class Named:
    """A model folder or hub id with the name that a person sees."""

    name: str
    path: str
    stop_tokens: tuple[str, ...] = ()
    allow_unmatched: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChatModel:
    """A model on its device, ready to answer."""

    name: str
    path: str
    lm: Any  # a causal language model of Transformers
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]

    @property
    def chats(self) -> bool:
        """Whether it was made for messages; otherwise it goes on with a text as it stands."""
        return self.tokenizer.chat_template is not None

    @property
    def positions(self) -> int | None:
        """Longest sequence it knows (tokens); None: it does not say."""
        return limits_of(self.lm.config, self.name).strict().positions


def find_models(paths: Sequence[str]) -> tuple[list[Named], Settings]:
    """What is behind each path: a run folder stands for its reference and its policy.

    Args:
        paths: folders of runs, models or adapters, or hub ids.

    Returns:
        The models, each with a name of its own, and the settings of the first run among them.

    Raises:
        UserError: a run that has no policy yet, or whose config cannot be read.
    """
    found: list[Named] = []
    settings = Settings()
    runs = [path for path in paths if is_run(Path(path))]
    for path in paths:
        if path not in runs:
            found.append(Named(Path(path).name if Path(path).is_dir() else path, path))
            continue
        models, of_run = _models_of(Path(path))
        prefix = f"{Path(path).resolve().name}/" if len(paths) > 1 else ""
        found += [replace(model, name=prefix + model.name) for model in models]
        settings = of_run if path == runs[0] else settings
    return list(_told_apart(found)), settings


def is_run(folder: Path) -> bool:
    """Whether a folder was left by a run of ours."""
    return (folder / "config.yaml").is_file() and not (folder / "config.json").is_file()


def load_model(named: Named, device: torch.device) -> ChatModel:
    """Load weights and tokenizer; nothing but temperature and stop tokens shapes what it says.

    Raises:
        UserError: nothing to load there, or it is no causal language model.
    """
    dtype = "float32" if device.type == "cpu" else "bfloat16"
    tokenizer = load_tokenizer(named.path, named.name)
    lm: Any = load_causal_lm(named.path, dtype, named.name, allow=named.allow_unmatched)
    lm.to(device).eval()
    stops = stop_token_ids(lm, tokenizer, named.stop_tokens)
    # What the folder sets (top-k, penalties, ...) is not what training sampled from.
    lm.generation_config = GenerationConfig(
        eos_token_id=list(stops), pad_token_id=tokenizer.pad_token_id, top_k=0, top_p=1.0
    )
    return ChatModel(named.name, named.path, lm, tokenizer, stops)


def _models_of(folder: Path) -> tuple[list[Named], Settings]:
    config = validate(read_config(folder / "config.yaml"), str(folder / "config.yaml"))
    policy = folder / FOLDERS["ppo"]
    if not policy.is_dir():
        raise UserError(
            f"{folder}: this run has left no {policy.name}/ yet. Let it finish, or name a model "
            "folder in it."
        )
    own = config.sft is not None
    reference = str(folder / FOLDERS["sft"]) if own else config.policy.path or ""
    stops = config.rollout.stop_tokens
    settings = Settings(
        temperature=config.rollout.temperature,
        system=config.data.system_prompt,
        max_new_tokens=config.rollout.max_new_tokens,
    )
    start = Named("reference", reference, stops, config.policy.allow_unmatched)
    models = [start, Named("policy", str(policy), stops)]
    return models, settings


def _told_apart(models: Sequence[Named]) -> Iterator[Named]:
    """Names that occur twice get the path in place."""
    names = [model.name for model in models]
    for model in models:
        twice = names.count(model.name) > 1
        yield replace(model, name=model.path) if twice else model
