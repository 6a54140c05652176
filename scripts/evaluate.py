#!/usr/bin/env python
"""Evaluation alone: policy against reference on held-out prompts -> <output_dir>/evaluation.

python scripts/evaluate.py --config configs/quickstart.yaml --output_dir runs/quickstart
"""

from collections.abc import Sequence
from pathlib import Path

from rlhf_ppo.command_line import load_config
from rlhf_ppo.script import run_script

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"


def main(arguments: Sequence[str]) -> None:
    """Parse, then run this stage."""
    config = load_config(
        arguments,
        QUICKSTART,
        "Evaluation alone: policy against reference on held-out prompts.",
    )
    from rlhf_ppo.pipeline import run_pipeline  # after parsing: --help needs no torch

    run_pipeline(config, ("evaluation",))


if __name__ == "__main__":
    run_script(main)
