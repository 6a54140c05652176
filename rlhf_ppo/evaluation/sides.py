"""A model's responses to held-out prompts, and what the run's scorers say of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_ppo.algorithm.batch import Responses
from rlhf_ppo.algorithm.rewards import Moments
from rlhf_ppo.config import Config, ModelSource, leaves
from rlhf_ppo.console import activity, tick
from rlhf_ppo.data.prompts import EncodedPrompt, Prompt
from rlhf_ppo.evaluation.gold import GoldScorer, Parts
from rlhf_ppo.models.forward import lay_out, micro_batches
from rlhf_ppo.models.policy import FrozenPolicy
from rlhf_ppo.plan import judging_tokens
from rlhf_ppo.rewards.combine import Weighed, weigh
from rlhf_ppo.rewards.failures import check_failures
from rlhf_ppo.rollout.collect import (
    Roles,
    judge,
    reference_at_hand,
    reference_logprobs,
    response_texts,
    sample,
    sample_reference,
)
from rlhf_ppo.rollout.generation import SamplingSettings, generate
from rlhf_ppo.rollout.noise import sampling_noise
from rlhf_ppo.training.distributed import Processes

SourceMoments = dict[str, Moments]  # what reward sources are normalised by
Draw = Callable[[Sequence[EncodedPrompt], Tensor, SamplingSettings], Responses]


@dataclass(frozen=True)
class Side:
    """One model's responses, one entry a response."""

    texts: Sequence[str]
    scores: Tensor  # (N,) reward units, NaN: missing
    parts: dict[str, Tensor]  # (N,) of each reward source, before its normalization and weight
    gold: list[Parts]  # empty without a gold scorer
    lengths: list[float]  # tokens
    stopped: list[float]  # 1: ended by itself
    kl: list[float]  # nats a response; empty where it is not known

    @property
    def gold_scores(self) -> Tensor:
        """(N,) gold totals."""
        return torch.tensor([parts["score"] for parts in self.gold], dtype=torch.float64)


@dataclass(frozen=True)
class Candidate:
    """A model that can be evaluated."""

    name: str  # for a person who waits
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[EncodedPrompt]  # by its own tokenizer
    sampling: SamplingSettings  # with its own stop tokens
    draw: Draw
    # Log-ratio of model to reference of each response, nats; None: not comparable, or the same.
    log_ratios: Callable[[Responses], list[float]] | None

    def greedy(self) -> "Candidate":
        """The same model at temperature 0, where there is no KL to estimate."""
        sampling = replace(self.sampling, temperature=0.0)
        name = f"{self.name}, greedy"
        return replace(self, name=name, sampling=sampling, log_ratios=None)

    def first(self, count: int) -> "Candidate":
        """The same model on the first prompts."""
        return replace(self, prompts=self.prompts[:count])


