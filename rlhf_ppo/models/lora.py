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

ADAPTER_FILE = "adapter_config.json"
POLICY = "default"  # PEFT's name: a saved adapter of that name lies at the top of its folder
REFERENCE, VALUE = "rlhf_reference", "rlhf_value"  # no module of a model is called so
RANK, ALPHA, TARGETS = 16, 32.0, ("all-linear",)


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


def is_adapter(path: str) -> bool:
    """Whether a folder holds a PEFT adapter in place of a whole model."""
    return (Path(path) / ADAPTER_FILE).is_file()


def read_adapter(path: str, setting: str) -> peft.PeftConfig:
    """What an adapter folder says of itself.

    Raises:
        UserError: damaged, or it does not name its base model.
    """
    try:
        found: peft.PeftConfig = peft.PeftConfig.from_pretrained(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{setting}: cannot read {Path(path) / ADAPTER_FILE}: {error}") from error
    if not found.base_model_name_or_path:
        raise UserError(
            f"{setting}: {Path(path) / ADAPTER_FILE} does not name its base model; set "
            "base_model_name_or_path there."
        )
    return found


def base_path(path: str, setting: str) -> str:
    """Where the weights of a model are: the base of an adapter folder, else `path` itself."""
    return str(read_adapter(path, setting).base_model_name_or_path) if is_adapter(path) else path


def check_start(path: str, lora: LoraConfig, setting: str) -> None:
    """The adapter at `path` can be trained on, and the settings say nothing else of it.

    Raises:
        UserError: it is not plain LoRA, or has another shape than `lora` asks for.
    """
    found: Any = read_adapter(path, setting)
    kind = str(getattr(found.peft_type, "value", found.peft_type))
    extras = [name for name in ("modules_to_save", "trainable_token_indices") if _has(found, name)]
    if kind != "LORA" or extras or found.bias != "none":
        what = f"trains {extras[0]}" if extras else f"is of type {kind}"
        if kind == "LORA" and not extras:
            what = f"trains biases (bias = {found.bias})"
        raise UserError(
            f"{setting}: the adapter {path} {what}; only plain LoRA can be trained on. Set lora to "
            "null: then it is merged into its base and all weights are trained."
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


def _has(config: Any, name: str) -> bool:
    return bool(getattr(config, name, None))


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
    if str(getattr(settings.peft_type, "value", settings.peft_type)) != "LORA":
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
