#!/usr/bin/env python
"""Time our PPO step on one CPU core, alone or in alternation with TRL 1.12.0, the last with PPO.

OMP_NUM_THREADS=1 taskset -c 0 python scripts/benchmark.py --shape S
... --peer_python PEER/bin/python --peer_script PEER/trl_ppo.py    see docs/performance.md
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rlhf_ppo.script import run_script


def main(arguments: Sequence[str]) -> None:
    """Parse, make the models, measure, show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="S", help="XS, S: 4 million parameters, M: 34, W: 55")
    parser.add_argument(
        "--variants", default="shared,separate", help="shared, separate, lora, bf16"
    )
    parser.add_argument("--scaling", help="vary one of prompts, response, vocabulary instead")
    parser.add_argument(
        "--memory", action="store_true", help="LoRA PPO beside a LoRA supervised step instead"
    )
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each side")
    parser.add_argument("--peer_python", help="Python of an environment with TRL 1.12.0")
    parser.add_argument("--peer_script", help="its benchmark script")
    parser.add_argument("--out", type=Path, help="write all numbers here, as JSON")
    words = parser.parse_args(arguments)
    from rlhf_ppo.benchmark.compare import check, run_benchmark, table
    from rlhf_ppo.benchmark.memory import memory_table, run_memory
    from rlhf_ppo.benchmark.scaling import run_scaling, scaling_table

    variants = words.variants.split(",")
    check(words.shape, variants, words.steps, (words.peer_python, words.peer_script), words.scaling)
    if words.scaling is not None:
        result = run_scaling(words.scaling, words.steps, words.shape)
        shown = scaling_table(result)
    elif words.memory:
        result = run_memory(words.shape, words.steps)
        shown = memory_table(result)
    else:
        peer = (words.peer_python, words.peer_script) if words.peer_python else None
        result = run_benchmark(words.shape, variants, words.steps, peer)
        shown = table(result)
    if words.out is not None:
        words.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(shown)


if __name__ == "__main__":
    run_script(main)
