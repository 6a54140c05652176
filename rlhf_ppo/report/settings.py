"""The settings of a run beside their defaults."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from rlhf_ppo.config import Config
from rlhf_ppo.config.reading import section_of
from rlhf_ppo.report.folder import Json, RunFolder
from rlhf_ppo.report.numbers import DASH

UNSET = object()


@dataclass(frozen=True)
class Setting:
    """One setting as the run had it."""

    name: str
    value: str
    default: str
    changed: bool
    meaning: str


def setting_rows(config: Json | None) -> list[Setting]:
    """Every setting, by dotted name, in the order of the file."""
    return _rows(config or {}, Config, "")


def different_settings(runs: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """Settings in which runs differ, but for where they write; one value a run."""
    found = [{row.name: row.value for row in setting_rows(run.config)} for run in runs]
    names: dict[str, None] = {}
    for settings in found:
        names |= dict.fromkeys(settings)
    rows = [(name, [settings.get(name, DASH) for settings in found]) for name in names]
    skipped = ("output_dir", "resume")
    differ = [row for row in rows if len(set(row[1])) > 1 and row[0] not in skipped]
    return _sections_as_one(differ, found)


def _sections_as_one(
    rows: Sequence[tuple[str, list[str]]], found: Sequence[dict[str, str]]
) -> list[tuple[str, list[str]]]:
    """A section that some runs leave out is one row, not one for each of its settings."""
    out = {name.partition(".")[0] for name, values in rows if "." in name and DASH in values}
    sections = {
        section
        for section in out
        if any(not any(name.startswith(f"{section}.") for name in run) for run in found)
    }
    shown: dict[str, list[str]] = {}
    for name, values in rows:
        section = name.partition(".")[0]
        if section not in sections:
            shown[name] = values
        elif section not in shown:
            has = [any(key.startswith(f"{section}.") for key in run) for run in found]
            shown[section] = ["set" if there else "left out" for there in has]
    return list(shown.items())


def _rows(values: Json, model: type[BaseModel], prefix: str) -> list[Setting]:
    rows = []
    for key, value in values.items():
        field = model.model_fields.get(key)
        section = None if field is None else section_of(field.annotation)
        if section is not None and isinstance(value, dict):
            rows += _rows(value, section, f"{prefix}{key}.")
            continue
        default: Any = UNSET
        if field is not None:
            default = _as_json(field.get_default(call_default_factory=True))
        rows.append(
            Setting(
                name=prefix + key,
                value=_written(value),
                default="no default" if default is UNSET else _written(default),
                changed=value != default,
                meaning=_meaning(field),
            )
        )
    return rows


def _meaning(field: FieldInfo | None) -> str:
    if field is None:
        return "not a setting now"
    return (field.description or "").replace("`", "")


def _as_json(default: Any) -> Any:
    """A default as it would stand in the YAML file."""
    return UNSET if default is PydanticUndefined else to_jsonable_python(default)


def _written(value: Any) -> str:
    """As in YAML, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").strip()
