"""What both sides are given: one file of settings a run, so that no side can see other numbers.

No import of ours and none of TRL's: it is read in either's environment.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """A task and how it is gone about; the same on every side."""

    model: str = ""  # folder of the policy's start, which is also the reference
    prompts: str = ""  # JSONL, one {"prompt": text} a line, to train on
    heldout: str = ""  # the same, to measure on
    response_tokens: int = 48
    beta: float = 0.02  # of the KL in the reward, reward units a nat
    batch_size: int = 64  # responses a step
    epochs: int = 4  # optimizer steps a step: one minibatch
    value_coefficient: float = 0.1
    learning_rate: float = 3e-4
    group_size: int = 1  # responses a prompt: RLOO and GRPO compare them
    steps: int = 27
    snapshot_every: int = 5  # steps between the policies that are kept for measuring
    seed: int = 1


TASKS = {
    "sentiment": Task(),
    "long_sentiment": Task(response_tokens=128),
}
RATES = (1e-4, 3e-4, 1e-3)  # the grid, the same for every side


def write_task(task: Task, folder: Path) -> Path:
    """Leave the settings of a run in its folder; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "task.json"
    file.write_text(json.dumps(asdict(task), indent=2) + "\n", encoding="utf-8")
    return file


def read_task(file: Path) -> Task:
    """The settings of a run."""
    return replace(Task(), **json.loads(file.read_text(encoding="utf-8")))


def read_prompts(file: str) -> list[str]:
    """The prompts of a JSONL file."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines if line.strip()]


class Record:
    """`steps.jsonl` of a run, and its clock: CPU seconds of this process, not of a busy machine.

    A line speaks of the policy that sampled a step's responses: `optimizer_steps`, `tokens` and
    `cpu_seconds` are what it had cost until then.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        """Start the clock."""
        self.folder, self.task = folder, task
        self.file = folder / "steps.jsonl"
        self.file.write_text("", encoding="utf-8")
        self.cost: dict[str, float] = {"optimizer_steps": 0, "tokens": 0, "cpu_seconds": 0.0}
        self.outside = time.process_time()  # CPU seconds that do not count

    def add(self, measured: dict[str, float], optimizer_steps: int, tokens: int) -> None:
        """End a step.

        Args:
            measured: of the step's responses, "score" and "kl" at least.
            optimizer_steps: made since the start, this step's included.
            tokens: sampled in this step.
        """
        now = time.process_time()
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.cost | measured) + "\n")
        self.cost = {
            "optimizer_steps": optimizer_steps,
            "tokens": self.cost["tokens"] + tokens,
            "cpu_seconds": now - self.outside,
        }
        self.outside += time.process_time() - now

    def keep(self, step: int, policy: Any) -> None:
        """Save the policy after every `snapshot_every`-th step, outside the measured time."""
        if step % self.task.snapshot_every and step != self.task.steps:
            return
        began = time.process_time()
        place = self.folder / "policies" / f"{int(self.cost['optimizer_steps']):05d}"
        policy.save_pretrained(place)
        (place / "cost.json").write_text(json.dumps(self.cost) + "\n", encoding="utf-8")
        self.outside += time.process_time() - began
