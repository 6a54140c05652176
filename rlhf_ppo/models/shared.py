"""The policy's base model, on which a reward model stands too, by an adapter of its own."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlhf_ppo.models.forward import find_trunk
from rlhf_ppo.models.load import DTYPES, read_head
from rlhf_ppo.models.lora import add_saved_adapter, base_path, is_adapter, using_adapter
from rlhf_ppo.models.policy import base_model


@dataclass(frozen=True)
class SharedBase:
    """A base model with the policy's adapter, and the folder or hub id the base came from."""

    lm: Any  # peft.PeftModel
    path: str
    dtype: str

    def classifier(
        self, path: str, dtype: str, name: str, setting: str
    ) -> tuple[PreTrainedModel, Callable[[], AbstractContextManager[None]]] | None:
        """A reward model on this base, and the context in which it is one; None: it needs its own.

        Args:
            path: folder of an adapter with a score head.
            dtype: that the reward model's weights should have.
            name: of the reward source.
            setting: for messages.

        Raises:
            UserError: the adapter's settings cannot be read.
        """
        if not is_adapter(path) or dtype != self.dtype:
            return None
        head = read_head(path)
        if head is None or not same_model(base_path(path, setting), self.path):
            return None
        model = _around(find_trunk(base_model(self.lm)), base_model(self.lm), head["weight"])
        adapter = f"rlhf_reward_{name.replace('/', '_')}"
        if model is None or not add_saved_adapter(self.lm, adapter, path):
            return None
        score: Any = getattr(model, "score")  # noqa: B009
        score.load_state_dict({key: value.to(DTYPES[dtype]) for key, value in head.items()})
        return model, partial(using_adapter, self.lm, adapter)


def _around(trunk: nn.Module, lm: PreTrainedModel, weight: torch.Tensor) -> PreTrainedModel | None:
    """The classification model of the same family around a trunk that is there already."""
    config = deepcopy(lm.config)
    config.num_labels = len(weight)
    attention: Any = getattr(trunk, "config", config)._attn_implementation
    try:
        with torch.device("meta"):  # nothing of it is kept but its forward pass
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
                config, attn_implementation=attention
            )
    except ValueError:  # the family has no such model
        return None
    score = getattr(model, "score", None)
    if type(model.base_model) is not type(trunk) or not isinstance(score, nn.Linear):
        return None
    setattr(model, model.base_model_prefix, trunk)
    made = nn.Linear(score.in_features, score.out_features, bias=score.bias is not None)
    setattr(model, "score", made.to(weight.device, lm.dtype).requires_grad_(False))  # noqa: B010
    return model


def same_model(one: str, other: str) -> bool:
    """Whether two folders or hub ids are one model."""
    if Path(one).is_dir() and Path(other).is_dir():
        return Path(one).resolve() == Path(other).resolve()
    return one == other
