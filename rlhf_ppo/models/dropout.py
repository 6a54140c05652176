"""Dropout off: by what a module holds, under whatever name and of whatever class.

With noise in the policy the probability ratio is not 1 before the first step, and the reference and
the reward model score one response differently twice.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PretrainedConfig

# Parts of the names of probabilities: `attn_pdrop`, `layerdrop`, `drop_path_rate`, `dropout_p`;
# `router_jitter_noise`, `moe_jitter_eps` (noise in a router of experts).
NOISE = ("drop", "jitter")
# PhiMoE's bounds which experts a token may go to, in evaluation as well.
NO_NOISE = {"phimoe": {"router_jitter_noise", "jitter_noise"}}


def disable_dropout(model: nn.Module) -> None:
    """Set every source of noise in training mode to 0: in modules and in configurations.

    Families keep a probability as a module of PyTorch, as one of their own (DeBERTa's), or as a
    number that a function reads, from the module (OPT, XGLM) or from the configuration.
    """
    kept = NO_NOISE.get(getattr(getattr(model, "config", None), "model_type", ""), set())
    for module in model.modules():
        own = "drop" in type(module).__name__.lower()  # of one that does nothing else, all numbers
        for name, value in list(vars(module).items()):
            if _is_probability(value) and name not in kept and (own or _names_noise(name)):
                setattr(module, name, 0.0)
    for config in _configurations(model):
        for name, value in list(vars(config).items()):
            if _is_probability(value) and name not in kept and _names_noise(name):
                setattr(config, name, 0.0)


def _configurations(model: nn.Module) -> Iterator[PretrainedConfig]:
    """Every configuration that a module may read, with those inside it."""
    seen: set[int] = set()
    waiting: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    while waiting:
        config = waiting.pop()
        if isinstance(config, PretrainedConfig) and id(config) not in seen:
            seen.add(id(config))
            waiting += list(vars(config).values())
            yield config


def _names_noise(name: str) -> bool:
    return any(part in name.lower() for part in NOISE)


def _is_probability(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
