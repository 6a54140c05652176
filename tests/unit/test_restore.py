"""Where a run begins is decided by all processes before one of them writes."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import make_config

from rlhf_ppo.training import loop
from rlhf_ppo.training.checkpoint import Progress


class Fellow:
    """One of two processes, as threads: a wait ends when both have come to it."""

    def __init__(self, rank: int, barrier: threading.Barrier) -> None:
        self.rank, self.barrier, self.is_main = rank, barrier, rank == 0

    def wait(self) -> None:
        self.barrier.wait()

    def on_main(self, action: Any) -> None:
        if self.is_main:
            action()
        self.wait()


def test_a_slow_process_does_not_take_the_first_checkpoint_for_one_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With guard.action = rollback the main process saves step 0 at once. A second process that
    looked for checkpoints after that went on from it, and both waited for the other for ever."""
    slow = threading.local()

    def looked(folder: Path) -> list[Path]:
        time.sleep(0.3 if slow.rank else 0)
        return sorted(folder.glob("step-*"))

    def saved(folder: Path, *_: Any) -> None:
        (folder / "step-000000").mkdir(parents=True)

    monkeypatch.setattr(loop, "list_checkpoints", looked)
    monkeypatch.setattr(loop, "save_checkpoint", saved)
    monkeypatch.setattr(loop, "load_checkpoint", lambda *_: None)
    monkeypatch.setattr(loop, "read_progress", lambda _: Progress(0, 0, 0, beta=0.05))
    barrier = threading.Barrier(2, timeout=5)
    found: dict[int, Progress] = {}

    def restore(rank: int) -> None:
        slow.rank = rank
        run: Any = SimpleNamespace(
            config=make_config(guard={"action": "rollback"}),
            checkpoints=tmp_path / "checkpoints",
            processes=Fellow(rank, barrier),
            roles=SimpleNamespace(policy=None),
            optimizer=None,
            metrics_file=tmp_path / "metrics.jsonl",
            heldout_file=tmp_path / "heldout.jsonl",
        )
        found[rank] = loop._restore(run)
        barrier.wait()  # neither has waited more often than the other

    threads = [threading.Thread(target=restore, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == Progress(0, 0, 0, beta=0.05, penalty=found[0].penalty)
