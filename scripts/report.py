#!/usr/bin/env python
"""The report of a run at any time, also while it trains; or several runs over one another.

python scripts/report.py runs/quickstart                          -> its evaluation/report.html
python scripts/report.py runs/a runs/b --out compare.html
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rlhf_ppo.errors import UserError
from rlhf_ppo.script import run_script


def main(arguments: Sequence[str]) -> None:
    """Parse, read, draw, say where."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="output_dir of a run, or of several")
    parser.add_argument("--out", type=Path, help="the HTML file; needed for several runs")
    known = parser.parse_args(arguments)
    from rlhf_ppo.report.page import (
        write_comparison,
        write_report,
    )  # after parsing: --help is quick

    if len(known.runs) == 1:
        print(write_report(known.runs[0], known.out))
        return
    if known.out is None:
        raise UserError("--out: say where the comparison goes, as in --out compare.html.")
    print(write_comparison(known.runs, known.out))


if __name__ == "__main__":
    run_script(main)
