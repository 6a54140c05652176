"""Do the tests notice? Plants each mistake of `mutations.py` in the algorithm and runs its tests.

    python tests/mutants.py                 # all, a few minutes on one core
    python tests/mutants.py --only "gae:"   # those whose name contains this
    python tests/mutants.py --list

A mistake goes into a copy of the package in a temporary folder, never into the checkout. The copy
stands first on sys.path of a forked child that runs pytest until the first failure: the unit tests
of the file first, then all others. Exit code 0: every mistake was caught by a failed test; one that
breaks the import or the collection, or raises a NameError, is an error of the table and counts as
nothing.
"""

from __future__ import annotations

import argparse
import gc
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
from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]
UNIT = {
    name: f"tests/unit/test_{name}.py"
    for name in ("masked", "kl", "losses", "rewards", "advantages")
}
TESTS = (*UNIT.values(), "tests/invariance/test_algorithm.py", "tests/exact")
LIMIT = 120  # seconds a mutation


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


def run_tests(copy: Path, tests: Sequence[str], answer: Path) -> int:
    """In the child: tests against the package in `copy`; pytest's exit code."""
    signal.alarm(LIMIT)  # kills the child, whatever it does
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
    import rlhf_ppo.algorithm.losses

    assert Path(rlhf_ppo.algorithm.losses.__file__).is_relative_to(copy)
    first = FirstFailure()
    # Without the project's own options: workers would import another package.
    words = ["-o", "addopts=", "-q", "-m", "not slow"]
    words += ["-x", "-p", "no:cacheprovider", "--assert=plain", *tests]
    code = pytest.main(words, plugins=[first])
    answer.write_text(json.dumps({"test": first.test, "broken": first.broken}))
    return int(code)


def judge(copy: Path, tests: Sequence[str]) -> tuple[str, str]:
    """What tests say of the package in a copy: (verdict, by what)."""
    answer = copy / "answer.json"
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = run_tests(copy, [test for test in tests if (ROOT / test).exists()], answer)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        timeout = os.WTERMSIG(status) == signal.SIGALRM
        return ("caught", f"the limit of {LIMIT} s") if timeout else ("error", "a crash")
    code = os.WEXITSTATUS(status)
    if code == 0:
        return "SURVIVED", ""
    found = json.loads(answer.read_text()) if answer.exists() else {"test": "", "broken": True}
    if code == 1 and not found["broken"]:
        return "caught", found["test"]
    tail = (copy / "log").read_text(errors="replace").splitlines()[-15:]
    return "error", "\n      ".join([f"exit code {code} {found['test']}", *tail])


def plant(copy: Path, mutation: Mutation | None) -> tuple[str, str]:
    """Copy the package, with a mistake or without, and have it judged."""
    shutil.copytree(ROOT / "rlhf_ppo", copy / "rlhf_ppo", ignore=shutil.ignore_patterns("__py*"))
    if mutation is None:
        return judge(copy, TESTS)
    path = copy / "rlhf_ppo" / "algorithm" / f"{mutation.file}.py"
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        return "error", f"the old text stands {text.count(mutation.old)} times in the file"
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    own = UNIT.get(mutation.file, TESTS[-2])
    verdict = judge(copy, [own])
    return verdict if verdict[0] != "SURVIVED" else judge(copy, [t for t in TESTS if t != own])


def main() -> int:
    """Run the chosen mutations one after another; 0 if all were caught."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="names that contain this")
    parser.add_argument("--list", action="store_true", help="name the mutations and stop")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if options.only in f"{m.file} {m.name}"]
    if options.list:
        print("\n".join(f"{m.file:<10} {m.name}" for m in chosen))
        return 0
    torch.set_num_threads(1)
    assert "rlhf_ppo" not in sys.modules, "the parent must not know the package"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    gc.freeze()  # children collect only what they make
    verdicts: dict[str, list[str]] = {"caught": [], "SURVIVED": [], "error": []}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = f"{root}/hypothesis"
        for number, mutation in enumerate([None, *chosen]):
            folder = Path(root, str(number))
            start = time.monotonic()
            verdict, by = plant(folder, mutation)
            shutil.rmtree(folder)
            seconds = f"{time.monotonic() - start:5.1f} s"
            if mutation is None:
                print(f"unmutated: {'passed' if verdict == 'SURVIVED' else by} {seconds}")
                if verdict != "SURVIVED":
                    return 2
                continue
            name = f"{mutation.file}, {mutation.name}"
            verdicts[verdict].append(name)
            by = f" by {by}" if by else ""
            print(f"{number:3}/{len(chosen)} {seconds} {name}: {verdict}{by}", flush=True)
    missed = [*verdicts["SURVIVED"], *verdicts["error"]]
    print(
        f"\n{len(verdicts['caught'])} of {len(chosen)} caught in {time.monotonic() - begin:.0f} s"
    )
    for verdict in ("SURVIVED", "error"):
        for name in verdicts[verdict]:
            print(f"  {verdict}: {name}")
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
