"""The house: floors, sizes of rooms, and who may import what."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rlhf_ppo"
FILES = sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "scripts").rglob("*.py"))
FLOOR = {
    "algorithm": 0,
    "errors": 0,
    "hub": 0,
    "streams": 0,
    "proportions": 0,
    "console": 0,
    "diagnostics": 0,
    "config": 1,
    "plan": 1,
    "data": 1,
    "models": 1,
    "stamps": 1,
    "seeds": 0,
    "command_line": 1,
    "script": 1,
    "rewards": 2,
    "rollout": 2,
    "preflight": 3,
    "training": 3,
    "evaluation": 4,
    "benchmark": 5,
    "chat": 5,
    "inputs": 5,
    "resources": 5,
    "weights": 5,
    "machine": 5,
    "report": 5,
    "prepare": 6,
    "stopping": 6,
    "pipeline": 7,
}
names = [str(file.relative_to(ROOT)) for file in FILES]
PAPER = sorted((PACKAGE / "algorithm").glob("*.py"))
SHAPE = re.compile(r"\([A-Z](, [A-Z])?,?\)")  # (B, R), (B, C), (B,), (N,)


def imported_modules(file: Path) -> set[str]:
    """Every module a file imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module or "")
    return found


def floor_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "algorithm"


@pytest.mark.parametrize("file", FILES, ids=names)
def test_arrows_run_downward(file: Path) -> None:
    if not file.is_relative_to(PACKAGE) or file == PACKAGE / "__init__.py":
        return
    here = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imported_modules(file):
        if module.split(".")[0] == "rlhf_ppo":
            there = floor_of(module)
            assert FLOOR[there] <= FLOOR[here], f"{file} ({here}) must not import {module}"


@pytest.mark.parametrize("file", PAPER, ids=lambda f: f.name)
def test_the_paper_imports_torch_and_nothing_of_ours(file: Path) -> None:
    for module in imported_modules(file):
        top = module.split(".")[0]
        ours = module.startswith("rlhf_ppo.algorithm")
        assert top == "torch" or top in sys.stdlib_module_names or ours, f"{file}: {module}"


def test_two_files_alone_import_accelerate() -> None:
    importers = {
        str(file.relative_to(ROOT))
        for file in FILES
        if any(module.split(".")[0] == "accelerate" for module in imported_modules(file))
    }
    assert importers == {f"rlhf_ppo/training/{name}.py" for name in ("distributed", "trackers")}


@pytest.mark.parametrize("file", FILES, ids=names)
def test_functions_have_at_most_60_lines_the_papers_40_and_files_400(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    most = 40 if file in PAPER else 60
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= most, f"{file}: {node.name} has {lines} lines"


def public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions, classes and the methods of these."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def takes_or_returns_a_tensor(function: ast.FunctionDef) -> bool:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    annotations = [argument.annotation for argument in arguments] + [function.returns]
    return any("Tensor" in ast.unparse(node) for node in annotations if node is not None)


SPEAKING = [
    pytest.param(file, node, id=f"{file.stem}-{node.name}")
    for file in PAPER
    for node in public(ast.parse(file.read_text(encoding="utf-8")).body)
]


@pytest.mark.parametrize(("file", "node"), SPEAKING)
def test_the_paper_says_the_shape_of_every_tensor(
    file: Path, node: ast.FunctionDef | ast.ClassDef
) -> None:
    docstring = ast.get_docstring(node) or ""
    assert docstring, f"{node.name} has no docstring"
    if SHAPE.search(docstring):
        return
    if isinstance(node, ast.FunctionDef):
        assert not takes_or_returns_a_tensor(node), f"{node.name}: no shape like (B, R)"
        return
    lines = file.read_text(encoding="utf-8").splitlines()
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and ast.unparse(field.annotation) == "Tensor":
            assert SHAPE.search(lines[field.lineno - 1]), f"{node.name}: {lines[field.lineno - 1]}"


def test_scripts_stay_under_60_lines() -> None:
    for file in (ROOT / "scripts").glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) < 60, file
