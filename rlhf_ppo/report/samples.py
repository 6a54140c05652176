"""The samples as data for the page's table: small enough to send by mail, safe to embed."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from rlhf_ppo.report.folder import Json, RunFolder, lookup, number

MOST_BYTES = 1_500_000  # of all samples: the page stays under 3 MB
MOST_CHARACTERS = 6_000  # of one text


def run_samples(run: RunFolder) -> Json:
    """Columns and rows of the table of one run: before, after, greedy, other models."""
    columns = [("before", "reference"), ("after", "policy")]
    cells = [[_cell(row, side) for _, side in columns] for row in run.samples]
    if any("greedy" in row for row in run.samples):
        columns += [("before, greedy", "greedy"), ("after, greedy", "greedy")]
        for row, line in zip(run.samples, cells, strict=True):
            line += [_cell(row, "greedy", side) for side in ("reference", "policy")]
    names: dict[str, None] = {}
    for row in run.samples:
        names |= dict.fromkeys(lookup(row, "models") or {})
    for name in names:
        for row, line in zip(run.samples, cells, strict=True):
            line += [_cell(row, "models", name, *inner) for inner in _model_sides(run, name)]
        inner_names = _model_sides(run, name)
        columns += [(" ".join((name, *inner)), name) for inner in inner_names]
    prompts = [row["prompt"] for row in run.samples]
    styles = {"reference": "before", "policy": "after"}
    labels = {
        label: "before" if label.startswith("before") else styles.get(kind, "other")
        for label, kind in columns
    }
    labels |= {label: "after" for label in labels if label.startswith("after")}
    return _embedded(labels, prompts, cells)


def compared_samples(runs: Sequence[RunFolder]) -> Json:
    """The answers of several runs to the prompts that all of them were asked."""
    asked = [{_identity(row["prompt"]): row for row in run.samples} for run in runs]
    common = [key for key in asked[0] if all(key in rows for rows in asked)]
    cells = [[_cell(rows[key], "policy") for rows in asked] for key in common]
    before = [_cell(asked[0][key], "reference") for key in common]
    labels = {run.name: f"run-{place}" for place, run in enumerate(runs)}
    labels[f"before ({runs[0].name})"] = "plain"
    rows = [[*line, start] for line, start in zip(cells, before, strict=True)]
    return _embedded(labels, [asked[0][key]["prompt"] for key in common], rows)


def as_script(data: Json) -> Markup:
    """JSON that can stand inside a `script` element: nothing in it ends the element or a line."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate, which JSON can hold, cannot be written as UTF-8.
    return Markup(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _embedded(labels: Mapping[str, str], prompts: Sequence[Any], cells: Sequence[Any]) -> Json:
    """Rows as short lists; if they are too many, a part of them, evenly spread.

    Args:
        labels: of the columns, each with its style: the colour that it has in the charts.
        prompts: one a row.
        cells: one a column in each row.
    """
    rows = [
        [number_, _prompt(prompt), line]
        for number_, (prompt, line) in enumerate(zip(prompts, cells, strict=True), start=1)
    ]
    sizes = [len(as_script({"row": row}).encode("utf-8")) for row in rows]
    kept = len(rows)
    chosen = list(range(kept))
    while kept > 1 and sum(sizes[index] for index in chosen) > MOST_BYTES:
        kept = min(kept - 1, int(kept * MOST_BYTES / sum(sizes[index] for index in chosen)) or 1)
        chosen = [place * len(rows) // kept for place in range(kept)]
    return {
        "columns": list(labels),
        "styles": list(labels.values()),
        "total": len(rows),
        "rows": [rows[i] for i in chosen],
    }


def _model_sides(run: RunFolder, name: str) -> list[tuple[str, ...]]:
    """Whether a model's samples lie one level deeper, under sampled and greedy."""
    first = next(found for row in run.samples if (found := lookup(row, "models", name)))
    return [()] if "response" in first else [(key,) for key in first]


def _identity(prompt: Any) -> str:
    return json.dumps(prompt, sort_keys=True)


def _prompt(prompt: Any) -> list[list[str]]:
    """Role and content of each message; a plain string has no role."""
    if isinstance(prompt, str):
        return [["", _cut(prompt)]]
    messages = [item if isinstance(item, Mapping) else {"content": item} for item in prompt]
    return [
        [str(item.get("role", "")), _cut(_content(item.get("content", "")))] for item in messages
    ]


def _content(content: Any) -> str:
    """What a message says; its parts are joined where it has several."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(lookup(part, "text") or part) for part in content)
    return json.dumps(content, ensure_ascii=False)


def _cell(row: Json, *place: str) -> Json | None:
    """An answer and its numbers; those that are missing are left out."""
    side = lookup(row, *place)
    if not isinstance(side, Mapping) or not isinstance(side.get("response"), str):
        return None
    gold = side.get("gold")
    parts = gold if isinstance(gold, Mapping) else {"score": gold}
    found = {
        "score": number(side.get("score")),
        "gold": number(parts.get("score")),
        "length": number(side.get("length")),
        "kl": number(side.get("kl")),
    }
    cell: Json = {"text": _cut(side["response"])}
    cell |= {key: _short(value) for key, value in found.items() if math.isfinite(value)}
    if side.get("stopped") is False:
        cell["cut"] = 1
    named = {key: _short(number(value)) for key, value in parts.items() if key != "score"}
    named = {key: value for key, value in named.items() if value and math.isfinite(value)}
    if named:
        cell["parts"] = named
    return cell


def _short(value: float) -> float | int:
    """Five figures are enough to read and to sort."""
    short = float(f"{value:.5g}")
    return int(short) if short.is_integer() else short


def _cut(text: str) -> str:
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]} … [{len(text) - MOST_CHARACTERS} more characters]"
