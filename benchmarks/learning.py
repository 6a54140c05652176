"""Learning beside TRL on a real model: J on held-out prompts against steps, tokens, CPU seconds.

python benchmarks/learning.py run --model MODEL --prompts TRAIN --heldout HELDOUT --out RUNS \
    --sides ours,trl_ppo --peer_python PEER/bin/python --seeds 1,2,3,4,5
python benchmarks/learning.py table --out RUNS

`run` makes the runs that are not there yet, one process at a time: every side, rate of the grid
and seed. `table` chooses each side's rate and shows the curves; docs/experiments.md says how.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sides import SIDES, Side
from tasks import RATES, TASKS, Task, write_task

HERE = Path(__file__).parent
# One thread: CPU seconds of two would count waiting for one another.
SURROUNDINGS = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}


def run_one(side: Side, task: Task, folder: Path, python: str) -> None:
    """One training run and its measurement, unless they are there."""
    if (folder / "heldout.jsonl").exists():
        return
    task = replace(task, **side.task)
    surroundings = os.environ | SURROUNDINGS
    write_task(task, folder)
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        command = [python, str(HERE / side.script), str(folder), *side.overrides]
        subprocess.run(command, check=True, stdout=log, stderr=log, env=surroundings)
    measure = [sys.executable, str(HERE / "heldout.py"), str(folder)]
    subprocess.run(measure, check=True, env=surroundings)
    print(f"{folder}: done", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Parse, then run or show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--task", default="sentiment", choices=sorted(TASKS))
    parser.add_argument("--model", default="", help="folder of the policy's start")
    parser.add_argument("--prompts", default="", help='JSONL of {"prompt": text} to train on')
    parser.add_argument("--heldout", default="", help="the same, to measure on")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--sides", default="ours,trl_ppo", help=", ".join(SIDES))
    parser.add_argument("--rates", default=",".join(f"{rate:g}" for rate in RATES))
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--steps", type=int, help="of each run; default: the task's")
    parser.add_argument("--peer_python", default=sys.executable, help="Python of TRL's side")
    words = parser.parse_args(arguments)
    if words.what == "table":
        from figure import draw
        from table import choose, read_runs, show

        show(words.out / words.task)
        draw(choose(read_runs(words.out / words.task)), words.out / words.task / "curves.html")
        return
    paths = {
        name: str(Path(getattr(words, name)).resolve()) for name in ("model", "prompts", "heldout")
    }
    task = replace(TASKS[words.task], **paths)
    task = replace(task, steps=words.steps or task.steps)
    for seed in map(int, words.seeds.split(",")):
        for rate in map(float, words.rates.split(",")):
            for name in words.sides.split(","):
                side = SIDES[name]
                folder = words.out / words.task / name / f"{rate:g}" / str(seed)
                python = words.peer_python if side.peer else sys.executable
                run_one(
                    side, replace(task, learning_rate=rate, seed=seed), folder.resolve(), python
                )


if __name__ == "__main__":
    main(sys.argv[1:])
