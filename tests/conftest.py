"""Offline, one thread, no progress bars; and the models that many tests share."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

# One core for each of the workers that share the tests: a run in a worker takes as many threads as
# it sees cores, and threads of two runs on the same cores wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    os.sched_setaffinity(0, {cores[number % len(cores)]})

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

warnings.filterwarnings("ignore", category=DeprecationWarning)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny tensors: more threads only wait for one another."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def gpt2_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a GPT-2 policy and reward model; read-only."""
    from helpers import write_gpt2_models  # here: Transformers is slow to import

    folder: Path = tmp_path_factory.mktemp("models")
    return write_gpt2_models(folder)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of models and adapters by architecture; read-only."""
    from model_folders import Written

    return Written(tmp_path_factory.mktemp("architectures"))
