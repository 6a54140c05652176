"""`summary.json` and `samples.jsonl`: every number of the evaluation with its interval."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_ppo.config import Config
from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.evaluation.diversity import distinct_n, repetition
from rlhf_ppo.evaluation.exploitation import exploited
from rlhf_ppo.evaluation.heldout import number, part_names
from rlhf_ppo.evaluation.length_control import length_controlled
from rlhf_ppo.evaluation.sides import Side
from rlhf_ppo.evaluation.statistics import Estimate, bootstrap_mean, win_rate, wins
from rlhf_ppo.rollout.noise import derive_seed

Summary = dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """All responses of an evaluation, all to the same prompts."""

    policy: Side
    reference: Side
    greedy_policy: Side | None
    greedy_reference: Side | None
    models: dict[str, dict[str, Side]]  # by name: "sampled", and perhaps "greedy"


def summarise(config: Config, answers: Answers) -> Summary:
    """`summary.json`: all sides and the comparisons with the reference."""
    samples = config.evaluation.bootstrap_samples
    seed = derive_seed(config.seed, "bootstrap")
    policy, reference = answers.policy, answers.reference
    summary: Summary = {
        "prompts": len(policy.texts),
        "seed": config.seed,
        "temperature": config.rollout.temperature,
        "policy": _side_summary(policy, samples, seed),
        "reference": _side_summary(reference, samples, seed),
        **_against(policy, reference, samples, seed),
    }
    if policy.gold:
        summary["exploited"] = exploited(policy, reference, samples, seed)
    against = {"sampled": reference}
    if answers.greedy_policy is not None and answers.greedy_reference is not None:
        against["greedy"] = answers.greedy_reference
        summary["greedy"] = {
            "policy": _side_summary(answers.greedy_policy, samples, seed),
            "reference": _side_summary(answers.greedy_reference, samples, seed),
            **_against(answers.greedy_policy, answers.greedy_reference, samples, seed),
        }
    if answers.models:
        summary["models"] = {
            name: {"path": config.evaluation.models[name]}
            | {
                how: {"side": _side_summary(side, samples, seed)}
                | _against(side, against[how], samples, seed)
                for how, side in sides.items()
            }
            for name, sides in answers.models.items()
        }
    return summary


def write_samples(file: Path, prompts: Sequence[Prompt], answers: Answers) -> None:
    """`samples.jsonl`: one line a prompt with all answers to it."""
    with file.open("w", encoding="utf-8") as stream:
        for index, prompt in enumerate(prompts):
            row: Summary = {
                "prompt": prompt.text,
                "policy": _sample(answers.policy, index),
                "reference": _sample(answers.reference, index),
            }
            if answers.greedy_policy is not None and answers.greedy_reference is not None:
                row["greedy"] = {
                    "policy": _sample(answers.greedy_policy, index),
                    "reference": _sample(answers.greedy_reference, index),
                }
            if answers.models:
                row["models"] = {
                    name: {how: _sample(side, index) for how, side in sides.items()}
                    for name, sides in answers.models.items()
                }
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _against(side: Side, reference: Side, samples: int, seed: int) -> Summary:
    """Win rates over the reference, as they are and at equal length."""
    pairs: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    longer = _tensor(side.lengths) - _tensor(reference.lengths)
    both = side.scores.isfinite() & reference.scores.isfinite()
    if bool(both.any()):  # of prompts whose two responses were scored
        pairs["score"] = (side.scores[both], reference.scores[both], longer[both])
    if side.gold:
        pairs["gold"] = (side.gold_scores, reference.gold_scores, longer)
    return {
        "win_rate": {
            name: win_rate(ours, theirs, samples, seed) for name, (ours, theirs, _) in pairs.items()
        },
        "length_controlled": {
            name: length_controlled(wins(ours, theirs), difference, samples, seed)
            for name, (ours, theirs, difference) in pairs.items()
        },
    }


def _side_summary(side: Side, samples: int, seed: int) -> Summary:
    def estimate(values: Sequence[float]) -> Estimate:
        return bootstrap_mean(values, samples, seed)

    def of_scores(scores: Tensor) -> Estimate:
        return estimate(scores[scores.isfinite()].tolist())

    summary: Summary = {"score": of_scores(side.scores)}
    failed = int((~side.scores.isfinite()).sum())
    if failed:
        summary["failed"] = failed
    if len(side.parts) > 1:
        summary["reward_parts"] = {name: of_scores(part) for name, part in side.parts.items()}
    if side.gold:
        summary["gold"] = estimate(side.gold_scores.tolist())
    summary |= {
        "length": estimate(side.lengths),
        "stopped": estimate(side.stopped),
        "distinct_1": distinct_n(side.texts, 1),
        "distinct_2": distinct_n(side.texts, 2),
        "repetition": estimate([repetition(text) for text in side.texts]),
    }
    if side.kl:
        summary["kl"] = estimate(side.kl)
    names = part_names(side.gold)
    if names:
        summary["gold_parts"] = {
            name: estimate([parts[name] for parts in side.gold]) for name in names
        }
    return summary


def _sample(side: Side, index: int) -> Summary:
    sample: Summary = {
        "response": side.texts[index],
        "score": number(side.scores[index]),
        "length": int(side.lengths[index]),
        "stopped": bool(side.stopped[index]),
    }
    if side.kl:
        sample["kl"] = side.kl[index]
    if side.gold:
        sample["gold"] = side.gold[index]
    return sample


def _tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
