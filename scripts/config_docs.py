#!/usr/bin/env python
"""Bring docs/config.schema.json and the tables of docs/configuration.md up to date.

python scripts/config_docs.py            write them
python scripts/config_docs.py --check    only say whether they are current (exit code 2: no)
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rlhf_ppo.config.documents import schema_text, with_tables
from rlhf_ppo.errors import UserError
from rlhf_ppo.script import run_script

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main(arguments: Sequence[str]) -> None:
    """Write, or compare."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--check", action="store_true")
    words = parser.parse_args(arguments)
    page = DOCS / "configuration.md"
    wanted = {
        DOCS / "config.schema.json": schema_text(),
        page: with_tables(page.read_text(encoding="utf-8")),
    }
    for file, text in wanted.items():
        found = file.read_text(encoding="utf-8") if file.is_file() else ""
        if words.check and found != text:
            raise UserError(f"{file} is not current; run python scripts/config_docs.py.")
        if found != text:
            file.write_text(text, encoding="utf-8")
            print(f"written: {file}")


if __name__ == "__main__":
    run_script(main)
