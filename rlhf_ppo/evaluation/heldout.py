"""Policy against reference on prompts that training never saw."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_ppo.algorithm.batch import Responses
from rlhf_ppo.algorithm.rewards import Moments
from rlhf_ppo.config import Config
from rlhf_ppo.data.prompts import EncodedPrompt, Prompt
from rlhf_ppo.evaluation.gold import GoldScorer, Parts
from rlhf_ppo.evaluation.statistics import Estimate, bootstrap_mean, distinct_n, win_rate
from rlhf_ppo.plan import judging_tokens
from rlhf_ppo.rewards.combine import Weighed, weigh
from rlhf_ppo.rewards.failures import check_failures
from rlhf_ppo.rollout.collect import Roles, judge, response_texts, sample, sample_reference
from rlhf_ppo.rollout.generation import SamplingSettings
from rlhf_ppo.rollout.noise import derive_seed, sampling_noise
from rlhf_ppo.training.distributed import Processes

Summary = dict[str, Any]
SourceMoments = dict[str, Moments]  # what reward sources are normalised by


@dataclass(frozen=True)
class Side:
    """One model's responses to the held-out prompts, one entry a prompt."""

    texts: list[str]
    scores: Tensor  # (N,) reward units, NaN: missing
    parts: dict[str, Tensor]  # (N,) of each reward source, before its normalization and weight
    gold: list[Parts]  # empty without a gold scorer
    lengths: list[float]  # tokens
    stopped: list[float]  # 1: ended by itself
    kl: list[float]  # nats a response; empty for the reference

    @property
    def gold_scores(self) -> Tensor:
        """(N,) gold totals."""
        return torch.tensor([parts["score"] for parts in self.gold], dtype=torch.float64)


@dataclass(frozen=True)
class Evaluator:
    """What every evaluation of a run shares."""

    config: Config
    roles: Roles
    sampling: SamplingSettings
    processes: Processes
    gold: GoldScorer | None

    def policy_side(self, prompts: Sequence[EncodedPrompt], moments: SourceMoments) -> Side:
        """Sample the policy on held-out prompts and judge the responses.

        Raises:
            UserError: more responses than `reward.max_failed` allows got no score.
        """
        return self._side(prompts, moments, of_policy=True)

    def reference_side(self, prompts: Sequence[EncodedPrompt], moments: SourceMoments) -> Side:
        """The same for the reference, with the same sampling noise."""
        return self._side(prompts, moments, of_policy=False)

    def _side(
        self, prompts: Sequence[EncodedPrompt], moments: SourceMoments, *, of_policy: bool
    ) -> Side:
        config, processes = self.config, self.processes
        mine = prompts[processes.share(len(prompts))]
        noise = sampling_noise(
            config.seed,
            "evaluation",
            0,
            [item.prompt.row for item in mine],
            config.rollout.max_new_tokens,
        )
        draw = sample if of_policy else sample_reference
        responses = processes.gather(draw(self.roles, mine, noise, self.sampling))
        texts = response_texts(self.roles.tokenizer, responses.tokens)
        share = processes.share(len(prompts))
        asked = [item.prompt for item in prompts]
        weighed = self._weighed(asked[share], texts[share], moments)
        kl: list[float] = []
        if of_policy:
            kl = processes.gather_list(self._kl(responses.select(_rows(share))))
        return Side(
            texts=texts,
            scores=weighed.scores.double(),
            parts={name: scores.double() for name, scores in weighed.parts.items()},
            gold=[] if self.gold is None else self.gold.score(asked, texts),
            lengths=responses.tokens.response_mask.sum(dim=1).double().tolist(),
            stopped=responses.stopped.double().tolist(),
            kl=kl,
        )

    def _weighed(
        self, prompts: Sequence[Prompt], responses: Sequence[str], moments: SourceMoments
    ) -> Weighed:
        """What the reward sources say, of every process's share."""
        reward, processes = self.config.reward, self.processes
        with self.roles.autocast():
            judgement = self.roles.reward.score(prompts, responses)
        table = torch.tensor(processes.gather_list(judgement.scores.tolist()))
        failures = processes.gather_list(judgement.failures)
        check_failures(table, failures, reward.max_failed, "the evaluation")
        return weigh(reward, table, moments, learn=False)

    def _kl(self, responses: Responses) -> list[float]:
        """Log-ratio of each response, nats: its mean is an unbiased KL estimate."""
        outputs, ref_logprobs = judge(
            self.roles,
            responses.tokens,
            self.sampling.temperature,
            judging_tokens(self.config.ppo, self.processes.device.type),
        )
        mask = responses.tokens.response_mask
        difference = torch.where(mask, outputs.logprobs - ref_logprobs, 0.0)
        ratios: list[float] = difference.sum(dim=1).tolist()
        return ratios


