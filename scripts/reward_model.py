#!/usr/bin/env python
"""Reward model alone: data.preferences -> <output_dir>/reward_model.

python scripts/reward_model.py --config configs/quickstart.yaml --output_dir runs/quickstart
"""

from collections.abc import Sequence
from pathlib import Path

from rlhf_ppo.command_line import load_config
from rlhf_ppo.script import run_script

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"


def main(arguments: Sequence[str]) -> None:
    """Parse, then run this stage."""
    config = load_config(
        arguments, QUICKSTART, "Reward model alone: data.preferences -> <output_dir>/reward_model."
    )
    from rlhf_ppo.pipeline import run_pipeline  # after parsing: --help needs no torch

    run_pipeline(config, ("reward_model",))


if __name__ == "__main__":
    run_script(main)
