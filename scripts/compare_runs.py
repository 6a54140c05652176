#!/usr/bin/env python
"""A table of runs that differ in method and seed, each with its mean over seeds and interval.

python scripts/compare_runs.py runs/experiments/*-*      folders named <method>-<seed>
"""

from collections.abc import Sequence
from pathlib import Path

from rlhf_ppo.errors import UserError
from rlhf_ppo.script import run_script


def main(arguments: Sequence[str]) -> None:
    """Read each run's `evaluation/summary.json`, print the table."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError("give the folders of finished runs, each named <method>-<seed>.")
    from rlhf_ppo.evaluation.compare import compare  # after parsing: it needs torch

    print(compare([Path(argument) for argument in arguments]))


if __name__ == "__main__":
    run_script(main)
