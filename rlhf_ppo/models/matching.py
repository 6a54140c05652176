"""Whether the tensors of a file are those of the model: what is not there, is drawn at random.

Transformers and PEFT draw missing weights at random and go on, with a notice at most. A model that
is partly random scores, samples and trains as any other, so here each difference ends the load.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rlhf_ppo.errors import UserError

Shape = tuple[int, ...]
# What puts a prefix before every name, and how to save without it.
WRAPPERS = {
    "pretrained_model.": (
        "TRL's value-head wrapper; save the model inside: "
        "model.pretrained_model.save_pretrained(folder)"
    ),
    "module.": (
        "PyTorch's DistributedDataParallel; save the model inside: "
        "model.module.save_pretrained(folder)"
    ),
    "_orig_mod.": ("torch.compile; save the model inside: model._orig_mod.save_pretrained(folder)"),
    "_fsdp_wrapped_module.": (
        "PyTorch's FSDP; save with a full state dict "
        "(accelerator.get_state_dict(model) and unwrap_model)"
    ),
    "base_model.model.": (
        "a PEFT adapter around the model; merge and save it: "
        "model.merge_and_unload().save_pretrained(folder)"
    ),
}
# What older versions of Transformers saved beside the weights and newer ones compute: masks of
# attention and positions. The library passes over most of them itself, not over all.
COMPUTED = re.compile(
    r"(^|\.)((attn|attention)\.(bias|masked_bias|causal_mask)|rotary_emb\.inv_freq|position_ids)$"
)
SHOWN = 4  # names of each kind in a message


@dataclass(frozen=True)
class Differences:
    """Tensors in which a file and a model differ."""

    missing: Sequence[str] = ()  # in the model alone: drawn at random
    unexpected: Sequence[str] = ()  # in the file alone: not used
    mismatched: Sequence[tuple[str, Shape, Shape]] = ()  # name, shape in file and model: drawn too

    def without(self, patterns: Iterable[str]) -> "Differences":
        """What is left when names that match one of the shell patterns are allowed."""
        allowed = tuple(patterns)

        def kept(name: str) -> bool:
            return not any(fnmatchcase(name, pattern) for pattern in allowed)

        return Differences(
            sorted(name for name in self.missing if kept(name)),
            sorted(name for name in self.unexpected if kept(name)),
            sorted(found for found in self.mismatched if kept(found[0])),
        )

    def outside(self, trunk: str) -> list[str]:
        """Names that do not belong to the submodule `trunk`: heads. Poolers count as heads.

        They are what a trunk with another or a new head may differ in: the output layer of the
        language model goes, the head that is about to be trained comes.
        """
        names = [*self.missing, *self.unexpected, *(found[0] for found in self.mismatched)]
        inside = f"{trunk}."
        return [
            name
            for name in names
            if trunk and (not name.startswith(inside) or "pooler" in name.split("."))
        ]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.missing or self.unexpected or self.mismatched)


def check_match(found: Differences, path: str, setting: str, remedy: str) -> None:
    """The file holds the model, the whole model, and nothing else.

    Args:
        found: what is not allowed.
        path: folder or hub id.
        setting: for the message.
        remedy: what that means and what the user can do; goes on after a semicolon.

    Raises:
        UserError: names what is missing, of another shape, or not used.
    """
    if not found:
        return
    parts = []
    if found.missing:
        parts.append(f"lacks the weights [{_some(found.missing)}] (they would be drawn at random)")
    if found.mismatched:
        shown = [f"{name}: {file} in place of {model}" for name, file, model in found.mismatched]
        parts.append(f"holds weights of another shape [{_some(shown)}]")
    if found.unexpected:
        parts.append(f"holds weights that this model has no place for [{_some(found.unexpected)}]")
    why = wrapper_of(found) or remedy
    raise UserError(f"{setting}: {path!r} " + " and ".join(parts) + f"; {why}")


def wrapper_of(found: Differences) -> str | None:
    """What to do when the file's names are the model's behind a prefix; None: they are not."""
    missing = set(found.missing)
    prefixes: Counter[str] = Counter()
    for name in found.unexpected:
        within = next((mark for mark in WRAPPERS if name.replace(mark, "") in missing), None)
        if within is not None and within in name:  # FSDP marks each layer, not the start alone
            prefixes[within] += 1
            continue
        parts = name.split(".")
        cuts = (".".join(parts[start:]) for start in range(1, len(parts)))
        rest = next((cut for cut in cuts if cut in missing), None)
        if rest is not None:
            prefixes[name.removesuffix(rest)] += 1
    if not prefixes:
        return None
    prefix, times = prefixes.most_common(1)[0]
    if 2 * times < len(missing):
        return None
    known = next((text for start, text in WRAPPERS.items() if prefix.startswith(start)), None)
    cause = f": the mark of {known}" if known else ""
    return (
        f"in the file the names have {prefix!r} before them{cause}. Save the model again without "
        "it, or rename the tensors in the file."
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown}, ... {len(names)} in all"
