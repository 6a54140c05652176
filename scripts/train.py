#!/usr/bin/env python
"""The main job: supervised model -> reward model -> PPO -> evaluation, from one config.

accelerate launch scripts/train.py                                  the embedded default
accelerate launch scripts/train.py --config configs/lora_7b.yaml    your own
"""

from collections.abc import Sequence
from pathlib import Path

from rlhf_ppo.command_line import load_config
from rlhf_ppo.script import run_script

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"


def main(arguments: Sequence[str]) -> None:
    """Parse, then run all stages that the config describes."""
    config = load_config(arguments, QUICKSTART)
    from rlhf_ppo.pipeline import run_pipeline  # after parsing: --help needs no torch

    run_pipeline(config)


if __name__ == "__main__":
    run_script(main)