@dataclass(frozen=True)
class Evaluator:
    """What every evaluation of a run shares."""

    config: Config
    roles: Roles
    sampling: SamplingSettings
    processes: Processes
    gold: GoldScorer | None

    def policy(self, prompts: Sequence[EncodedPrompt]) -> Candidate:
        """The policy on some prompts."""
        roles = self.roles
        draw = partial(sample, roles)
        ratios = self._policy_ratios
        return Candidate("policy", roles.tokenizer, prompts, self.sampling, draw, ratios)

    def reference(self, prompts: Sequence[EncodedPrompt]) -> Candidate:
        """The reference on some prompts."""
        roles = self.roles
        draw = partial(sample_reference, roles)
        return Candidate("reference", roles.tokenizer, prompts, self.sampling, draw, None)

    def other(
        self,
        name: str,
        model: FrozenPolicy,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[EncodedPrompt],
        stop_ids: tuple[int, ...],
        *,
        comparable: bool,
    ) -> Candidate:
        """Another model; `comparable`: it reads the prompts as the reference's very tokens."""

        def draw(
            asked: Sequence[EncodedPrompt], noise: Tensor, settings: SamplingSettings
        ) -> Responses:
            with self.roles.autocast():
                return generate(model.lm, asked, noise, settings)

        sampling = replace(self.sampling, stop_ids=stop_ids)
        ratios = partial(self._other_ratios, model) if comparable else None
        return Candidate(name, tokenizer, prompts, sampling, draw, ratios)

    def side(
        self,
        candidate: Candidate,
        moments: SourceMoments,
        *,
        purpose: str = "evaluation",
        copies: int = 1,
    ) -> Side:
        """Draw responses and have them judged; each process does its share of the prompts.

        Every model gets the same noise, so that equal models give equal responses.

        Args:
            candidate: the model and its prompts.
            moments: what reward sources are normalised by.
            purpose: of the noise.
            copies: responses to each prompt; they are neighbours.

        Raises:
            UserError: more responses than `reward.max_failed` allows got no score.
        """
        processes, limit = self.processes, candidate.sampling.max_new_tokens
        asked = [item for item in candidate.prompts for _ in range(copies)]
        mine = processes.share(len(candidate.prompts))
        share = slice(mine.start * copies, mine.stop * copies)
        rows = [item.prompt.row for item in asked[share]]
        noise = sampling_noise(self.config.seed, purpose, 0, rows, limit)
        held_out, mine_alone = f"held-out prompts: {candidate.name}", len(rows)
        with activity(f"{held_out}, responses", mine_alone):
            part = candidate.draw(asked[share], noise, candidate.sampling)
        responses = processes.gather(part)
        prompts = [item.prompt for item in asked]
        contexts = [prompt.text for prompt in prompts]
        texts = response_texts(candidate.tokenizer, responses.tokens, contexts)
        with activity(f"{held_out}, scores", mine_alone * self._reward_models or None):
            weighed = self._weighed(prompts[share], texts[share], moments)
        kl: list[float] = []
        if candidate.log_ratios is not None:
            with activity(f"{held_out}, KL", mine_alone):
                kl = processes.gather_list(candidate.log_ratios(part))
        return Side(
            texts=texts,
            scores=weighed.scores.double(),
            parts={name: scores.double() for name, scores in weighed.parts.items()},
            gold=[] if self.gold is None else self.gold.score(prompts, texts),
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

    def _policy_ratios(self, responses: Responses) -> list[float]:
        """Log-ratio of each response, nats: its mean is an unbiased KL estimate."""
        outputs, ref_logprobs = judge(
            self.roles, responses.tokens, self.sampling.temperature, self._budget
        )
        mask = responses.tokens.response_mask
        difference = torch.where(mask, outputs.logprobs - ref_logprobs, 0.0)
        ratios: list[float] = difference.sum(dim=1).tolist()
        return ratios

    @torch.no_grad()
    def _other_ratios(self, model: FrozenPolicy, responses: Responses) -> list[float]:
        """The same of another model."""
        roles, tokens = self.roles, responses.tokens
        temperature = self.sampling.temperature
        ratios = torch.zeros(len(tokens.response_mask))
        with reference_at_hand(roles):
            for rows in micro_batches(tokens.lengths, self._budget):
                layout = lay_out(tokens.select(rows)).to(roles.device)
                with roles.autocast():
                    logprobs: Tensor = model(layout, temperature)
                others = reference_logprobs(roles, layout, temperature)
                ratios[rows] = (logprobs - others).float().sum(dim=1).cpu()
                tick(len(rows))
        found: list[float] = ratios.tolist()
        return found

    @property
    def _reward_models(self) -> int:
        """How many models score each response; functions and services count nothing."""
        sources = leaves(self.config.reward.sources)
        return sum(isinstance(source, ModelSource) for _, source in sources)

    @property
    def _budget(self) -> int:
        return judging_tokens(self.config.ppo, self.processes.device.type)
