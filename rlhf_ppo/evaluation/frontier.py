"""Score and gold against the KL spent: PPO beside best-of-n of the reference."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor

from rlhf_ppo.evaluation.best_of_n import best_of, best_of_kl, sizes
from rlhf_ppo.evaluation.over_optimisation import FORMS, Found, Path, turning_point
from rlhf_ppo.evaluation.sides import Side
from rlhf_ppo.evaluation.statistics import Estimate, bootstrap_mean

Rows = dict[str, Any]  # a line of `heldout.jsonl`


@dataclass(frozen=True)
class Frontier:
    """The two paths; either may be missing."""

    best_of_n: Path | None
    samples_per_prompt: int
    ppo: Path | None
    correctness: bool = False  # the score says right or wrong, so that no gold score is needed


def read_history(file: File) -> list[Rows]:
    """The evaluations during training, see `docs/metrics.md`; none without such a file."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def best_of_path(side: Side, copies: int) -> Path | None:
    """Best-of-n from `copies` responses to each prompt; prompts with a missing score are left out.

    Args:
        side: (P * copies) responses of the reference, those to one prompt together.
        copies: N, the largest n.
    """
    scores = side.scores.view(-1, copies)
    whole = scores.isfinite().all(dim=1)
    scores = scores[whole]
    if not len(scores):
        return None

    def path_of(values: Tensor) -> Tensor:
        return torch.stack([best_of(scores, values, n) for n in sizes(copies)], dim=1)

    kl = torch.tensor([best_of_kl(n) for n in sizes(copies)], dtype=torch.float64)
    gold = path_of(side.gold_scores.view(-1, copies)[whole]) if side.gold else None
    return Path(kl.expand(len(scores), -1), path_of(scores), gold)


def ppo_path(history: Sequence[Rows]) -> Path | None:
    """The evaluations of one run, on the prompts that all of them asked and scored.

    Args:
        history: lines of `heldout.jsonl`, the reference (step 0) first; perhaps with the final
            policy as one more.
    """
    if len(history) < 2 or history[0]["step"] != 0:
        return None
    count = min(len(entry["score"]) for entry in history)

    def table(name: str) -> Tensor:
        columns = [
            [float("nan") if value is None else value for value in entry[name][:count]]
            for entry in history
        ]
        return torch.tensor(columns, dtype=torch.float64).T

    score = table("score")
    whole = score.isfinite().all(dim=1)
    if not bool(whole.any()):
        return None
    gold = table("gold")[whole] if all("gold" in entry for entry in history) else None
    steps = [int(entry["step"]) for entry in history]
    return Path(table("kl")[whole], score[whole], gold, steps)


def summarise_frontier(frontier: Frontier, samples: int, seed: int) -> dict[str, Any]:
    """`frontier.json`: the points of both paths, and where gold turns, each with its interval.

    Args:
        frontier: the paths.
        samples: resamples of the prompts.
        seed: of the resampling.
    """
    paths: Mapping[str, Path | None] = {"best_of_n": frontier.best_of_n, "ppo": frontier.ppo}
    found: dict[str, Found] = {}
    for name, path in paths.items():
        if path is None:
            text = "not measured; no curve is fitted"
            found[name] = Found({"found": False, "text": text}, None)
        elif path.gold is None and frontier.correctness:
            text = "the score is correctness, which cannot be over-optimised; see pass@k"
            found[name] = Found({"found": False, "text": text}, None)
        else:
            found[name] = turning_point(path, FORMS[name], samples, seed)
    best = frontier.best_of_n
    tried = [] if best is None else sizes(frontier.samples_per_prompt)
    steps = [] if frontier.ppo is None else (frontier.ppo.steps or [])
    return {
        "prompts": 0 if best is None else len(best.score),
        "samples_per_prompt": frontier.samples_per_prompt,
        "best_of_n": [
            {"n": n, "kl": best_of_kl(n)} | _point(best, place, samples, seed)
            for place, n in enumerate(tried)
            if best is not None
        ],
        "ppo": [
            {"step": step, "kl": _estimate(frontier.ppo.kl[:, place], samples, seed)}
            | _point(frontier.ppo, place, samples, seed)
            for place, step in enumerate(steps)
            if frontier.ppo is not None
        ],
        "fits": {name: result.fits for name, result in found.items()},
        "turning_point": {name: result.turning_point for name, result in found.items()},
    }


def _point(path: Path, place: int, samples: int, seed: int) -> dict[str, Estimate]:
    point = {"score": _estimate(path.score[:, place], samples, seed)}
    if path.gold is not None:
        point["gold"] = _estimate(path.gold[:, place], samples, seed)
    return point


def _estimate(values: Tensor, samples: int, seed: int) -> Estimate:
    return bootstrap_mean(values.tolist(), samples, seed)
