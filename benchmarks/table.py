"""From the runs of all sides to a table: each at its best rate, with intervals over seeds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from rlhf_ppo.evaluation.statistics import t_interval

Row = dict[str, float]
COSTS = ("optimizer_steps", "tokens", "cpu_seconds")
RESAMPLES = 2000


@dataclass(frozen=True)
class Runs:
    """The runs of one side at one rate, by seed."""

    side: str
    rate: float
    curves: dict[int, list[Row]]  # held-out J and what the policy had cost
    steps: dict[int, list[Row]]  # of training itself

    def final(self) -> list[float]:
        """J of each seed's last policy."""
        return [curve[-1]["j"] for curve in self.curves.values()]


def read_runs(folder: Path) -> list[Runs]:
    """All finished runs of a task: SIDE/RATE/SEED."""
    found = []
    for place in sorted(folder.glob("*/*")):
        curves, steps = {}, {}
        for run in sorted(place.glob("*/heldout.jsonl")):
            seed = int(run.parent.name)
            curves[seed] = _read(run)
            steps[seed] = _read(run.with_name("steps.jsonl"))
        if curves:
            found.append(Runs(place.parent.name, float(place.name), curves, steps))
    return found


def choose(runs: Sequence[Runs]) -> dict[str, Runs]:
    """Each side at the rate whose last policies have the highest mean held-out J."""
    chosen: dict[str, Runs] = {}
    for item in runs:
        before = chosen.get(item.side)
        if before is None or _mean(item.final()) > _mean(before.final()):
            chosen[item.side] = item
    return chosen


def cost_to_reach(curve: Sequence[Row], level: float, cost: str) -> float:
    """Where a curve first reaches a level of J, by straight lines from the start (cost 0)."""
    points = [(0.0, float("-inf")), *((row[cost], row["j"]) for row in curve)]
    for (x0, y0), (x1, y1) in pairwise(points):
        if y1 >= level:
            return x1 if y0 == float("-inf") else x0 + (x1 - x0) * (level - y0) / (y1 - y0)
    return float("inf")


def mean_curve(curves: Sequence[Sequence[Row]]) -> list[Row]:
    """Means over seeds, policy by policy."""
    return [
        {name: _mean([row[name] for row in rows]) for name in (*COSTS, "score", "kl", "j")}
        for rows in zip(*curves, strict=True)
    ]


def ratio(ours: Runs, theirs: Runs, cost: str) -> tuple[float, float, float]:
    """Our cost of reaching the peer's final J over the peer's own, with a 95 % interval.

    Seeds of both sides are resampled: the level, and both mean curves, are those of the resample.
    """
    a, b = list(ours.curves.values()), list(theirs.curves.values())
    generator = torch.Generator().manual_seed(0)

    def once(ours: Sequence[list[Row]], theirs: Sequence[list[Row]]) -> float:
        peer = mean_curve(theirs)[-1]
        return cost_to_reach(mean_curve(ours), peer["j"], cost) / peer[cost]

    def draw(curves: list[list[Row]]) -> list[list[Row]]:
        rows = torch.randint(len(curves), (len(curves),), generator=generator).tolist()
        return [curves[row] for row in rows]

    drawn = sorted(once(draw(a), draw(b)) for _ in range(RESAMPLES))
    return once(a, b), drawn[RESAMPLES // 40], drawn[-1 - RESAMPLES // 40]


def table(runs: Sequence[Runs], peer: str = "trl_ppo") -> str:
    """Every side and rate, then each chosen side against the peer, as Markdown."""
    lines = [
        "| side | rate | seeds | J | score | KL, nats | explained variance | CPU s a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item in runs:
        last = mean_curve(list(item.curves.values()))[-1]
        steps = list(item.steps.values())
        cpu = _mean([rows[-1]["cpu_seconds"] / (len(rows) - 1) for rows in steps])
        lines.append(
            f"| {item.side} | {item.rate:g} | {len(item.curves)} | {_interval(item.final())} | "
            f"{last['score']:.2f} | {last['kl']:.1f} | {_explained(steps)} | {cpu:.2f} |"
        )
    chosen = choose(runs)
    if peer in chosen:
        lines += ["", f"| side | rate | {' | '.join(COSTS)} |", "|---|---|---|---|---|"]
        for side, item in chosen.items():
            found = [ratio(item, chosen[peer], cost) for cost in COSTS]
            cells = " | ".join(f"{a:.2f} [{b:.2f}, {c:.2f}]" for a, b, c in found)
            lines.append(f"| {side} | {item.rate:g} | {cells} |")
        lines.append(f"\nCost of reaching the final J of {peer}, over what it cost there.")
    return "\n".join(lines)


def show(folder: Path) -> None:
    """Print the table; keep it and the mean curves beside the runs."""
    runs = read_runs(folder)
    text = table(runs)
    curves = [
        {"side": item.side, "rate": item.rate, "seeds": list(item.curves)}
        | {"curve": mean_curve(list(item.curves.values())), "final": item.final()}
        for item in runs
    ]
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    (folder / "curves.json").write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    print(text)


def _explained(runs: Sequence[Sequence[Row]]) -> str:
    """Explained variance over the last six steps."""
    name = "value/explained_variance"
    found = [row[name] for rows in runs for row in rows[-6:] if name in row]
    return f"{_mean(found):.2f}" if found else ""


def _interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    found = t_interval(values)
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _read(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
