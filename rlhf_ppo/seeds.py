"""Seeds by purpose: what one part of a run draws at random never depends on what another drew."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from names and numbers; other parts give an unrelated seed."""
    text = "/".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Inside, PyTorch's global generators start from `seed`; that of the CPU is restored after.

    For code of other libraries that takes no generator of its own, such as new layers and adapters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
