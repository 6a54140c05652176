#!/usr/bin/env python
"""Sizes and memory of a run, before anything is loaded; exit code 2 if it cannot fit.

python scripts/plan.py --config configs/lora_7b.yaml
"""

from collections.abc import Sequence
from pathlib import Path

from rlhf_ppo.command_line import load_config
from rlhf_ppo.script import run_script

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"


def main(arguments: Sequence[str]) -> None:
    """Parse, check everything, show."""
    config = load_config(arguments, QUICKSTART, "Sizes and memory of a run; nothing is written.")
    from rlhf_ppo.pipeline import show_plans  # after parsing: --help needs no torch

    show_plans(config)


if __name__ == "__main__":
    run_script(main)
