"""What is said of the settings: in --help, in the schema, in docs/configuration.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cli import run_here

from rlhf_ppo.command_line import load_config
from rlhf_ppo.config import Config
from rlhf_ppo.config.documents import (
    json_schema,
    schema_text,
    sections,
    settings_table,
    shown,
    with_tables,
)
from rlhf_ppo.config.reading import section_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "configuration.md"
SCHEMA = json.loads((ROOT / "docs" / "config.schema.json").read_text(encoding="utf-8"))
SHIPPED = [p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name != "accelerate"]


def words(text: str) -> str:
    """Text without spaces: lines are broken at hyphens too."""
    return "".join(text.split())


@pytest.fixture(scope="module")
def help_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    file: Path = tmp_path_factory.mktemp("help") / "config.yaml"
    file.write_text("output_dir: x\n", encoding="utf-8")
    capture = pytest.MonkeyPatch()
    lines: list[str] = []
    capture.setattr("builtins.print", lambda *parts, **_: lines.append(" ".join(parts)))
    capture.setattr("argparse.ArgumentParser.print_help", lambda self: None)
    with pytest.raises(SystemExit):
        load_config(["--config", str(file), "--help"], file)
    capture.undo()
    return words("\n".join(lines))


@pytest.mark.parametrize("section", sections())
def test_help_gives_the_words_and_the_default_of_every_setting(
    section: str, help_text: str
) -> None:
    for name, field in sections()[section].model_fields.items():
        if section_of(field.annotation) is not None or (
            section.startswith("kind:") and name == "kind"
        ):
            continue
        assert field.description, f"{section}.{name} has no docstring"
        assert words(field.description) in help_text, f"{section}.{name}"
        if field.is_required():
            continue
        start = help_text.index(words(field.description))
        after = help_text[start + len(words(field.description)) :][:90]
        assert "default:" in after, f"{section}.{name}: {after}"


def test_help_speaks_yaml_and_not_python(help_text: str) -> None:
    assert "(default:null)" in help_text and "(default:false)" in help_text
    assert not re.search(r"\(default:(None|True|False)\)", help_text)


def test_the_documents_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    remedy = "run python scripts/config_docs.py"
    assert (ROOT / "docs" / "config.schema.json").read_text("utf-8") == schema_text(), remedy
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page, remedy


def test_the_check_notices_a_page_of_yesterday(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("config_docs", ["--check"], tmp_path, monkeypatch) == 0
    monkeypatch.setattr("rlhf_ppo.config.documents.schema_text", lambda: "{}")
    assert run_here("config_docs", ["--check"], tmp_path, monkeypatch) == 2
    assert "config.schema.json is not current" in capsys.readouterr().err


def test_every_section_is_explained_once() -> None:
    marks = re.findall(r"<!-- settings: (.+?) -->", PAGE.read_text(encoding="utf-8"))
    assert sorted(marks) == sorted(sections())


def test_a_table_has_every_setting_with_its_default() -> None:
    for name, section in sections().items():
        table = settings_table(name)
        for setting, field in section.model_fields.items():
            if section_of(field.annotation) is None:
                (row,) = [line for line in table.split("\n") if line.startswith(f"| `{setting}` |")]
                default = "required" if field.is_required() else f"| `{shown(field.default)}` |"
                assert default in row


def test_defaults_read_back_as_what_they_are() -> None:
    for section in sections().values():
        for name, field in section.model_fields.items():
            if section_of(field.annotation) is None and not field.is_required():
                given = {
                    other: "http://x" if other == "url" else "x"
                    for other, kind in section.model_fields.items()
                    if kind.is_required()
                }
                if "members" in given:
                    given["members"] = [{"kind": "model"}] * 2  # type: ignore[assignment]
                if "kind" in given:
                    given["kind"] = section.model_fields["kind"].annotation.__args__[0]  # type: ignore[union-attr]
                read = yaml.safe_load(f"x: {shown(field.default)}")["x"]
                assert getattr(section(**given | {name: read}), name) == field.default, name


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_is_valid_by_the_schema_and_names_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named and (path.parent / named[1]).resolve() == ROOT / "docs" / "config.schema.json"
    jsonschema.validate(yaml.safe_load(text), SCHEMA)


GOOD: dict[str, Any] = {
    "nothing but a base": {"extends": "quickstart.yaml"},
    "a part of a section": {"ppo": {"steps": 3}},
    "a section taken away": {"extends": "a.yaml", "sft": None},
    "a bare no": {"hardware": {"mixed_precision": False}},
    "sources": {"reward": {"sources": [{"kind": "http", "url": "http://x"}, {"kind": "model"}]}},
}
BAD: dict[str, Any] = {
    "a wrong name": {"ppo": {"step": 3}},
    "a wrong section": {"pop": {}},
    "a wrong word": {"kl": {"estimator": "k4"}},
    "a wrong type": {"ppo": {"steps": "many"}},
    "out of range": {"kl": {"beta": -1}},
    "a source of no kind": {"reward": {"sources": [{"kind": "oracle"}]}},
}


@pytest.mark.parametrize("name", GOOD)
def test_a_part_of_a_config_is_valid(name: str) -> None:
    jsonschema.validate(GOOD[name], SCHEMA)


@pytest.mark.parametrize("name", BAD)
def test_the_schema_finds_what_an_editor_should_underline(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(BAD[name], SCHEMA)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert set(json_schema()["properties"]) == {*Config.model_fields, "extends"}
