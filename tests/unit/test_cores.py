"""How many cores a process may use."""

from __future__ import annotations

import os

import pytest

from rlhf_ppo.training.distributed import available_cores


def test_a_system_that_does_not_tell_the_cores_of_a_process_has_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """macOS has no sched_getaffinity: every run ended there with an AttributeError."""
    if hasattr(os, "sched_getaffinity"):
        assert available_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1
