"""Sampling noise that belongs to a prompt, not to a process or a batch.

One uniform number a token, drawn from a generator seeded by (seed, purpose, step, prompt). So a
prompt gets the same response whatever batch, order or process it lands in, and a resumed run needs
no random state at all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_ppo.seeds import derive_seed as derive_seed


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded from names and numbers."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def sampling_noise(
    seed: int, purpose: str, step: int, prompt_rows: Sequence[int], max_new_tokens: int
) -> Tensor:
    """Uniform numbers in [0, 1), (B, max_new_tokens) float64.

    A prompt that stands twice in `prompt_rows` gets other numbers the second time.
    """
    copies: dict[int, int] = {}
    rows = []
    for row in prompt_rows:
        copy = copies.get(row, 0)
        copies[row] = copy + 1
        source = generator(seed, purpose, step, row, copy)
        rows.append(torch.rand(max_new_tokens, generator=source, dtype=torch.float64))
    return torch.stack(rows)
