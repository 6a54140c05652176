#!/usr/bin/env python
"""PPO alone: a model and a reward model -> <output_dir>/policy.

python scripts/ppo.py --config configs/quickstart.yaml --output_dir runs/quickstart
"""

from collections.abc import Sequence
from pathlib import Path

from rlhf_ppo.command_line import load_config
from rlhf_ppo.script import run_script

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"


def main(arguments: Sequence[str]) -> None:
    """Parse, then run this stage."""
    config = load_config(
        arguments, QUICKSTART, "PPO alone: a model and a reward model -> <output_dir>/policy."
    )
    from rlhf_ppo.pipeline import run_pipeline  # after parsing: --help needs no torch

    run_pipeline(config, ("ppo",))


if __name__ == "__main__":
    run_script(main)
