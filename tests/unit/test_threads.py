"""Threads on a CPU: the setting, then OMP_NUM_THREADS, then the cores."""

from __future__ import annotations

import pytest

from rlhf_ppo.training import distributed
from rlhf_ppo.training.distributed import cpu_threads, threads_line

PYTHON: dict[str, str] = {}
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("configured", "variable", "launcher", "expected"),
    [
        (3, "5", PYTHON, 3),
        (0, None, PYTHON, 8),
        (0, "1", PYTHON, 1),
        (0, "5", PYTHON, 5),
        (0, "4,2", PYTHON, 4),  # one for each level of nesting
        (0, "zero", PYTHON, 8),
        (0, "0", PYTHON, 8),
        (0, "1", ACCELERATE, 8),  # it writes 1 itself where the user has set nothing
        (0, "5", ACCELERATE, 5),
        (0, "1", TORCHRUN, 4),
        (0, "3", TORCHRUN, 3),
        (2, "1", TORCHRUN, 2),
    ],
)
def test_what_decides(
    configured: int,
    variable: str | None,
    launcher: dict[str, str],
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The story: OMP_NUM_THREADS=1 was overridden by all cores of the machine."""
    for name in ("OMP_NUM_THREADS", *ACCELERATE, *TORCHRUN):
        monkeypatch.delenv(name, raising=False)
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(distributed, "available_cores", lambda: 8)
    assert cpu_threads(configured)[0] == expected


def test_more_threads_than_cores_are_not_taken_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "available_cores", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "more than the 8 cores" in threads_line(5)
    assert threads_line(4) == "computing on the CPU, 4 thread(s) a process (hardware.cpu_threads)"
