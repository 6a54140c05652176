"""Which prompts are in step k: a pure function, so that a resumed run needs no state."""

import torch


def step_rows(prompts: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Row numbers of the prompts of one step.

    The data set is walked in a fresh permutation each pass; no prompt is dropped at the end of a
    pass, a step may reach into the next one.

    Args:
        prompts: size of the data set, at least `batch_size`.
        batch_size: prompts a step, over all processes.
        step: from 1.
        seed: of the permutations.
    """
    start = (step - 1) * batch_size
    rows: list[int] = []
    while len(rows) < batch_size:
        epoch, offset = divmod(start + len(rows), prompts)
        rows.extend(_permutation(prompts, seed, epoch)[offset : offset + batch_size - len(rows)])
    return rows


def _permutation(size: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    return order
