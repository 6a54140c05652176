"""LoRA adapters (Hu et al. 2021), by PEFT: several on one base, one in use at a time."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from torch import nn

from rlhf_ppo.config import LoraConfig
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.files import (
    ADAPTER_FILE,
    loading,
)
from rlhf_ppo.models.files import is_adapter as is_adapter

POLICY = "default"  # PEFT's name: a saved adapter of that name lies at the top of its folder
REFERENCE, VALUE = "rlhf_reference", "rlhf_value"  # no module of a model is called so
RANK, ALPHA, TARGETS = 16, 32.0, ("all-linear",)
# What LoRA can be set to and still be what the run's own code takes it for: two small matrices a
# layer, added to the layer's output, that leave the base as it is.
PLAIN = {
    *("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path"),
    *("revision", "inference_mode", "runtime_config", "r", "lora_alpha", "lora_dropout"),
    *("target_modules", "exclude_modules", "fan_in_fan_out", "bias", "use_rslora", "use_dora"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("alpha_pattern", "qalora_group_size", "megatron_core", "loftq_config"),
}
PLAIN_STARTS = (True, False, "gaussian", "orthogonal")  # the others change the base as well


def peft_config(lora: LoraConfig, task: Literal["CAUSAL_LM", "SEQ_CLS"]) -> peft.LoraConfig:
    """Our settings in PEFT's words; no dropout, as everywhere."""
    modules = lora.target_modules or TARGETS
    return peft.LoraConfig(
        r=lora.rank or RANK,
        lora_alpha=lora.alpha or ALPHA,  # type: ignore[arg-type]  # peft divides it, nothing more
        lora_dropout=0.0,
        target_modules=modules[0] if modules == ("all-linear",) else list(modules),
        task_type=task,
    )


def read_adapter(path: str, setting: str) -> peft.PeftConfig:
    """What an adapter folder says of itself.

    Raises:
        UserError: damaged, or it does not name its base model.
    """
    with loading(ADAPTER_FILE, path, setting, [ADAPTER_FILE]):
        found: peft.PeftConfig = peft.PeftConfig.from_pretrained(path)
    if not found.base_model_name_or_path:
        raise UserError(
            f"{setting}: {Path(path) / ADAPTER_FILE} does not name its base model; set "
            "base_model_name_or_path there."
        )
    return found


def base_path(path: str, setting: str) -> str:
    """Where the weights of a model are: the base of an adapter folder, else `path` itself.

    A relative path in an adapter's settings is taken from the current folder, as PEFT takes it, or
    else from the adapter's own.
    """
    if not is_adapter(path):
        return path
    named = str(read_adapter(path, setting).base_model_name_or_path)
    beside = Path(path) / named
    return str(beside) if not Path(named).exists() and beside.is_dir() else named


def kind_of(settings: Any) -> str:
    """PEFT's name of its type, as LORA."""
    return str(getattr(settings.peft_type, "value", settings.peft_type))


def check_start(path: str, lora: LoraConfig, setting: str) -> None:
    """The adapter at `path` can be trained on, and the settings say nothing else of it.

    Raises:
        UserError: it is not plain LoRA, or has another shape than `lora` asks for.
    """
    found: Any = read_adapter(path, setting)
    extra = beyond_plain(found)
    if extra is not None:
        raise UserError(
            f"{setting}: the adapter {path} {extra}; only plain LoRA can be trained on. Set lora "
            "to null: then it is merged into its base and all weights are trained."
        )
    targets = found.target_modules
    asked = {"rank": (lora.rank, found.r), "alpha": (lora.alpha, found.lora_alpha)}
    if lora.target_modules not in (None, TARGETS):
        asked["target_modules"] = (sorted(lora.target_modules or ()), sorted(targets))  # type: ignore[assignment]
    for name, (wanted, there) in asked.items():
        if wanted is not None and wanted != there:
            raise UserError(
                f"lora.{name} = {wanted}: the run goes on with the adapter {path}, which has "
                f"{there}. Leave lora.{name} out."
            )


