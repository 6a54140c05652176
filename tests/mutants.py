"""Do the tests notice? Plants each mistake of `mutations/` in the package and runs its tests.

    python tests/mutants.py                     # all, about 20 minutes on one core
    python tests/mutants.py --folder training   # those of one folder of the package
    python tests/mutants.py --only "gae:"       # those whose file or name contains this
    python tests/mutants.py --list

A mistake goes into a copy of the package in a temporary folder, never into the checkout. The copy
stands first on sys.path of a forked child that runs pytest until the first failure: the file's own
tests first, then those of its folder. Exit code 0: every mistake was caught by a failed test; one
that breaks the import or the collection, or raises a NameError, is an error of the table and counts
as nothing.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from mutations import FOLDERS, MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 120  # seconds a mutation
# What the tests of most folders import, once for all children.
LIBRARIES = (
    "accelerate",
    "datasets",
    "peft",
    "pydantic_settings",
    "rich.table",
    "transformers",
    "trl",
    *(
        f"transformers.models.{family}.modeling_{family}"
        for family in ("gemma2", "gpt2", "gpt_neox", "llama", "qwen3")
    ),
)


class FirstFailure:
    """A pytest plugin that remembers the first test that failed, and by what."""

    def __init__(self) -> None:
        self.test = ""
        self.broken = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the first."""
        if report.failed and not self.test:
            self.test = report.nodeid

    def pytest_exception_interact(self, call: pytest.CallInfo[Any]) -> None:
        """Mark what no test can be proud of."""
        kinds = (ImportError, NameError, SyntaxError)
        if call.excinfo is not None and issubclass(call.excinfo.type, kinds):
            self.broken = True


def run_tests(copy: Path, tests: Sequence[str], answer: Path, limit: int) -> int:
    """In the child: tests against the package in `copy`; pytest's exit code."""
    signal.alarm(limit)  # kills the child, whatever it does
    with (copy / "log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(ROOT)
    sys.path.insert(0, str(copy))
    hypothesis.settings.register_profile(
        "mutants",
        database=None,
        deadline=None,
        derandomize=True,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )
    hypothesis.settings.load_profile("mutants")
    import rlhf_ppo

    assert Path(rlhf_ppo.__file__).is_relative_to(copy)
    first = FirstFailure()
    # Without the project's own options: workers would import another package.
    words = ["-o", "addopts=", "-q", "-m", "not slow"]
    words += ["-x", "-p", "no:cacheprovider", "--assert=plain", *tests]
    code = pytest.main(words, plugins=[first])
    answer.write_text(json.dumps({"test": first.test, "broken": first.broken}))
    return int(code)


def judge(copy: Path, tests: Sequence[str], limit: int = LIMIT) -> tuple[str, str]:
    """What tests say of the package in a copy: (verdict, by what)."""
    answer = copy / "answer.json"
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = run_tests(copy, tests, answer, limit)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        timeout = os.WTERMSIG(status) == signal.SIGALRM
        return "error", f"the limit of {limit} s" if timeout else "a crash"
    code = os.WEXITSTATUS(status)
    if code == 0:
        return "SURVIVED", ""
    found = json.loads(answer.read_text()) if answer.exists() else {"test": "", "broken": True}
    if code == 1 and not found["broken"]:
        return "caught", found["test"]
    tail = (copy / "log").read_text(errors="replace").splitlines()[-15:]
    return "error", "\n      ".join([f"exit code {code} {found['test']}", *tail])


def copy_package(copy: Path) -> None:
    """The package without its caches."""
    shutil.copytree(ROOT / "rlhf_ppo", copy / "rlhf_ppo", ignore=shutil.ignore_patterns("__py*"))


def judge_unmutated(copy: Path, tests: Sequence[str]) -> tuple[str, str]:
    """What tests say of the package as it is."""
    copy_package(copy)
    verdict = judge(copy, tests, 10 * LIMIT)
    shutil.rmtree(copy)
    return verdict


def plant(copy: Path, mutation: Mutation, sound: set[str]) -> tuple[str, str]:
    """Copy the package with a mistake and have it judged.

    Args:
        copy: folder for it.
        mutation: the mistake.
        sound: tests that pass without any mistake; those of the folder are added when needed.
    """
    text = (ROOT / "rlhf_ppo" / mutation.file).read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        return "error", f"the old text stands {text.count(mutation.old)} times in the file"
    copy_package(copy)
    mutated = text.replace(mutation.old, mutation.new)
    (copy / "rlhf_ppo" / mutation.file).write_text(mutated, encoding="utf-8")
    verdict = judge(copy, mutation.own)
    if verdict[0] != "SURVIVED":
        return verdict
    unknown = [test for test in mutation.more if test not in sound]
    if unknown:
        verdict, by = judge_unmutated(copy.with_name("unmutated"), unknown)
        if verdict != "SURVIVED":
            return "error", f"without a mistake: {by}"
        sound.update(unknown)
    return judge(copy, mutation.more)


def prepare(chosen: Sequence[Mutation]) -> None:
    """What all children share: threads, pytest's plugins, libraries."""
    torch.set_num_threads(1)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    if any(mutation.folder != "algorithm" for mutation in chosen):
        for name in LIBRARIES:
            importlib.import_module(name)
    assert "rlhf_ppo" not in sys.modules, "the parent must not know the package"
    gc.freeze()  # children collect only what they make


def run_all(chosen: Sequence[Mutation], root: str, sound: set[str]) -> dict[str, list[str]]:
    """Names of the mutations by verdict; each is printed as it comes."""
    verdicts: dict[str, list[str]] = {"caught": [], "SURVIVED": [], "error": []}
    for number, mutation in enumerate(chosen, start=1):
        folder = Path(root, str(number))
        start = time.monotonic()
        verdict, by = plant(folder, mutation, sound)
        shutil.rmtree(folder, ignore_errors=True)
        name = f"{mutation.file}, {mutation.name}"
        verdicts[verdict].append(name)
        by = f" by {by}" if by else ""
        seconds = f"{time.monotonic() - start:5.1f} s"
        print(f"{number:3}/{len(chosen)} {seconds} {name}: {verdict}{by}", flush=True)
    return verdicts


def main() -> int:
    """Run the chosen mutations one after another; 0 if all were caught."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="files or names that hold this")
    parser.add_argument("--folder", choices=sorted(FOLDERS), help="one folder of the package")
    parser.add_argument("--list", action="store_true", help="name the mutations and stop")
    options = parser.parse_args()
    chosen = [
        m
        for m in MUTATIONS
        if options.only in f"{m.file} {m.name}" and options.folder in (None, m.folder)
    ]
    if options.list or not chosen:
        print("\n".join(f"{m.file:<32} {m.name}" for m in chosen))
        return 0 if chosen else 1
    begin = time.monotonic()
    prepare(chosen)
    with tempfile.TemporaryDirectory() as root:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = f"{root}/hypothesis"
        own = list(dict.fromkeys(test for mutation in chosen for test in mutation.own))
        verdict, by = judge_unmutated(Path(root, "unmutated"), own)
        print(f"unmutated: {'passed' if verdict == 'SURVIVED' else by}", flush=True)
        if verdict != "SURVIVED":
            return 2
        verdicts = run_all(chosen, root, set(own))
    seconds = time.monotonic() - begin
    print(f"\n{len(verdicts['caught'])} of {len(chosen)} caught in {seconds:.0f} s")
    missed = [(kind, name) for kind in ("SURVIVED", "error") for name in verdicts[kind]]
    for kind, name in missed:
        print(f"  {kind}: {name}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
