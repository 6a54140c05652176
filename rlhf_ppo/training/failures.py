"""Minibatches whose optimizer step was skipped, on disk for a person to look at."""

from dataclasses import fields
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from rlhf_ppo.algorithm.batch import Minibatch, Rows, Tokens

MOST = 5  # files a run: the first ones tell most, and a disk is soon full

README = """\
# Minibatches whose loss or gradient was not finite

Their optimizer steps were skipped: weights and optimizer stayed as they were. At most {most} are
kept. With fp16 a few at the start are usual: the loss scaler is finding its scale.

```python
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

rows = load_file("step-000012.safetensors")  # one entry a response
tokenizer = AutoTokenizer.from_pretrained("path/to/the/policy")
for name, tensor in rows.items():  # which numbers are not finite, and of which responses
    bad = ~tensor.isfinite()
    if bad.any():
        print(name, "responses", bad.reshape(len(bad), -1).any(dim=1).nonzero().flatten().tolist())
row = 0
length = rows["batch.tokens.prompt_lengths"][row]
print(tokenizer.decode(rows["batch.tokens.prompt_ids"][row][:length]))
mask = rows["batch.tokens.response_mask"][row]
print(tokenizer.decode(rows["batch.tokens.response_ids"][row][mask]))
```

All finite? Then the numbers went wrong in the forward or the backward pass: look at `weights`,
at `batch.advantages` and at `batch.returns` for very large ones. `ptx.*` are the rows of the
next-token loss in the same step. `rollback-1.jsonl` and so on are the lines of `metrics.jsonl`
that a rollback took back.
"""


def save_failure(folder: Path, step: int, minibatch: Minibatch, text: Tokens | None) -> None:
    """Write a minibatch as `failures/step-000012.safetensors`, beside how to read it.

    Args:
        folder: the run's `failures` folder; made if need be.
        step: PPO step; a second minibatch of a step adds nothing.
        minibatch: of all processes, on the CPU.
        text: rows of the next-token loss, if there were any.
    """
    file = folder / f"step-{step:06d}.safetensors"
    if file.exists() or len(list(folder.glob("step-*.safetensors"))) >= MOST:
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _flatten(minibatch)
    if text is not None:
        tensors |= _flatten(text, "ptx.")
    save_file(tensors, file)
    (folder / "README.md").write_text(README.format(most=MOST), encoding="utf-8")


def _flatten(rows: Rows, prefix: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for field in fields(rows):
        value = getattr(rows, field.name)
        if isinstance(value, Rows):
            found |= _flatten(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = value.detach().cpu().contiguous()
    return found
