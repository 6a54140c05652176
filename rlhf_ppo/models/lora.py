"""LoRA adapters (Hu et al. 2021), by PEFT: several on one base, one in use at a time."""

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, load_peft_weights
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_ppo.config import LoraConfig
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.files import (
    ADAPTER_FILE,
    ADAPTER_WEIGHTS,
    loading,
    stored_shapes,
)
from rlhf_ppo.models.files import is_adapter as is_adapter
from rlhf_ppo.models.matching import Differences
from rlhf_ppo.seeds import drawing

POLICY = "default"  # PEFT's name: a saved adapter of that name lies at the top of its folder
REFERENCE, VALUE = "rlhf_reference", "rlhf_value"  # no module of a model is called so
RANK, ALPHA, TARGETS = 16, 32.0, ("all-linear",)
# What PEFT puts between the name of a layer and that of its weight.
OF_PEFT = re.compile(r"\.(base_layer|original_module|token_adapter)(\..*)?$")
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


def fresh_adapter(
    model: Any, lora: LoraConfig, task: Literal["CAUSAL_LM", "SEQ_CLS"], seed: int
) -> Any:
    """The model with a new adapter, which changes nothing until it is trained.

    Args:
        model: the base, frozen from now on.
        lora: settings.
        task: SEQ_CLS: the head is trained as a whole, in float32 like the adapter's own weights.
        seed: of the first weights of the matrices A (Hu et al. 2021, section 4.1).

    Raises:
        UserError: PEFT cannot put an adapter on the layers of `lora.target_modules`.
    """
    with drawing(seed), loading("a new adapter", str(model.name_or_path), "lora"):
        adapted: Any = peft.get_peft_model(model, peft_config(lora, task))
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for head in module.modules_to_save.values():
                head.float().register_forward_pre_hook(_to_float)
    return adapted


def _to_float(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a head in float32 is given by a trunk in half precision."""
    return tuple(x.float() if isinstance(x, torch.Tensor) else x for x in arguments)


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


def attach_adapter(
    model: Any, path: str, setting: str, *, trained: bool, any_task: bool = False
) -> tuple[Any, Differences]:
    """Put the adapter of a folder on its base, and say in what its file differs from it.

    Args:
        model: the base; without data, the adapter's headers alone are compared.
        path: the adapter's folder.
        setting: for messages.
        trained: its weights are about to be trained.
        any_task: whatever task it was made for, wrap the base as a plain model.

    Raises:
        UserError: PEFT cannot read it, or it does not go on this base.
    """
    empty = next(model.parameters()).is_meta
    settings: Any = read_adapter(path, setting)
    settings.inference_mode = not trained
    if any_task:
        settings.task_type = None
    if empty and hasattr(settings, "init_lora_weights"):
        settings.init_lora_weights = False  # some kinds are computed from the base's weights
    if settings.is_prompt_learning:  # what it puts before a text is no part of any layer
        raise UserError(
            f"{setting}: the adapter {path} (type {_type(settings)}) cannot be merged into its "
            "base; only adapters of its layers can, such as LoRA."
        )
    with loading("the adapter", path, setting, ADAPTER_WEIGHTS):
        kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(settings.task_type, peft.PeftModel)
        adapted = kind(model, settings, POLICY, low_cpu_mem_usage=empty)
        result = adapted.load_adapter(path, POLICY, is_trainable=trained, low_cpu_mem_usage=empty)
        stored = stored_shapes(path)
    saved = f".modules_to_save.{POLICY}"
    whole = [key.replace(saved, "") for key, _ in adapted.named_parameters() if saved in key]
    missing = [*result.missing_keys, *(key for key in whole if key not in stored)]
    return adapted, Differences(_plain(missing), _plain(result.unexpected_keys))


def merge_adapter(adapted: Any, path: str, setting: str) -> Any:
    """The base with the adapter of a folder merged in.

    Raises:
        UserError: see `check_mergeable`.
    """
    check_mergeable(adapted, path, setting)
    with loading("the adapter", path, setting):
        merged: Any = adapted.merge_and_unload()
    return merged.requires_grad_(True)  # PEFT froze its base


def check_mergeable(adapted: Any, path: str, setting: str) -> None:
    """The adapter of a folder computes the same when it is merged into its base.

    Raises:
        UserError: it does not.
    """
    remedy = "Merge it where it was trained, into a model whose weights are not tied."
    check_tied(adapted, f"{setting}: {path} has an adapter", remedy)


def check_tied(adapted: Any, what: str, remedy: str) -> None:
    """No adapter is on a weight that serves two modules, such as embedding and output layer.

    Merged, it would change both, and the model that was trained has it in one alone.

    Raises:
        UserError: names the modules.
    """
    base = adapted.get_base_model()
    places: dict[int, set[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        owner = OF_PEFT.sub("", name.rpartition(".")[0])
        places.setdefault(id(parameter), set()).add(owner)
    tied = {name: owners for owners in places.values() if len(owners) > 1 for name in owners}
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    hit = sorted(n for n, module in base.named_modules() if isinstance(module, kinds) and n in tied)
    if hit:
        raise UserError(
            f"{what} on {', '.join(hit)}, and the weights there are those of "
            f"{', '.join(sorted(tied[hit[0]] - {hit[0]}))} as well (tied). Merged, the adapter "
            f"would change both, so the saved model would not be the one that was trained. {remedy}"
        )


def check_targets(model: Any, lora: LoraConfig) -> None:
    """Each entry of `lora.target_modules` names layers of the policy, none of them tied.

    Args:
        model: the policy without data; it is of no use afterwards.
        lora: settings.

    Raises:
        UserError: names the entry, and what there is.
    """
    setting, wanted = "lora.target_modules", lora.target_modules or TARGETS
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    kinds = sorted({name.rpartition(".")[2] for name in names})
    known = {name for name, _ in model.named_modules()}
    for target in wanted if wanted != TARGETS else ():
        if not any(name == target or name.endswith(f".{target}") for name in known):
            raise UserError(
                f"{setting}: {target!r} is no layer of the policy ({type(model).__name__}). Its "
                f"linear layers are {', '.join(kinds)}; ['all-linear'] means all but the output "
                "layer."
            )
    with loading("adapters", ", ".join(wanted), setting):
        adapted = peft.get_peft_model(model, peft_config(lora, "CAUSAL_LM"), low_cpu_mem_usage=True)
    check_tied(adapted, f"{setting}: an adapter", f"Leave it out of {setting}.")


def _plain(names: Iterable[str]) -> list[str]:
    """PEFT's names of tensors as in the model without an adapter."""
    return sorted(n.removeprefix("base_model.model.").replace(f".{POLICY}", "") for n in names)


def _type(settings: Any) -> str:
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
    if _type(settings) != "LORA":
        return f"is of type {_type(settings)}"
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
