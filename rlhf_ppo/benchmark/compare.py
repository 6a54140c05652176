"""Steps of several processes in alternation, on one core, and the table of their ratios."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from rlhf_ppo.benchmark.models import AXES, LONGEST, SHAPES, Shape, make_assets
from rlhf_ppo.benchmark.worker import EPOCHS, VARIANTS, make_config
from rlhf_ppo.errors import UserError, raise_all
from rlhf_ppo.resources import reward_shapes
from rlhf_ppo.training.memory import Work, forecast_ppo

Row = dict[str, float]
Result = dict[str, Any]
WORKER = "rlhf_ppo.benchmark.worker"
GATE = Path(__file__).with_name("peer_gate.py")
PHASES = ("step", "generate", "judge", "update")


class Worker:
    """One side: a process that makes a step for each line it is sent."""

    def __init__(self, command: list[str]) -> None:
        """Start it and wait until it is ready."""
        self.command = command
        self.rows: list[Row] = []
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise UserError(f"{command[0]}: cannot be started ({error.strerror}).") from error
        self._answer()

    def step(self) -> None:
        """One step, timed from outside."""
        began = time.perf_counter()
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.rows.append(answer | {"seconds": time.perf_counter() - began})

    def finish(self) -> list[Row]:
        """End it; what it said of each step."""
        self.process.communicate()
        return self.rows

    def _answer(self) -> Row:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: Row = json.loads(line)
                found.pop("ready", None)
                return found
        raise UserError(f"a benchmark process ended early: {' '.join(self.command)}")


class Peer(Worker):
    """The other side, whose script tells what it measured only at its end."""

    def __init__(self, python: str, script: str, shape: Shape, steps: int, folder: Path) -> None:
        """Start it behind `peer_gate.py`; the models lie in `folder`."""
        self.numbers, self.waits = folder / "peer.json", folder / "waits.json"
        arguments = {
            "--policy": folder / "policy",
            "--reward": folder / "reward",
            "--prompts": folder / "prompts.jsonl",
            "--response-length": shape.response,
            "--batch-size": shape.batch,
            "--updates": steps + 2,  # one to warm up, and a last one that ends the one before
            "--ppo-epochs": EPOCHS,
            "--minibatches": 1,
            "--microbatch": max(4, shape.batch // 4),
            "--out": self.numbers,
        }
        words = [str(word) for pair in arguments.items() for word in pair]
        super().__init__([python, str(GATE), str(self.waits), script, *words])

    def finish(self) -> list[Row]:
        """Let it end; its tokens and phases, its generation without the time at the gate."""
        self.process.communicate("step\n")
        found = json.loads(self.numbers.read_text(encoding="utf-8"))
        waits = json.loads(self.waits.read_text(encoding="utf-8"))
        for row, update, wait in zip(self.rows, found["updates"], waits, strict=False):
            row["tokens"] = update["resp_tokens"]
            row["generate"] = update["generate_s"] - wait
            row["judge"], row["update"] = update["score_s"], update["update_s"]
            row["memory_mb"] = found["peak_rss_mb"] - found["rss_after_import_mb"]
        return self.rows


def check(
    name: str,
    variants: Sequence[str],
    steps: int,
    peer: Sequence[str | None],
    axis: str | None = None,
) -> None:
    """Everything that can be said before a process is started.

    Raises:
        UserError: an unknown shape, variant or axis, no steps, half a peer; lists every problem.
    """
    problems = []
    if axis is not None and axis not in AXES:
        problems.append(f"--scaling {axis}: choose one of {', '.join(AXES)}")
    if axis is not None and peer[0] is not None:
        problems.append("--scaling is of our step alone: leave out --peer_python")
    if name not in SHAPES:
        problems.append(f"--shape {name}: choose one of {', '.join(SHAPES)}")
    for variant in variants:
        if variant not in VARIANTS:
            problems.append(f"--variants {variant}: choose from {', '.join(VARIANTS)}")
    if steps < 1:
        problems.append(f"--steps {steps}: give 1 or more")
    if (peer[0] is None) != (peer[1] is None):
        problems.append("--peer_python and --peer_script belong together: give both or none")
    for path in peer:
        if path is not None and not Path(path).is_file():
            problems.append(f"{path}: no such file (--peer_python, --peer_script)")
    raise_all(problems)


def run_benchmark(
    name: str, variants: Sequence[str], steps: int, peer: tuple[str, str] | None
) -> Result:
    """Alternate the steps of all variants, and of the peer if one is given.

    Args:
        name: a shape, see `models.SHAPES`.
        variants: of ours, see `worker.VARIANTS`.
        steps: measured ones of each, after one to warm up.
        peer: the peer's Python and its benchmark script.
    """
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_assets(shape, folder)
        workers: dict[str, Worker] = {}
        if peer is not None:
            workers["peer"] = Peer(*peer, shape, steps, folder)
        for variant in variants:
            workers[variant] = ours(folder, variant, shape)
        sides = alternate(workers, steps)
        for variant in variants:
            sides[variant]["forecast_mb"] = forecast_mb(folder, shape, variant)
    for variant in variants:
        work = update_gflop(shape, variant, sides[variant])
        sides[variant]["update_gflops"] = work / sides[variant]["update"]
    if peer is not None:
        # Both sides walk through the same prompts, in another order.
        prompts = statistics.mean(sides[variant]["prompt_tokens"] for variant in variants)
        for side in sides.values():
            for phase in PHASES:
                key = f"{phase}_ms_a_token"
                side[f"{phase}_ratio"] = sides["peer"][key] / side[key]
            side["ms_a_real_token"] = 1000 * side["seconds"] / (side["tokens"] + prompts)
        for side in sides.values():
            side["real_ratio"] = sides["peer"]["ms_a_real_token"] / side["ms_a_real_token"]
            side["memory_share"] = side["memory_mb"] / sides["peer"]["memory_mb"]
    return {"shape": name, "steps": steps, "peak_gflops": matmul_peak(), "sides": sides}


def ours(folder: Path, variant: str, shape: Shape, *words: str) -> Worker:
    """A process of ours on the models in `folder`."""
    numbers = json.dumps(asdict(shape))
    return Worker([sys.executable, "-m", WORKER, str(folder), variant, numbers, *words])


def alternate(workers: Mapping[str, Worker], steps: int) -> dict[str, Row]:
    """Medians of each side's steps, which take turns, after one to warm up."""
    for _ in range(steps + 1):
        for worker in workers.values():
            worker.step()
    return {side: _medians(worker.finish()[1:]) for side, worker in workers.items()}


