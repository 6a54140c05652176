"""Adapters put on a base and merged into it: new ones, and those of other people's folders."""

import re
import warnings
from collections.abc import Iterable
from typing import Any, Literal

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_ppo.config import LoraConfig
from rlhf_ppo.errors import UserError
from rlhf_ppo.models.files import ADAPTER_WEIGHTS, loading, stored_shapes
from rlhf_ppo.models.lora import POLICY, TARGETS, kind_of, peft_config, read_adapter
from rlhf_ppo.models.matching import Differences
from rlhf_ppo.seeds import drawing

# What PEFT puts between the name of a layer and that of its weight.
OF_PEFT = re.compile(r"\.(base_layer|original_module|token_adapter)(\..*)?$")


def fresh_adapter(
    model: Any, lora: LoraConfig, task: Literal["CAUSAL_LM", "SEQ_CLS"], seed: int
) -> Any:
    """The model with a new adapter, which changes nothing until it is trained.

    Args:
        model: the base, frozen from now on.
        lora: settings.
        task: SEQ_CLS: the head, pooler included, is trained and saved as a whole, in float32 like
            the adapter's own weights.
        seed: of the first weights of the matrices A (Hu et al. 2021, section 4.1).

    Raises:
        UserError: PEFT cannot put an adapter on the layers of `lora.target_modules`.
    """
    settings = peft_config(lora, task)
    if task == "SEQ_CLS":
        heads = head_modules(model)
        inside = tuple(f"{head}." for head in heads)
        settings.modules_to_save = heads
        settings.exclude_modules = [
            name for name, _ in model.named_modules() if name in heads or name.startswith(inside)
        ]
    with (
        drawing(seed),
        loading("a new adapter", str(model.name_or_path), "lora"),
        warnings.catch_warnings(),
    ):
        # Often the targets are in the trunk alone, and excluding the head changes nothing.
        warnings.filterwarnings("ignore", "You have passed exclude_modules")
        adapted: Any = peft.get_peft_model(model, settings)
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for head in module.modules_to_save.values():
                head.float().register_forward_pre_hook(_to_float)
    return adapted


def head_modules(model: Any) -> list[str]:
    """The modules of a classification model that a checkpoint of its trunk may lack.

    All beside the trunk, and a pooler in it: what was drawn at random and not saved with the
    adapter would be another at the next load.
    """
    trunk = model.base_model_prefix
    beside = [name for name, module in model.named_children() if name != trunk and _holds(module)]
    poolers = [
        f"{trunk}.{name}"
        for name, module in getattr(model, trunk, nn.Module()).named_children()
        if name == "pooler" and _holds(module)
    ]
    return beside + poolers


def _holds(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _to_float(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a head in float32 is given by a trunk in half precision."""
    return tuple(x.float() if isinstance(x, torch.Tensor) else x for x in arguments)


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
            f"{setting}: the adapter {path} (type {kind_of(settings)}) cannot be merged into its "
            "base; only adapters of its layers can, such as LoRA."
        )
    with loading("the adapter", path, setting, ADAPTER_WEIGHTS):
        kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(settings.task_type, peft.PeftModel)
        adapted = kind(model, settings, POLICY, low_cpu_mem_usage=empty)
        stored, saved = stored_shapes(path), f".modules_to_save.{POLICY}"
        whole = [key.replace(saved, "") for key, _ in adapted.named_parameters() if saved in key]
        heads = [key for key in whole if key not in stored]
        if heads:  # PEFT ends with a KeyError
            return adapted, Differences(_plain(heads))
        result = adapted.load_adapter(path, POLICY, is_trainable=trained, low_cpu_mem_usage=empty)
    return adapted, Differences(_plain(result.missing_keys), _plain(result.unexpected_keys))


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
