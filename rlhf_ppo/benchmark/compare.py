"""Steps of several processes in alternation, on one core, and the table of their ratios."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rlhf_ppo.benchmark.models import SHAPES, Shape
from rlhf_ppo.benchmark.worker import EPOCHS
from rlhf_ppo.errors import UserError

Row = dict[str, float]
GATE = Path(__file__).with_name("peer_gate.py")
PHASES = ("step", "generate", "judge", "update")


@dataclass
class Worker:
    """A process that makes one step for each line it is sent."""

    name: str
    command: list[str]
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start it and wait until it is ready."""
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def step(self) -> None:
        """One step, timed from outside as well."""
        began = time.perf_counter()
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.rows.append({"seconds": time.perf_counter() - began} | answer)

    def close(self) -> None:
        """Let it end."""
        self.process.communicate()

    def _answer(self) -> Row:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: Row = json.loads(line)
                found.pop("ready", None)
                return found
        raise UserError(f"the benchmark process {self.name} ended early: {' '.join(self.command)}")


def run_benchmark(
    name: str, variants: list[str], steps: int, assets: Path, peer: tuple[str, str] | None
) -> dict[str, Any]:
    """Alternate the steps of all variants, and of the peer if one is given.

    Args:
        name: a shape, see `models.SHAPES`.
        variants: of ours, see `worker.VARIANTS`.
        steps: measured ones of each, after one to warm up.
        assets: folder of the models.
        peer: the peer's Python and its benchmark script.
    """
    shape = SHAPES[name]
    workers = [
        Worker(variant, [sys.executable, "-m", "rlhf_ppo.benchmark.worker", str(assets), name,
                         variant, str(steps + 1)])
        for variant in variants
    ]  # fmt: skip
    files = Path(tempfile.mkdtemp())
    if peer is not None:
        workers.insert(0, Worker("peer", _peer_command(shape, steps, assets, peer, files)))
    for _ in range(steps + 1):
        for worker in workers:
            worker.step()
    sides = {}
    for worker in workers:
        if worker.name == "peer":
            assert worker.process.stdin is not None
            worker.process.stdin.write("step\n")  # its last one says that the one before ended
        worker.close()
        if worker.name == "peer":
            _add_what_the_script_says(worker.rows, files)
        sides[worker.name] = _medians(worker.rows[1:])
        if worker.name != "peer":
            for row in worker.rows:
                row["gflops"] = update_gflop(shape, worker.name, row) / row["update"]
            speeds = [row["gflops"] for row in worker.rows[1:]]
            sides[worker.name]["update_gflops"] = statistics.median(speeds)
    if "peer" in sides:
        for side in sides.values():
            for phase in PHASES:
                key = f"{phase}_ms_a_token"
                side[f"{phase}_ratio"] = sides["peer"][key] / side[key]
            side["memory_share"] = side["memory_mb"] / sides["peer"]["memory_mb"]
    return {"shape": name, "steps": steps, "peak_gflops": matmul_peak(), "sides": sides}


def update_gflop(shape: Shape, variant: str, row: Row) -> float:
    """Useful work of an update: each real token once forward and twice backward a pass, GFLOP.

    Only products with weights; attention, a few percent at these lengths, is left out.
    """
    tokens = row["tokens"] + row["prompt_tokens"]
    trunks = 2 if variant == "separate" else 1
    weights = trunks * shape.trunk_parameters * tokens + shape.head_parameters * row["tokens"]
    return EPOCHS * 6 * weights / 1e9


def matmul_peak() -> float:
    """Best float32 matrix product of this machine's one thread, GFLOP/s."""
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    best = float("inf")
    for _ in range(12):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * 1536**3 / best / 1e9


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"{result['shape']}, {result['steps']} steps each, float32 peak "
        f"{result['peak_gflops']:.0f} GFLOP/s",
        "",
        "| | ms a response token | tokens/s | generate s | judge s | update s | of peak "
        "| memory MB | ratio to the peer | generate ratio | memory share |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, side in result["sides"].items():
        cells = [
            f"{side['step_ms_a_token']:.2f}",
            f"{1000 / side['step_ms_a_token']:.0f}",
            *(f"{side[phase]:.2f}" for phase in ("generate", "judge", "update")),
            _percent(side.get("update_gflops"), result["peak_gflops"]),
            f"{side['memory_mb']:.0f}",
        ]
        for key in ("step_ratio", "generate_ratio", "memory_share"):
            cells.append(f"{side[key]:.2f}" if key in side else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(speed: float | None, peak: float) -> str:
    return "" if speed is None else f"{speed / peak:.0%}"


def _peer_command(
    shape: Shape, steps: int, assets: Path, peer: tuple[str, str], files: Path
) -> list[str]:
    python, script = peer
    arguments = {
        "--policy": assets / "policy",
        "--reward": assets / "reward",
        "--prompts": assets / "prompts.jsonl",
        "--response-length": shape.response,
        "--batch-size": shape.batch,
        "--updates": steps + 2,
        "--ppo-epochs": EPOCHS,
        "--minibatches": 1,
        "--microbatch": max(4, shape.batch // 4),
        "--out": files / "peer.json",
    }
    words = [str(word) for pair in arguments.items() for word in pair]
    return [python, str(GATE), str(files / "waits.json"), script, *words]


def _add_what_the_script_says(rows: list[Row], files: Path) -> None:
    """Tokens and phases of the peer's updates; its generation without the time at the gate."""
    found = json.loads((files / "peer.json").read_text(encoding="utf-8"))
    waits = json.loads((files / "waits.json").read_text(encoding="utf-8"))
    for row, update, wait in zip(rows, found["updates"], waits, strict=False):
        row["tokens"] = update["resp_tokens"]
        row["generate"] = update["generate_s"] - wait
        row["judge"], row["update"] = update["score_s"], update["update_s"]
        row["memory_mb"] = found["peak_rss_mb"] - found["rss_after_import_mb"]


def _medians(rows: list[Row]) -> Row:
    side = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    side["memory_mb"] = max(row["memory_mb"] for row in rows)
    for phase in PHASES:
        key = "seconds" if phase == "step" else phase
        each = [1000 * row[key] / row["tokens"] for row in rows]
        side[f"{phase}_ms_a_token"] = statistics.median(each)
    return side