def forecast_mb(folder: Path, shape: Shape, variant: str) -> float:
    """The memory that a run would have been told of at its start, beside its imports."""
    config = make_config(folder, shape, variant)
    policy = AutoConfig.from_pretrained(folder / "policy")
    work = Work(shape.batch, LONGEST, "cpu", config.hardware.mixed_precision or "no")
    return forecast_ppo(config, policy, reward_shapes(config, policy), work).needed / 2**20


def update_gflop(shape: Shape, variant: str, row: Row) -> float:
    """Useful work of an update: each real token once forward and twice backward a pass, GFLOP.

    Only products with weights; attention, a few percent at these lengths, is left out.
    """
    tokens = row["tokens"] + row["prompt_tokens"]
    trunks = 2 if variant == "separate" else 1
    weights = trunks * shape.trunk_parameters * tokens + shape.head_parameters * row["tokens"]
    return EPOCHS * 6 * weights / 1e9


def matmul_peak() -> float:
    """Best float32 matrix product of one thread of this machine, GFLOP/s."""
    torch.set_num_threads(1)
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    best = float("inf")
    for _ in range(12):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * 1536**3 / best / 1e9


def table(result: Result) -> str:
    """The result as Markdown."""
    lines = [
        f"{result['shape']}, {result['steps']} steps each, float32 peak "
        f"{result['peak_gflops']:.0f} GFLOP/s",
        "",
        "| | ms a response token | tokens/s | generate s | judge s | update s | of peak "
        "| memory MB | forecast MB | ratio to the peer | ratio a real token | generate ratio "
        "| memory share |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, side in result["sides"].items():
        cells = [
            f"{side['step_ms_a_token']:.2f}",
            f"{1000 / side['step_ms_a_token']:.0f}",
            *(f"{side[phase]:.2f}" for phase in ("generate", "judge", "update")),
            _percent(side.get("update_gflops"), result["peak_gflops"]),
            f"{side['memory_mb']:.0f}",
            f"{side['forecast_mb']:.0f}" if "forecast_mb" in side else "",
        ]
        for key in ("step_ratio", "real_ratio", "generate_ratio", "memory_share"):
            cells.append(f"{side[key]:.2f}" if key in side else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(speed: float | None, peak: float) -> str:
    return "" if speed is None else f"{speed / peak:.0%}"


def _medians(rows: list[Row]) -> Row:
    side = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    side["memory_mb"] = max(row["memory_mb"] for row in rows)
    for phase in PHASES:
        key = "seconds" if phase == "step" else phase
        each = [1000 * row[key] / row["tokens"] for row in rows]
        side[f"{phase}_ms_a_token"] = statistics.median(each)
    return side
