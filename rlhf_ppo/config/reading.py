"""YAML files to nested settings: one that extends another, `null`, and what YAML reads wrongly.

Numbers and words are read by YAML 1.2: `no` is a word, 1e-5 a number, 1:30 neither 90 nor a number.
"""

import re
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from rlhf_ppo.config import Config
from rlhf_ppo.config.rewards import KINDS
from rlhf_ppo.errors import UserError, shown

Json = dict[str, Any]
INTEGER = re.compile(r"^[-+]?[0-9]+$")
FLOAT = re.compile(
    r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)
STR, INT, REAL, BOOL, NULL, MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "merge")
)


class NoValue(str):
    """What stands after a key without a value: unlike `null`, it may have been forgotten."""

    def __repr__(self) -> str:
        return "no value"


class Loader(yaml.SafeLoader):
    """YAML 1.2's plain words and numbers; a key that stands twice is refused."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own way

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping; PyYAML would keep the last of equal keys."""
        keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise _refusal(node, f"the key {shown(key)} stands twice")
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


class Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else."""


def _whole(loader: Loader, node: Any) -> Any:
    digits = node.value.lstrip("+-")
    if len(digits) > 1 and digits.startswith("0"):
        raise _refusal(node, f"{shown(node.value)} begins with 0, which some read as octal")
    if len(digits) > 1000:
        raise _refusal(node, f"a number of {len(digits)} digits")
    return int(node.value)


def _refusal(node: Any, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _real(loader: Loader, node: Any) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _nothing(loader: Loader, node: Any) -> Any:
    return None if node.value else NoValue()


for tag, pattern, first in (
    (BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    (NULL, re.compile(r"^(~|null|Null|NULL|)$"), "~nN"),
    (INT, INTEGER, "-+0123456789"),
    (REAL, FLOAT, "-+0123456789."),
    (MERGE, re.compile(r"^<<$"), "<"),
):
    Loader.add_implicit_resolver(tag, pattern, [*first, ""] if tag == NULL else list(first))
Loader.add_constructor(INT, _whole)
Loader.add_constructor(REAL, _real)
Loader.add_constructor(NULL, _nothing)
Dumper.add_implicit_resolver(REAL, FLOAT, list("-+0123456789."))
Dumper.add_implicit_resolver(INT, INTEGER, list("-+0123456789"))


def to_yaml(config: Config) -> str:
    """The resolved settings as YAML; running them again gives the same run."""
    content = config.model_dump(mode="json")
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: it is not YAML, or holds what no setting can be; one line says why and where.
    """
    try:
        return yaml.load(text, Loader=Loader)  # a safe loader
    except (yaml.YAMLError, ValueError) as error:
        words = str(error).replace('in "<unicode string>", ', "").split()
        raise ValueError(" ".join(words)) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except Exception as error:  # PyYAML's constructors raise whatever Python does
        raise ValueError("a value does not fit its tag (!!...)") from error


def read_config(path: Path, above: tuple[Path, ...] = ()) -> Json:
    """Settings of a YAML file, on top of those of the file that its `extends` names.

    Args:
        path: the file.
        above: files that led here, which it must not extend in turn.

    Raises:
        UserError: a file cannot be read, or files extend one another in a circle.
    """
    settings = read_yaml(path)
    base = settings.pop("extends", None)
    if base is None:
        return settings
    if not isinstance(base, str) or not base:
        raise UserError(f"{path}: extends must name one YAML file, not {shown(base)}.")
    below = path.parent / base
    try:
        chain = (*above, path.resolve())
        circle = below.resolve() in chain
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: extends {shown(base)}, which is no path.") from error
    if circle:
        raise UserError(f"{path}: extends {base}, which leads back here. Remove one of the two.")
    return merge(read_config(below, chain), settings)


def read_yaml(path: Path) -> Json:
    """Read a mapping from a YAML file.

    Raises:
        UserError: no such file, not YAML (with the line), or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(
            f"{path}: cannot read the config file ({reason}). Give an existing YAML "
            "file to --config; see configs/ for examples."
        ) from error
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if content is None or isinstance(content, NoValue):
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold settings like `seed: 1`, not {shown(content)}.")
    return {str(name): value for name, value in content.items()}


def merge(below: Json, above: Json, model: type[BaseModel] = Config) -> Json:
    """Settings on top of others, section by section.

    A list or a mapping that is a setting (`data.columns`) is replaced whole.

    Args:
        below: nested settings.
        above: what wins.
        model: whose settings they are.
    """
    merged = dict(below)
    for name, value in above.items():
        field = model.model_fields.get(name)
        section = None if field is None else section_of(field.annotation)
        under = merged.get(name)
        if section is not None and isinstance(value, dict) and isinstance(under, dict):
            merged[name] = merge(under, value, section)
        else:
            merged[name] = value
    return merged


def without_nulls(values: Json, model: type[BaseModel] = Config) -> Json:
    """Settings in which `null` gives a setting that has no null of its own its default back.

    So each setting of a file can be taken away from the command line or in a file that extends it.

    Args:
        values: nested settings, merged.
        model: whose settings they are.
    """
    kept: Json = {}
    for name, value in values.items():
        field = model.model_fields.get(name)
        if field is None:
            kept[name] = value
            continue
        section = section_of(field.annotation)
        optional = type(None) in get_args(field.annotation)
        if isinstance(value, NoValue) and optional:
            value = None
        if value is None and not optional:
            continue
        if section is not None and isinstance(value, dict):
            value = without_nulls(value, section)
        elif name in ("sources", "members") and isinstance(value, list):
            value = [_source_without_nulls(item) for item in value]
        kept[name] = value
    return kept


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The settings class behind `Section` or `Section | None`, None for a plain value."""
    options = (
        get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else [annotation]
    )
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def kind_of(source: type[BaseModel]) -> str:
    """What stands in `kind` for a class of reward source."""
    (kind,) = get_args(source.model_fields["kind"].annotation)
    return str(kind)


def _source_without_nulls(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    kind = next((kind for kind in KINDS if kind_of(kind) == item.get("kind")), None)
    return item if kind is None else without_nulls(item, kind)
