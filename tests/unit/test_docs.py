"""What the documentation points to is there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from rlhf_ppo.config import Config, KlConfig

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md"))
MODULES = ("advantages", "batch", "kl", "losses", "masked", "rewards")
ALGORITHM = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")
names = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_every_test_that_is_named_exists(page: Path) -> None:
    for file, test in re.findall(r"`(test_\w+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
        (path,) = (ROOT / "tests").rglob(file)
        assert f"def {test}(" in path.read_text(encoding="utf-8"), f"{file}::{test}"


def test_every_function_that_is_named_exists() -> None:
    found = re.findall(rf"`({'|'.join(MODULES)})\.(\w+)`", ALGORITHM)
    assert len(found) > 30
    for module, name in found:
        if module == "kl" and name in KlConfig.model_fields:
            continue  # a setting of that section
        assert hasattr(importlib.import_module(f"rlhf_ppo.algorithm.{module}"), name), name


def test_every_public_function_of_the_algorithm_is_explained() -> None:
    said = set(re.findall(r"`\w+\.(\w+)`", ALGORITHM))
    helpers = {"masked_sum", "masked_mean", "masked_variance", "last_token", "explained_variance"}
    helpers |= {"probability_ratio", "policy_loss", "estimate_advantages", "pad_columns"}
    for module in MODULES:
        source = (ROOT / "rlhf_ppo" / "algorithm" / f"{module}.py").read_text(encoding="utf-8")
        for name in re.findall(r"^def ([a-z]\w+)", source, flags=re.M):
            assert name in said | helpers | {"concatenate"}, f"{module}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_every_setting_that_is_named_exists(page: Path) -> None:
    sections = [name for name in Config.model_fields if name not in ("seed", "output_dir")]
    text = page.read_text(encoding="utf-8")
    for section, name in re.findall(rf"`(?:--)?({'|'.join(sections)})\.(\w+)[:`= ]", text):
        field = Config.model_fields[section].annotation
        options = [kind for kind in getattr(field, "__args__", (field,)) if kind is not type(None)]
        known = {key for kind in options for key in kind.model_fields}
        if name == "py":
            continue  # a file of that name
        if section == "kl" and hasattr(importlib.import_module("rlhf_ppo.algorithm.kl"), name):
            continue  # a function of that module
        assert name in known, f"{section}.{name}"
