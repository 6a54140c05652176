"""One process of the memory benchmark: a plain LoRA supervised step, each time a line comes in.

    python -m rlhf_ppo.benchmark.supervised ASSETS RANK TOKENS [count]

What anyone would write with Transformers and PEFT, and nothing of ours: the model's own loss on
rows without padding, AdamW on the adapters.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
from transformers import AutoModelForCausalLM

from rlhf_ppo.benchmark.worker import memory_mb
from rlhf_ppo.console import quieten_libraries
from rlhf_ppo.training.live_bytes import LiveBytes

LENGTH = 128  # tokens of a row
MICRO_BATCHES = 2  # of a step


def main(assets: str, rank: str, tokens: str, count: str = "") -> None:
    """Build, then make a step for each line."""
    quieten_libraries()
    torch.set_num_threads(1)
    with LiveBytes() if count else nullcontext() as live:
        _steps(assets, rank, tokens, live)


def _steps(assets: str, rank: str, tokens: str, live: LiveBytes | None) -> None:
    imported = memory_mb("VmRSS")
    base = AutoModelForCausalLM.from_pretrained(Path(assets) / "policy")
    settings = peft.LoraConfig(r=int(rank), target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, settings).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    generator = torch.Generator().manual_seed(1)
    rows = (int(tokens) // LENGTH, LENGTH)
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        for _ in range(MICRO_BATCHES):
            ids = torch.randint(3, base.config.vocab_size, rows, generator=generator)
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        row = {"memory_mb": memory_mb("VmHWM") - imported}
        if live is not None:
            row["tensors_mb"] = live.peak / 2**20
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