def during_training(
    evaluator: Evaluator, prompts: Sequence[EncodedPrompt], moments: SourceMoments
) -> dict[str, float]:
    """A few numbers on held-out prompts, for `metrics.jsonl`."""
    side = evaluator.policy_side(prompts, moments)
    metrics = {
        "heldout/score": float(side.scores.nanmean()),
        "heldout/kl": sum(side.kl) / len(side.kl),
        "heldout/length": sum(side.lengths) / len(side.lengths),
        "heldout/stopped": sum(side.stopped) / len(side.stopped),
    }
    if side.gold:
        metrics["heldout/gold"] = float(side.gold_scores.mean())
    return metrics


def summarise(config: Config, policy: Side, reference: Side) -> Summary:
    """`summary.json`: both sides and the win rates, each with a 95 % interval."""
    samples = config.evaluation.bootstrap_samples
    seed = derive_seed(config.seed, "bootstrap")
    both = policy.scores.isfinite() & reference.scores.isfinite()
    rates = {}
    if bool(both.any()):  # of prompts whose two responses were scored
        rates["score"] = win_rate(policy.scores[both], reference.scores[both], samples, seed)
    if policy.gold:
        rates["gold"] = win_rate(policy.gold_scores, reference.gold_scores, samples, seed)
    return {
        "prompts": len(policy.texts),
        "seed": config.seed,
        "temperature": config.rollout.temperature,
        "policy": _side_summary(policy, samples, seed),
        "reference": _side_summary(reference, samples, seed),
        "win_rate": rates,
    }


def write_results(
    folder: Path,
    summary: Summary,
    prompts: Sequence[EncodedPrompt],
    policy: Side,
    reference: Side,
) -> None:
    """Write `summary.json` and `samples.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as stream:
        for index, item in enumerate(prompts):
            row = {
                "prompt": item.prompt.text,
                "policy": _sample(policy, index),
                "reference": _sample(reference, index),
            }
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    text = json.dumps(summary, indent=2) + "\n"
    (folder / "summary.json").write_text(text, encoding="utf-8")


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
        "distinct_2": distinct_n(side.texts),
    }
    if side.kl:
        summary["kl"] = estimate(side.kl)
    names = [name for name in (side.gold[0] if side.gold else {}) if name != "score"]
    if names:
        summary["gold_parts"] = {
            name: estimate([parts[name] for parts in side.gold]) for name in names
        }
    return summary


def _sample(side: Side, index: int) -> Summary:
    sample: Summary = {
        "response": side.texts[index],
        "score": _number(side.scores[index]),
        "length": int(side.lengths[index]),
        "stopped": bool(side.stopped[index]),
    }
    if side.kl:
        sample["kl"] = side.kl[index]
    if side.gold:
        sample["gold"] = side.gold[index]
    return sample


def _number(score: Tensor) -> float | None:
    """JSON knows no NaN."""
    return float(score) if bool(score.isfinite()) else None


def _rows(share: slice) -> Tensor:
    return torch.arange(share.start, share.stop)
