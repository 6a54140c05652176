"""What people and editors read of the settings, made from their types and docstrings."""

import json
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from rlhf_ppo.config import Config
from rlhf_ppo.config.reading import section_of
from rlhf_ppo.config.rewards import KINDS

Json = dict[str, Any]


def json_schema() -> Json:
    """A JSON schema of a config file, for editors that complete and check YAML.

    A file may hold a part of the settings and extend another one, so nothing is required at the
    top. What contradicts what (`rules.py`) no schema can say.
    """
    schema = Config.model_json_schema()
    schema.pop("required")
    schema |= {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of a run of rlhf_ppo",
    }
    extends = {"type": "string", "description": "A YAML file, below whose settings these are put."}
    schema["properties"] = {"extends": extends} | schema["properties"]
    # An editor that reads YAML 1.1 takes a bare `no` for false.
    schema["$defs"]["HardwareConfig"]["properties"]["mixed_precision"]["anyOf"].append(
        {"const": False}
    )
    for part in (schema, *schema["$defs"].values()):
        properties = part.get("properties", {})
        for name, setting in properties.items():
            if name != "kind":
                properties[name] = _or_null(setting)
    return schema


def _or_null(setting: Json) -> Json:
    """A setting's schema with `null`, which gives any setting its default back."""
    about = {key: setting[key] for key in ("title", "description", "default") if key in setting}
    rest = {key: value for key, value in setting.items() if key not in about}
    options = rest.pop("anyOf", [])
    if {"type": "null"} in options:
        return setting
    null = {"type": "null"}
    return about | {"anyOf": [*options, null] if options and not rest else [setting, null]}


def schema_text() -> str:
    """`json_schema` as the file that is shipped."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def with_tables(page: str) -> str:
    """A Markdown page with the table of each section put between its two marks.

    Args:
        page: holds `<!-- settings: NAME -->` and `<!-- end -->` around each table; NAME is a
            section, `run` for the settings that stand in none, or `kind: KIND` of a reward source.

    Raises:
        KeyError: a mark names no section.
    """

    def filled(mark: re.Match[str]) -> str:
        return f"{mark[1]}\n{settings_table(mark[2])}\n<!-- end -->"

    return re.sub(r"(<!-- settings: (.+?) -->).*?<!-- end -->", filled, page, flags=re.DOTALL)


def sections() -> dict[str, type[BaseModel]]:
    """Every section by the name of its table, the kinds of reward sources included."""
    found: dict[str, type[BaseModel]] = {"run": Config}
    pending: list[tuple[str, type[BaseModel]]] = [("", Config)]
    while pending:
        prefix, model = pending.pop(0)
        for name, field in model.model_fields.items():
            section = section_of(field.annotation)
            if section is not None:
                found[prefix + name] = section
                pending.append((f"{prefix}{name}.", section))
    for kind in KINDS:
        (name,) = get_args(kind.model_fields["kind"].annotation)
        found[f"kind: {name}"] = kind
    return found


def settings_table(section: str) -> str:
    """Name, type, default and documentation of each setting of a section, as a Markdown table.

    Raises:
        KeyError: no such section.
    """
    rows = ["| setting | takes | default | |", "|---|---|---|---|"]
    for name, field in sections()[section].model_fields.items():
        if section_of(field.annotation) is None:
            default = "required" if field.is_required() else f"`{shown(field.default)}`"
            words = (field.description or "").replace("|", "\\|")
            rows.append(f"| `{name}` | {_takes(field.annotation)} | {default} | {words} |")
    return "\n".join(rows)


def shown(default: Any) -> str:
    """A default as it would be written in YAML."""
    if isinstance(default, tuple) and default and isinstance(default[0], BaseModel):
        return "[{kind: model}]"
    if isinstance(default, str):
        return default
    return json.dumps(default)


def _takes(annotation: Any) -> str:
    """A type in words."""
    plain = annotation
    if get_origin(annotation) is Annotated:  # the type behind it
        plain = annotation = annotation.__origin__
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_takes(option) for option in get_args(annotation))
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    plain = get_origin(plain) or plain
    if plain in (tuple, dict):
        return "mapping" if plain is dict else "list"
    words = {int: "whole number", float: "number", str: "text", bool: "true, false"}
    return "null" if plain is type(None) else words[plain]