def beyond_plain(settings: Any) -> str | None:
    """What in an adapter's settings is more than plain LoRA; None: nothing."""
    if kind_of(settings) != "LORA":
        return f"is of type {kind_of(settings)}"
    if settings.bias != "none":
        return f"trains biases (bias = {settings.bias})"
    if settings.init_lora_weights not in PLAIN_STARTS:
        return f"changes its base (init_lora_weights = {settings.init_lora_weights})"
    plain = peft.LoraConfig()
    for name in sorted(vars(plain).keys() - PLAIN):
        value = getattr(settings, name, None)
        if value and value != getattr(plain, name):
            verb = "trains" if name in ("modules_to_save", "trainable_token_indices") else "uses"
            return f"{verb} {name}"
    return None


@contextmanager
def using_adapter(lm: nn.Module, name: str | None) -> Iterator[None]:
    """Inside, a model computes with one of its adapters, or with none; afterwards as before.

    PEFT's own switches also decide which adapters are trained; here that stays as it is, because
    policy and value adapter are trained at the same time.
    """
    layers: list[Any] = _adapted_layers(lm)
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._disable_adapters = name is None
        if name is not None:
            layer._active_adapter = [name]
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def checkpoint_contexts(
    lm: nn.Module,
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For gradient checkpointing: what a layer computed with an adapter, it computes again with it.

    The backward pass of both adapters comes after the forward passes, when one of them is in use.
    """
    first: Any = next((m for m in lm.modules() if isinstance(m, BaseTunerLayer)), None)
    if first is None or first.disable_adapters:
        return nullcontext(), using_adapter(lm, None)
    return nullcontext(), using_adapter(lm, first.active_adapters[0])


def copy_policy_adapter(lm: Any, name: str, *, trained: bool) -> None:
    """Add an adapter that is the policy's as it now stands, on the same base."""
    settings = deepcopy(lm.peft_config[POLICY])
    settings.lora_dropout = 0.0
    lm.add_adapter(name, settings)
    found = dict(lm.named_parameters())
    with torch.no_grad():
        for key in adapter_parameters(lm, name):
            found[key].copy_(found[key.replace(f".{name}", f".{POLICY}")])
            found[key].requires_grad_(trained)


def add_saved_adapter(lm: Any, name: str, path: str) -> bool:
    """Put the frozen adapter of a folder on a model that stands on the same base.

    Args:
        lm: a model with LoRA adapters.
        name: of the new one.
        path: the folder; what it holds besides LoRA weights (a head) is left aside.

    Returns:
        Whether all its weights found their place; if not, nothing was added.
    """
    settings: Any = peft.PeftConfig.from_pretrained(path)
    own = deepcopy(settings)
    own.modules_to_save = None
    if beyond_plain(own) is not None:
        return False
    weights = {
        key: value for key, value in load_peft_weights(path, device="cpu").items() if "lora_" in key
    }
    add_frozen_adapter(lm, name, settings)
    places = {key.replace(f".{name}", ""): p for key, p in adapter_parameters(lm, name).items()}
    same = weights.keys() == places.keys() and all(
        weights[key].shape == place.shape for key, place in places.items()
    )
    if not same:
        lm.delete_adapter(name)
        return False
    with torch.no_grad():
        for key, place in places.items():
            place.copy_(weights[key])
    return True


def add_frozen_adapter(lm: Any, name: str, settings: Any) -> None:
    """Add an adapter of a given shape that is never trained; its head, if it has one, is left out.

    Args:
        lm: a model with LoRA adapters.
        name: of the new one.
        settings: a `peft.LoraConfig`.
    """
    own = deepcopy(settings)
    own.modules_to_save, own.lora_dropout, own.inference_mode = None, 0.0, True
    lm.add_adapter(name, own)
    for parameter in adapter_parameters(lm, name).values():
        parameter.requires_grad_(False)


def adapter_parameters(lm: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The weights of one adapter, by their names in the model."""
    return {key: p for key, p in lm.named_parameters() if f".{name}." in f"{key}."}


def _adapted_layers(lm: nn.Module) -> list[Any]:
    return [module for module in lm.modules() if isinstance(module, BaseTunerLayer)]
