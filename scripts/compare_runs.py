#!/usr/bin/env python
"""Runs beside one another: settings that differ, means over seeds, run against run.

python scripts/compare_runs.py runs/mine runs/other        any folders of finished runs
"""

from collections.abc import Sequence
from pathlib import Path

from rlhf_ppo.errors import UserError
from rlhf_ppo.script import run_script


def main(arguments: Sequence[str]) -> None:
    """Read the runs, print the tables."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError(
            "give the folders of finished runs; runs that differ in seed are one method."
        )
    from rlhf_ppo.report.compare import comparison_text  # after parsing: it needs some seconds

    print(comparison_text([Path(argument) for argument in arguments]))


if __name__ == "__main__":
    run_script(main)
