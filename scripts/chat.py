#!/usr/bin/env python
"""Talk to a run's policy and its reference, or to any models, side by side.

python scripts/chat.py runs/quickstart                  a run folder: reference and policy
python scripts/chat.py runs/a/policy my_adapter gpt2    model folders, adapter folders, hub ids
python scripts/chat.py runs/quickstart --web            on a page of this machine
"""

import argparse
from collections.abc import Sequence

from rlhf_ppo.console import begin
from rlhf_ppo.script import run_script


def main(arguments: Sequence[str]) -> None:
    """Parse, load, talk."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--temperature", help="0: greedy (default: the run's, else 1)")
    parser.add_argument("--seed", default="1", help="the same seed, the same answers (default: 1)")
    parser.add_argument("--system", help="system prompt (default: the run's, else none)")
    parser.add_argument(
        "--max_new_tokens", type=int, help="longest answer (default: the run's, else 256)"
    )
    parser.add_argument("--web", action="store_true", help="a local web page")
    parser.add_argument("--port", type=int, default=8080, help="of that page (default: 8080)")
    words = parser.parse_args(arguments)

    begin("loading libraries")
    from rlhf_ppo.chat.session import start  # after parsing: --help needs no torch

    start(
        words.models,
        temperature=words.temperature,
        seed=words.seed,
        system=words.system,
        max_new_tokens=words.max_new_tokens,
        web_port=words.port if words.web else None,
    )


if __name__ == "__main__":
    run_script(main)
