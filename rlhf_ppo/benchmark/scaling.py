"""Whether a step's cost grows as its work does: more prompts, longer responses, more vocabulary."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_ppo.benchmark.compare import Row, alternate, ours, update_gflop
from rlhf_ppo.benchmark.models import AXES, SHAPES, Shape, make_assets
from rlhf_ppo.models.forward import CHUNK_BYTES, CHUNK_TOKENS

# Of each output and input table: weights, gradient and two moments in the policy, one in the
# reference. The reward model has no output table. Generation makes one reordered output table.
OUTPUT_TABLES, INPUT_TABLES = 4 + 1 + 1, 4 + 1 + 1
CHUNKS = 3  # logits, their log-probabilities, and a table made from these


def run_scaling(axis: str, steps: int, shape: str = "S") -> dict[str, Any]:
    """Steps of all points of an axis in alternation, each in a process of its own.

    Args:
        axis: one of `AXES`.
        steps: measured ones of each, after one to warm up.
        shape: what the other numbers are, one of `SHAPES`.
    """
    field, values = AXES[axis]
    points: dict[str, Shape] = {
        f"{axis} {value}": replace(SHAPES[shape], **{field: value}) for value in values
    }
    with tempfile.TemporaryDirectory() as temporary:
        workers = {}
        for number, (name, point) in enumerate(points.items()):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            make_assets(point, folder)
            workers[name] = ours(folder, "shared", point)
        rows = alternate(workers, steps)
    for name, row in rows.items():
        _add_derived(row, points[name])
    return {"axis": axis, "steps": steps, "points": rows}


def scaling_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| | real tokens a step | ms a token | generate ms a response token | judge ms a token "
        "| update ms a token | update GFLOP/s | memory MB | of these tables and chunks |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["points"].items():
        cells = [
            f"{row['real_tokens']:.0f}",
            *(
                f"{row[key]:.2f}"
                for key in ("step_ms", "generate_ms_a_token", "judge_ms", "update_ms")
            ),
            f"{row['update_gflops']:.0f}",
            f"{row['memory_mb']:.0f}",
            f"{row['tables_mb']:.0f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _add_derived(row: Row, shape: Shape) -> None:
    """Times a token, and the memory that vocabulary must take."""
    real = row["tokens"] + row["prompt_tokens"]
    row["real_tokens"] = real
    for name, key in (("step_ms", "seconds"), ("judge_ms", "judge"), ("update_ms", "update")):
        row[name] = 1000 * row[key] / real
    row["update_gflops"] = update_gflop(shape, "shared", row) / row["update"]
    table = 4 * shape.hidden * shape.vocabulary
    chunk = max(CHUNK_BYTES["cpu"], CHUNK_TOKENS * 4 * shape.vocabulary)
    row["tables_mb"] = ((OUTPUT_TABLES + INPUT_TABLES) * table + CHUNKS * chunk) / 2**20
