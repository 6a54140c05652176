"""From `--config FILE --ppo.learning_rate 1e-5` to a `Config`, or one message with every error."""

import argparse
import difflib
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError, create_model
from pydantic_settings import BaseSettings, CliSettingsSource

from rlhf_ppo.config import Config
from rlhf_ppo.config.reading import (
    Json,
    NoValue,
    kind_of,
    merge,
    parse_yaml,
    read_config,
    section_of,
    to_yaml,
    without_nulls,
)
from rlhf_ppo.config.rewards import KINDS
from rlhf_ppo.console import begin
from rlhf_ppo.errors import UserError, shown

MISSING = object()
SWITCHES = ("resume",)  # may stand alone on the command line: --resume is --resume true


def load_config(
    argv: Sequence[str], default_path: Path, description: str = "Train a chat model with PPO."
) -> Config:
    """Read a YAML file, put dotted overrides on top, validate.

    Args:
        argv: arguments without the program's name.
        default_path: the config of a bare command.
        description: first line of `--help`.

    Raises:
        UserError: a missing or unreadable file, unknown or bad settings; lists all of them.
        SystemExit: after `--help` or `--print_config`.
    """
    parser = argparse.ArgumentParser(description=description, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, default=default_path)
    parser.add_argument("--print_config", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    known, rest = parser.parse_known_args(_split_equals(argv))
    if known.help:
        _print_help(description, default_path)
        raise SystemExit(0)
    from_file = read_config(known.config)
    overrides, problems = _read_overrides(rest)
    config = validate(merge(from_file, overrides), str(known.config), overrides, problems)
    if known.print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    begin(f"settings of {known.config}; loading libraries")
    return config


def validate(
    values: Json, source: str, overrides: Json | None = None, problems: Sequence[str] = ()
) -> Config:
    """Build a `Config`, or raise one `UserError` that lists every problem.

    Args:
        values: nested settings.
        source: where they come from, for the message.
        overrides: the part that came from the command line, for the message.
        problems: messages found before validation.
    """
    messages = list(problems)
    config = None
    try:
        config = Config.model_validate(without_nulls(values))
    except ValidationError as error:
        for item in error.errors():
            messages += _explain(dict(item), source, overrides or {})
    if messages or config is None:
        count = "1 problem" if len(messages) == 1 else f"{len(messages)} problems"
        listed = "\n".join(f"  - {message}" for message in messages)
        raise UserError(f"{source}: {count} in the settings:\n{listed}")
    return config


def setting_names(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """All settings as dotted names, sections left out."""
    names = []
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            names.append(prefix + name)
        else:
            names.extend(setting_names(section, f"{prefix}{name}."))
    return names


def _split_equals(argv: Sequence[str]) -> list[str]:
    """`--a=b` becomes `--a b`, so that there is one form to check."""
    words: list[str] = []
    for word in argv:
        if word.startswith("--") and "=" in word:
            words.extend(word.split("=", 1))
        else:
            words.append(word)
    return words


def _print_help(description: str, default_path: Path) -> None:
    """All settings with type, default and documentation, formatted by pydantic-settings."""
    intro = (
        f"{description}\n\n  --config FILE    YAML file with settings (default: {default_path})\n"
        "  --print_config   print the resolved settings and stop\n\n"
        "Every setting below can stand in the file or be given here."
    )
    parser = argparse.ArgumentParser(
        description=intro,
        epilog=_source_help(),
        usage="%(prog)s [--config FILE] [--section.name VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    CliSettingsSource(
        create_model("Settings", __base__=(Config, BaseSettings)),  # type: ignore[arg-type]  # a mix-in
        root_parser=parser,
        cli_parse_none_str="null",
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_use_class_docs_for_groups=True,
    )
    text = re.sub(r"^ {6}(?=\S)", "  ", parser.format_help(), flags=re.MULTILINE)
    # As it would be written in YAML; the parser shows Python's words.
    print(re.sub(r"(\(default:\s+)(None|True|False)\)", _in_yaml, text), end="")


def _in_yaml(default: re.Match[str]) -> str:
    words = {"None": "null", "True": "true", "False": "false"}
    return f"{default[1]}{words[default[2]]})"


def _source_help() -> str:
    """The settings of each kind of reward source, which the parser shows as JSON alone."""
    lines = [
        "each entry of reward.sources is a mapping, in the file or as YAML on the command line:"
    ]
    for source in KINDS:
        lines.append(f"\n  kind: {kind_of(source)}    {source.__doc__}")
        for name, field in source.model_fields.items():
            if name == "kind":
                continue
            default = "required" if field.is_required() else f"default: {field.default}"
            lines.append(f"    {name + ':':<15}{field.description} ({default})")
    return "\n".join(lines)


def _read_overrides(words: Sequence[str]) -> tuple[Json, list[str]]:
    """Parse `--section.name value` pairs into nested settings, and list what is wrong."""
    overrides: Json = {}
    problems: list[str] = []
    names = setting_names()
    sections = {name.rsplit(".", 1)[0] for name in names if "." in name}
    position = 0
    while position < len(words):
        word = words[position]
        value = words[position + 1] if position + 1 < len(words) else None
        name = word.removeprefix("--")
        position += 2
        if not word.startswith("--"):
            problems.append(f"{shown(word)} is not an option; settings are given as --name value.")
            position -= 1
        elif name in SWITCHES and (value is None or value.startswith("--")):
            _put(overrides, name, True)
            position -= 1
        elif value is None or value.startswith("--"):
            problems.append(f"--{name} needs a value, as in --{name} VALUE.")
            position -= 1
        elif name in names or name in sections:
            try:
                _put(overrides, name, _read_value(name, value))
            except ValueError as error:
                problems.append(f"--{name}: {shown(value)} is not valid YAML: {error}.")
        else:
            problems.append(f"--{name}: no such setting.{_nearest(name)}")
    return overrides, problems


def _read_value(name: str, text: str) -> Any:
    """A command-line value is read as YAML; where words are asked for, they stay as they are.

    YAML would turn `12` into a number and `a: b` into a mapping.

    Raises:
        ValueError: it is no YAML.
    """
    if text not in ("null", "~", "") and _takes_words(name):
        return text
    return parse_yaml(text)


def _takes_words(name: str) -> bool:
    """True if a setting holds one string."""
    model: type[BaseModel] = Config
    annotation: Any = None
    for part in name.split("."):
        annotation = model.model_fields[part].annotation
        model = section_of(annotation) or model
    union = get_origin(annotation) in (Union, types.UnionType)
    options = [
        option.__origin__ if get_origin(option) is Annotated else option
        for option in (get_args(annotation) if union else (annotation,))
    ]
    return any(option is str or get_origin(option) is Literal for option in options)


def _put(nested: Json, name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        nested = nested.setdefault(section, {})
    nested[last] = value


def _explain(item: Json, source: str, overrides: Json) -> list[str]:
    """A validation error as: where, which value, what is allowed, nearest name."""
    if not item["loc"] and item["type"] == "value_error":  # settings that contradict one another
        return [f"{line}." for line in str(item["msg"]).removeprefix("Value error, ").split("\n")]
    location = _settings_in(item["loc"])
    name = ".".join(str(part) for part in location)
    origin = "command line" if _lookup(overrides, location) is not MISSING else source
    if item["type"] == "extra_forbidden":
        kind = next((kind for kind in KINDS if kind_of(kind) in item["loc"]), None)
        near = _nearest(name) if kind is None else _nearest_in(kind, str(location[-1]))
        return [f"{name} ({origin}): no such setting.{near}"]
    if item["type"].startswith("union_tag"):
        kinds = ", ".join(kind_of(kind) for kind in KINDS)
        return [f"{name}.kind ({origin}): {shown(item['input'].get('kind'))} is none of {kinds}."]
    if item["type"] == "missing":
        return [f"{name}: missing; set it in {source} or with --{name} VALUE."]
    reason = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if isinstance(item["input"], NoValue):
        return [f"{name} ({origin}): has no value; give one, or null for the default."]
    return [f"{name or 'settings'} ({origin}): {shown(item['input'])} {reason}."]


def _settings_in(location: Sequence[Any]) -> list[Any]:
    """The parts of a location that a user wrote: pydantic puts types and union tags between."""
    kinds = {kind_of(kind) for kind in KINDS}
    written: list[Any] = []
    for part in location:
        is_tag = part in kinds and bool(written) and isinstance(written[-1], int)
        if not is_tag and part not in ("str", "int") and not str(part).startswith("function-"):
            written.append(part)
    return written


def _nearest_in(source: type[BaseModel], name: str) -> str:
    """The closest setting of a kind of reward source."""
    close = difflib.get_close_matches(name, source.model_fields, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]}?"
    return f" Kind {kind_of(source)} has {', '.join(sorted(source.model_fields))}."


def _lookup(nested: Any, path: Sequence[Any]) -> Any:
    for part in path:
        try:
            nested = nested[part]
        except (KeyError, IndexError, TypeError):
            return MISSING
    return nested


def _nearest(name: str) -> str:
    """The closest setting: the whole dotted name first, then its last part in any section."""
    section, _, last_part = name.rpartition(".")
    if section == "reward" and any(last_part in kind.model_fields for kind in KINDS):
        return f" It belongs to a source: reward.sources: [{{kind: ..., {last_part}: ...}}]."
    names = setting_names()
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    if not close:
        by_last = {full.rsplit(".", 1)[-1]: full for full in reversed(names)}
        last = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(by_last), n=1, cutoff=0.7)
        close = [by_last[key] for key in last]
    return f" Did you mean {close[0]}?" if close else " See --help for all settings."
