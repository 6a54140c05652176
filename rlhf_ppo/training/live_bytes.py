"""How much memory is there, is held, and is taken by tensors."""

import os
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and still alive."""

    def __init__(self) -> None:
        """Nothing is alive yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let an operator run, and count what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        name, size = id(storage), storage.nbytes()
        if name in self._known:
            return
        self._known.add(name)
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed() -> None:
            self._known.discard(name)
            self.now -= size

        weakref.finalize(storage, freed)

    def extra(self, resident: int) -> int:
        """Most bytes since the last call beyond those that stay; begins anew."""
        most = self.peak - resident
        self.peak = self.now
        return most


def available_bytes(device: str) -> int | None:
    """Free memory of this process's device; None where the system does not say."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def held_bytes(device: str) -> int:
    """What this process holds of that memory already: its imports and data; 0 where unknown."""
    if device == "cuda":
        return 0  # `available_bytes` counts from here
    try:
        pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def gib(size: int) -> str:
    """A number of bytes as people read it."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"
