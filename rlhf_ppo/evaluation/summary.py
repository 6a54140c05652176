"""`summary.json` and `samples.jsonl`: every number of the evaluation with its interval."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_ppo.config import Config, correctness_source, trained_source
from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.evaluation.diversity import distinct_change, distinct_n, repetition
from rlhf_ppo.evaluation.exploitation import exploited
from rlhf_ppo.evaluation.heldout import number, part_names
from rlhf_ppo.evaluation.length_control import length_controlled
from rlhf_ppo.evaluation.sides import Side
from rlhf_ppo.evaluation.solved import compare_solved
from rlhf_ppo.evaluation.statistics import (
    Estimate,
    bootstrap_mean,
    estimate_share,
    paired_change,
    paired_changes,
    win_rate,
    wins,
)
from rlhf_ppo.rewards.accuracy import read_accuracy
from rlhf_ppo.rollout.noise import derive_seed
from rlhf_ppo.stamps import FOLDERS

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
        **_against(config, policy, reference),
    }
    own = trained_source(config.reward) is not None
    accuracy = read_accuracy(Path(config.output_dir) / FOLDERS["reward_model"]) if own else None
    if accuracy is not None:
        summary["reward_model"] = accuracy
    if policy.gold:
        summary["exploited"] = exploited(policy, reference, samples, seed)
    against = {"sampled": reference}
    if answers.greedy_policy is not None and answers.greedy_reference is not None:
        against["greedy"] = answers.greedy_reference
        summary["greedy"] = {
            "policy": _side_summary(answers.greedy_policy, samples, seed),
            "reference": _side_summary(answers.greedy_reference, samples, seed),
            **_against(config, answers.greedy_policy, answers.greedy_reference),
        }
    if answers.models:
        summary["models"] = {
            name: {"path": config.evaluation.models[name]}
            | {
                how: {"side": _side_summary(side, samples, seed)}
                | _against(config, side, against[how])
                for how, side in sides.items()
            }
            for name, sides in answers.models.items()
        }
    return summary


def write_samples(
    file: Path, prompts: Sequence[Prompt], answers: Answers, correct: str | None
) -> None:
    """`samples.jsonl`: one line a prompt with all answers to it.

    Args:
        file: to write.
        prompts: in the order of the answers.
        answers: of all sides.
        correct: the reward source that says right or wrong, if there is one.
    """
    sample_of = partial(_sample_of, correct=correct)
    with file.open("w", encoding="utf-8") as stream:
        for index, prompt in enumerate(prompts):
            row: Summary = {
                "prompt": prompt.text,
                "policy": sample_of(answers.policy, index),
                "reference": sample_of(answers.reference, index),
            }
            if answers.greedy_policy is not None and answers.greedy_reference is not None:
                row["greedy"] = {
                    "policy": sample_of(answers.greedy_policy, index),
                    "reference": sample_of(answers.greedy_reference, index),
                }
            if answers.models:
                row["models"] = {
                    name: {how: sample_of(side, index) for how, side in sides.items()}
                    for name, sides in answers.models.items()
                }
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _against(config: Config, side: Side, reference: Side) -> Summary:
    """What is paired with the reference: changes, win rates as they are and at equal length."""
    samples = config.evaluation.bootstrap_samples
    seed = derive_seed(config.seed, "bootstrap")
    pairs: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    longer = _tensor(side.lengths) - _tensor(reference.lengths)
    both = side.scores.isfinite() & reference.scores.isfinite()
    if bool(both.any()):  # of prompts whose two responses were scored
        pairs["score"] = (side.scores[both], reference.scores[both], longer[both])
    if side.gold:
        pairs["gold"] = (side.gold_scores, reference.gold_scores, longer)
    found: Summary = {
        "win_rate": {
            name: win_rate(ours, theirs, samples, seed) for name, (ours, theirs, _) in pairs.items()
        },
        "length_controlled": {
            name: length_controlled(wins(ours, theirs), difference, samples, seed)
            for name, (ours, theirs, difference) in pairs.items()
        },
        "change": {
            name: paired_change(ours, theirs, samples, seed)
            for name, (ours, theirs, _) in pairs.items()
        }
        | _changes(side, reference, samples, seed),
    }
    correct = correctness_source(config.reward)
    solved = None if correct is None else compare_solved(side, reference, correct)
    return found if solved is None else found | {"solved": solved}


def _changes(side: Side, reference: Side, samples: int, seed: int) -> Summary:
    """Paired changes from the reference of all other numbers of a side."""

    def change(ours: Sequence[float], theirs: Sequence[float], *, share: bool = False) -> Estimate:
        return paired_change(_tensor(ours), _tensor(theirs), samples, seed, share=share)

    both = (side, reference)
    changes: Summary = {
        "length": change(side.lengths, reference.lengths),
        "stopped": change(side.stopped, reference.stopped, share=True),
        "distinct_1": distinct_change(side.texts, reference.texts, 1),
        "distinct_2": distinct_change(side.texts, reference.texts, 2),
        "repetition": change(*([repetition(text) for text in one.texts] for one in both)),
    }
    for group, tables in (
        ("reward_parts", [one.parts if len(one.parts) > 1 else {} for one in both]),
        ("gold_parts", [_gold_parts(one) for one in both]),
    ):
        if tables[0]:
            rows = torch.stack([part for table in tables for part in table.values()])
            known = rows.isfinite().all(dim=0)
            ours, theirs = ({name: p[known] for name, p in t.items()} for t in tables)
            if bool(known.any()):
                changes[group] = paired_changes(ours, theirs, samples, seed)
    return changes


def _gold_parts(side: Side) -> dict[str, Tensor]:
    return {name: _tensor([parts[name] for parts in side.gold]) for name in part_names(side.gold)}


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
        "stopped": estimate_share(side.stopped, samples, seed),
        "distinct_1": distinct_n(side.texts, 1),
        "distinct_2": distinct_n(side.texts, 2),
        "repetition": estimate([repetition(text) for text in side.texts]),
    }
    if side.kl:
        summary["kl"] = estimate(side.kl)
    names = part_names(side.gold)
    if names:
        summary["gold_parts"] = {
            name: estimate_share([parts[name] for parts in side.gold], samples, seed)
            for name in names
        }
    return summary


def _sample_of(side: Side, index: int, correct: str | None) -> Summary:
    sample: Summary = {
        "response": side.texts[index],
        "score": number(side.scores[index]),
        "length": int(side.lengths[index]),
        "stopped": bool(side.stopped[index]),
    }
    if correct is not None and bool(side.parts[correct][index].isfinite()):
        sample["solved"] = int(side.parts[correct][index])
    if side.kl:
        sample["kl"] = side.kl[index]
    if side.gold:
        sample["gold"] = side.gold[index]
    return sample


def _tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
