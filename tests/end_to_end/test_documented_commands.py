"""Every command that the documentation shows can be given as it stands there."""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import pytest
from cli import ROOT
from documented import (
    PAGES,
    Documented,
    all_commands,
    find_in,
    named_files,
    simple_commands,
    understand,
)
from documented_desk import fill_desk, give, make_desk, stand_in_judge

COMMANDS = list(all_commands())
RUNS = ("quickstart", "a", "b", "c", "mine", "rloo")  # finished runs that commands speak of


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every config that commands name; nothing runs in it."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "configs").symlink_to(ROOT / "configs")
    for page in PAGES:
        for name, text in named_files(page.read_text(encoding="utf-8")).items():
            (folder / name).write_text(text, encoding="utf-8")
    for run in RUNS:
        (folder / "runs" / run).mkdir(parents=True)
        shutil.copy(ROOT / "configs" / "quickstart.yaml", folder / "runs" / run / "config.yaml")
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=[c.place for c in COMMANDS])
def test_every_documented_command_is_understood(
    command: Documented, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        for words in simple_commands(command.text):
            understand(words, desk, monkeypatch)
    except (Exception, SystemExit) as error:
        pytest.fail(f"{command.place}: {command.text}\n{type(error).__name__}: {error}")


def test_every_script_that_is_named_exists_and_every_script_is_named() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"scripts/(\w+\.py)", text))
    assert named == {file.name for file in (ROOT / "scripts").glob("*.py")}


PAGE = """
Run `python scripts/train.py
--seed 1` now; `scripts/plan.py` is a name.

    OMP_NUM_THREADS=1 taskset -c 0 python scripts/plan.py \\
        --seed 2   # twice

```
python scripts/chat.py run
says hello
```
```yaml
python: scripts/no.py
```
```sh
docker run it
```
"""


def test_commands_are_found_where_a_reader_finds_them() -> None:
    assert [(c.line, c.text, c.in_block) for c in find_in(PAGE, "page")] == [
        (5, "OMP_NUM_THREADS=1 taskset -c 0 python scripts/plan.py --seed 2   # twice", True),
        (9, "python scripts/chat.py run", True),
        (16, "docker run it", True),
        (2, "python scripts/train.py --seed 1", False),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "docker run it",
        "python scripts/gone.py",
        "python scripts/train.py --ppo.learning_rat 1",
        "python scripts/train.py --config configs/gone.yaml",
        "python scripts/chat.py runs/a --temprature 1",
        "python scripts/compare_runs.py --all",
        "accelerate launch --two_gpus scripts/train.py",
        "accelerate launch --config_file configs/accelerate/gone.yaml scripts/train.py",
        "pip install -e '.[gone]'",
        "pip install a-package-of-others",
        "pytest -m sloow",
        "pytest tests/unit/gone.py",
        "pytest && --ppo.step 1",
    ],
)
def test_what_is_not_there_is_not_understood(
    text: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((AssertionError, SystemExit, argparse.ArgumentError)):
        for words in simple_commands(text):
            understand(words, desk, monkeypatch)


@pytest.fixture(scope="module")
def real_desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny data and finished runs, in which commands can be given."""
    folder = make_desk(tmp_path_factory.mktemp("real"))
    fill_desk(folder)
    return folder


SHOWN = [command for command in COMMANDS if command.in_block]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SHOWN)), ids=[c.place for c in SHOWN])
def test_every_shown_command_can_be_given(number: int, real_desk: Path) -> None:
    command = SHOWN[number]
    with stand_in_judge() as judge:
        give(command.text, real_desk, number + 1, judge)
