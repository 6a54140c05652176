"""Run folders as a run leaves them, made up: for tests of the report, which reads nothing else."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf_ppo.config import Config

NASTY = [
    "<script>window.pwned = 1</script>",
    "</script><img src=x onerror='window.pwned = 2'>",
    "<b>bold</b> & &amp; \u2028 line \u2029 paragraph",
    "smile \U0001f600 family \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "w" * 3000,
    "<!-- not a comment <script>",
    "{{ 7 * 7 }} {% raw %}",
]


def estimate(mean: float, half: float = 0.05) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def write_lines(file: Path, rows: Sequence[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def metrics_row(step: int, noise: random.Random, gold: bool, values: bool) -> dict[str, float]:
    rise = 1 - math.exp(-step / 30)
    row = {
        "step": step,
        "episodes": 8 * step,
        "tokens": 80 * step,
        "score/mean": rise + noise.gauss(0, 0.1),
        "score/std": 1.0 + noise.random(),
        "kl/ref": 3 * rise,
        "kl/beta": 0.1,
        "kl/update": 0.01 * noise.random(),
        "policy/entropy": 2 - rise,
        "policy/loss": math.nan if step == 3 else noise.gauss(0, 0.01),
        "response/length": 20 + noise.random(),
        "response/stopped": 1.0,
        "reward/helpful/mean": rise,
        "learning_rate": 1e-5 / step,
        "time/rollout": 0.2 + noise.random(),
        "time/judge": 0.1,
        "time/update": 0.5,
        "throughput/tokens_per_second": 1000 + noise.random(),
        "memory/peak_gib": 1.0,
    }
    if gold:
        row["gold/mean"] = rise / 2
    if values:
        row |= {"value/loss": 1 / step, "value/explained_variance": rise}
    return row


def sample_row(place: int, noise: random.Random, gold: bool, text: str) -> dict[str, Any]:
    def side(name: str, middle: float) -> dict[str, Any]:
        found: dict[str, Any] = {
            "response": f"{name} answer {place}: {text}",
            "score": None if place == 5 else noise.gauss(middle, 1),
            "length": noise.randint(3, 40),
            "stopped": place % 7 != 0,
        }
        if gold:
            found["gold"] = {"score": round(noise.gauss(middle, 1), 1), "right": 1.0, "rude": 0.0}
        if name == "policy":
            found["kl"] = noise.random() * 4
        return found

    question = f"question {place}: {text}"
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
    prompt: Any = question if place % 4 == 0 else chat
    return {"prompt": prompt, "policy": side("policy", 0.8), "reference": side("reference", 0.0)}


def summary_of(prompts: int, gold: bool, gold_rate: float, score_rate: float) -> dict[str, Any]:
    def side(level: float) -> dict[str, Any]:
        found: dict[str, Any] = {
            "score": estimate(level),
            "length": estimate(20.0, 1.0),
            "stopped": estimate(1.0, 0.0),
            "distinct_1": estimate(0.1, 0.01),
            "distinct_2": estimate(0.2, 0.01),
            "repetition": estimate(0.01, 0.005),
        }
        if gold:
            parts = {"right": estimate(0.6 + level / 4), "rude": estimate(0.1)}
            found |= {"gold": estimate(level / 2), "gold_parts": parts}
        return found

    by = ["score"] + ["gold"] * gold
    rates = {"score": score_rate, "gold": gold_rate}
    won = {name: estimate(rates[name]) | {"ties": 0.1} for name in by}
    controlled = {name: estimate(rates[name] - 0.02) for name in by}
    both = {"win_rate": won, "length_controlled": controlled}
    return {
        "prompts": prompts,
        "policy": side(1.0) | {"kl": estimate(3.0)},
        "reference": side(0.0),
        **both,
        "greedy": {"policy": side(1.1) | {"kl": estimate(2.5)}, "reference": side(0.1), **both},
        "models": {"bigger": {"path": "m", "sampled": {"side": side(0.9), **both}}},
        "judge": {
            "model": "a judge",
            "prompts": 50,
            "win_rate": estimate(0.7) | {"ties": 0.2},
            "first_shown": estimate(0.55),
            "inconsistent": 0.1,
            "failed": 2,
        },
        "exploited": [
            {"part": "rude", "reference": 0.1, "policy": 0.3, "change": estimate(0.2)},
        ]
        if gold
        else [],
    }


def frontier_of(gold: bool) -> dict[str, Any]:
    def point(kl: float) -> dict[str, Any]:
        found = {"kl": estimate(kl), "score": estimate(kl**0.5)}
        return found | ({"gold": estimate(kl**0.5 - 0.2 * kl)} if gold else {})

    best = {n: math.log(n) - (n - 1) / n for n in (1, 2, 4, 16)}
    fit = {"alpha": 1.0, "beta": 0.2, "form": "d(alpha - beta d)"}
    law = {"alpha": 1.0, "beta": 0.2, "form": "d(alpha - beta log d)"}
    none = {"found": False, "text": "too few points; no curve is fitted"}
    turn = {"found": True, "kl": estimate(2.5, 1.0), "step": estimate(20, 5), "gold": estimate(0.9)}
    turn |= {"fall": estimate(0.2), "text": "gold is highest at 2.50 nats"}
    return {
        "prompts": 30,
        "samples_per_prompt": 16,
        "best_of_n": [point(kl) | {"n": n, "kl": kl} for n, kl in best.items()],
        "ppo": [{"step": step, **point(step / 10)} for step in (0, 10, 20, 30)],
        "fits": {"best_of_n": {"score": fit}, "ppo": {"score": law, "gold": law}},
        "turning_point": {"best_of_n": none, "ppo": turn},
    }


def write_run(
    folder: Path,
    *,
    steps: int = 30,
    prompts: int = 30,
    gold: bool = True,
    values: bool = True,
    finished: bool = True,
    gold_rate: float = 0.8,
    score_rate: float = 0.9,
    seed: int = 1,
    texts: Sequence[str] = ("short",),
) -> Path:
    """A run folder with all files that a report can draw; tests remove what they want missing."""
    noise = random.Random(seed)
    config = Config(output_dir=str(folder), seed=seed).model_dump(mode="json")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    rows = [metrics_row(step, noise, gold, values) for step in range(1, steps + 1)]
    for row in rows[9::10]:
        row |= {"heldout/score": 0.5, "heldout/kl": 1.0, "heldout/gold/rude": 0.1}
    write_lines(folder / "metrics.jsonl", rows)
    held = {"score": [0.1, 0.4, 0.3], "kl": [1.0, 2.0, 3.0], "length": [9, 8, 9]}
    write_lines(folder / "heldout.jsonl", [{"step": step, **held} for step in (0, 10, 20)])
    probes = {"rude": {"pairs": 20, "accuracy": 0.9, "margin": 1.0}}
    write_json(folder / "reward_model" / "probes.json", probes)
    for stage in ("sft", "reward_model"):
        losses = [{"step": step, "loss": 1 / step} for step in range(1, 9)]
        write_lines(folder / stage / "metrics.jsonl", losses)
    machine = {"device": "a device", "threads": 1, "seconds": {"sft": 3.0, "ppo": 4000.0}}
    write_json(folder / "machine.json", machine)
    if finished:
        evaluation = folder / "evaluation"
        write_json(evaluation / "summary.json", summary_of(prompts, gold, gold_rate, score_rate))
        samples = [
            sample_row(place, noise, gold, texts[place % len(texts)]) for place in range(prompts)
        ]
        write_lines(evaluation / "samples.jsonl", samples)
        write_json(evaluation / "frontier.json", frontier_of(gold))
        finding = {
            "name": "kl_runaway",
            "severity": "problem",
            "step": 12,
            "message": "KL ran away.",
            "remedy": "Raise kl.beta.",
        }
        write_json(evaluation / "diagnostics.json", [finding])
    return folder
