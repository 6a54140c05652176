"""Each config of configs/recipes computes the loss of its paper: by the formula, in plain Python.

The formulas are written out here from the papers, with the papers' constants, and read nothing of
the code under test; the recipes are loaded as `train.py` loads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tensors import mask_of, normal, response_tokens

from rlhf_ppo.algorithm.batch import Responses, Rollout, TokenOutputs
from rlhf_ppo.algorithm.losses import ppo_loss, response_weights
from rlhf_ppo.algorithm.rewards import Moments
from rlhf_ppo.command_line import load_config
from rlhf_ppo.config import Config
from rlhf_ppo.training.train_batch import loss_settings, make_train_batch, shape_scores

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "recipes").glob("*.yaml"))
LENGTHS = [3, 48, 5, 40, 7, 2, 44, 6, 9, 4, 5, 38, 3, 8, 47, 6]  # 16 responses: 2, 4 or 16 groups
Rows = list[list[float]]


class Sample:
    """A ragged rollout: what was said then (old), now (new) and by the reference, and V."""

    def __init__(self) -> None:
        self.mask = mask_of(*([0.0] * length for length in LENGTHS))
        shape = self.mask.shape
        self.old = (-1.5 + 0.3 * normal(*shape, seed=1)) * self.mask
        self.new = (self.old + 0.25 * normal(*shape, seed=2)) * self.mask
        self.ref = (self.old + 0.2 * normal(*shape, seed=3)) * self.mask
        self.values = normal(*shape, seed=4) * self.mask
        self.new_values = (self.values + 0.3 * normal(*shape, seed=5)) * self.mask
        self.scores = 2 * normal(16, seed=6)

    def rows(self, name: str) -> Rows:
        table = getattr(self, name)
        return [row[: LENGTHS[place]].tolist() for place, row in enumerate(table)]

    def rollout(self) -> Rollout:
        stopped = torch.ones(16, dtype=torch.bool)  # a rule of the task, not of the recipes
        responses = Responses(response_tokens(self.mask), self.old, stopped, torch.arange(16))
        zero = torch.zeros_like(self.old)
        return Rollout(responses, self.old, self.ref, self.values, zero, self.scores[:, None])

    def loss(self, config: Config) -> float:
        """By the project, from the scores to the number that is minimised."""
        scores, _ = shape_scores(config.reward, self.scores, self.rollout(), Moments())
        batch = make_train_batch(config, self.rollout(), scores, config.kl.beta)
        outputs = TokenOutputs(self.new, self.new_values, torch.zeros_like(self.new))
        terms = ppo_loss(outputs, batch, loss_settings(config, config.kl.beta, 1.0))
        weights = response_weights(
            self.mask, config.ppo.loss_aggregation, config.rollout.max_new_tokens
        )
        return float((terms.loss * weights[:, None])[self.mask].sum())


# ---- the papers' formulas


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def deviation(numbers: Sequence[float], sample: bool = False) -> float:
    m = mean(numbers)
    return math.sqrt(sum((x - m) ** 2 for x in numbers) / (len(numbers) - sample))


def standardized(rows: Rows) -> Rows:
    """Mean 0 and variance 1 over all tokens."""
    flat = [x for row in rows for x in row]
    return [[(x - mean(flat)) / deviation(flat) for x in row] for row in rows]


def groups(scores: Sequence[float], size: int) -> list[list[float]]:
    return [list(scores[at : at + size]) for at in range(0, len(scores), size)]


def rewards_with_kl(s: Sample, scores: Sequence[float], beta: float) -> Rows:
    """-beta (log pi - log pi_ref) on each token, and the score on the last."""
    found = []
    for old, ref, score in zip(s.rows("old"), s.rows("ref"), scores, strict=True):
        row = [-beta * (a - b) for a, b in zip(old, ref, strict=True)]
        row[-1] += score
        found.append(row)
    return found


def to_go(rows: Rows) -> Rows:
    return [[sum(row[t:]) for t in range(len(row))] for row in rows]


def gae(rewards: Rows, values: Rows, lam: Callable[[int], float]) -> Rows:
    """Sum over l of lambda^l delta, delta = r + V(next) - V, gamma 1; lambda by length."""
    found = []
    for r, v in zip(rewards, values, strict=True):
        after = [*v[1:], 0.0]
        delta = [a + b - c for a, b, c in zip(r, after, v, strict=True)]
        count, decay = len(r), lam(len(r))
        found.append(
            [sum(decay ** (k - t) * delta[k] for k in range(t, count)) for t in range(count)]
        )
    return found


def clipped(s: Sample, advantages: Rows, low: float, high: float) -> Rows:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) of each token."""
    found = []
    for new, old, row in zip(s.rows("new"), s.rows("old"), advantages, strict=True):
        losses = []
        for n, o, a in zip(new, old, row, strict=True):
            rho = math.exp(n - o)
            losses.append(-min(rho * a, min(max(rho, 1 - low), 1 + high) * a))
        found.append(losses)
    return found


def value_part(s: Sample, returns: Rows, clip: float | None) -> Rows:
    """Half the squared error, or the larger one of the error of the clipped value."""
    found = []
    rows = zip(s.rows("new_values"), s.rows("values"), returns, strict=True)
    for new, old, target in rows:
        losses = []
        for n, o, g in zip(new, old, target, strict=True):
            near = n if clip is None else min(max(n, o - clip), o + clip)
            losses.append(max((n - g) ** 2, (near - g) ** 2) / 2)
        found.append(losses)
    return found


def plus(one: Rows, other: Rows, weight: float = 1.0) -> Rows:
    return [
        [a + weight * b for a, b in zip(x, y, strict=True)] for x, y in zip(one, other, strict=True)
    ]


def over_tokens(rows: Rows) -> float:
    return mean([x for row in rows for x in row])


def over_responses(rows: Rows) -> float:
    return mean([mean(row) for row in rows])


def each(scores: Sequence[float], rows: Rows) -> Rows:
    """One advantage a response, on each of its tokens."""
    return [[score] * len(row) for score, row in zip(scores, rows, strict=True)]


def actor_critic(
    s: Sample,
    rewards: Rows,
    lam: Callable[[int], float] = lambda length: 0.95,
    value_lam: float | None = None,
    high: float = 0.2,
) -> float:
    """PPO with a value function: clip .2, values clipped at .2, weighed by .1, means of tokens."""
    values = s.rows("values")
    advantages = gae(rewards, values, lam)
    returns = plus(
        advantages if value_lam is None else gae(rewards, values, lambda _: value_lam), values
    )
    policy = clipped(s, standardized(advantages), 0.2, high)
    return over_tokens(plus(policy, value_part(s, returns, 0.2), 0.1))


def ziegler(s: Sample) -> float:
    """Scores to mean 0, variance 1; rewards whitened, their mean kept; beta .2 at the start."""
    scores = s.scores.tolist()
    scores = [(x - mean(scores)) / deviation(scores) for x in scores]
    rewards = rewards_with_kl(s, scores, 0.2)
    flat = [x for row in rewards for x in row]
    m, d = mean(flat), deviation(flat)
    return actor_critic(s, [[(x - m) / d + m for x in row] for row in rewards])


def instructgpt(s: Sample) -> float:
    """Scores to mean 0; beta .02."""
    scores = s.scores.tolist()
    return actor_critic(s, rewards_with_kl(s, [x - mean(scores) for x in scores], 0.02))


def vc_ppo(s: Sample) -> float:
    """Values by lambda 1, the policy by .95; the task's KL penalty of .1."""
    return actor_critic(s, rewards_with_kl(s, s.scores.tolist(), 0.1), value_lam=1.0)


def vapo(s: Sample) -> float:
    """The policy's lambda is 1 - 1 / (.05 length), at least 0; clip-higher; no KL."""
    rewards = rewards_with_kl(s, s.scores.tolist(), 0.0)
    return actor_critic(
        s, rewards, lambda length: max(0.0, 1 - 1 / (0.05 * length)), value_lam=1.0, high=0.28
    )


def grpo_advantages(s: Sample, scores: Sequence[float], scale: bool = True) -> Rows:
    found = []
    for group in groups(scores, 8):
        d = deviation(group, sample=True) + 1e-6 if scale else 1.0
        found += [(x - mean(group)) / d for x in group]
    return each(found, s.rows("old"))


def grpo(s: Sample) -> float:
    """Equations 3 and 4: mean over responses of means over tokens, with .04 k3 in the loss.

    Here k3 is weighed by the ratio, which makes its gradient that of the KL (docs/algorithm.md).
    """
    policy = clipped(s, grpo_advantages(s, s.scores.tolist()), 0.2, 0.2)
    kl = []
    for new, old, ref in zip(s.rows("new"), s.rows("old"), s.rows("ref"), strict=True):
        kl.append(
            [
                math.exp(n - o) * (math.exp(r - n) - (r - n) - 1)
                for n, o, r in zip(new, old, ref, strict=True)
            ]
        )
    return over_responses(plus(policy, kl, 0.04))


def dr_grpo(s: Sample) -> float:
    """Score minus mean; the sum over tokens, over a constant: the limit of 48 tokens; no KL."""
    policy = clipped(s, grpo_advantages(s, s.scores.tolist(), scale=False), 0.2, 0.2)
    return sum(sum(row) for row in policy) / (16 * 48)


def dapo(s: Sample) -> float:
    """Equation 13 with a cache of 12 below 48, group deviation, clip .2 / .28, token mean."""
    punished = []
    for score, length in zip(s.scores.tolist(), LENGTHS, strict=True):
        punished.append(score + (0.0 if length <= 36 else (36 - length) / 12))
    return over_tokens(clipped(s, grpo_advantages(s, punished), 0.2, 0.28))


def rloo(s: Sample) -> float:
    """The score less beta times the response's log-ratio, less the mean of the other three's;

    times the log-probability of the response, over a constant that Adam does not see.
    """
    rows = zip(s.scores.tolist(), s.rows("old"), s.rows("ref"), strict=True)
    totals = [score - 0.03 * (sum(old) - sum(ref)) for score, old, ref in rows]
    found = 0.0
    new = iter(s.rows("new"))
    for group in groups(totals, 4):
        for total in group:
            others = (sum(group) - total) / 3
            found -= (total - others) * sum(next(new))
    return found / (16 * 48)


def reinforce_pp(s: Sample) -> float:
    """Score minus beta times the KL from the token on, standardised over all tokens; clip .2."""
    advantages = standardized(to_go(rewards_with_kl(s, s.scores.tolist(), 0.01)))
    return over_tokens(clipped(s, advantages, 0.2, 0.2))


def reinforce_pp_baseline(s: Sample) -> float:
    """Score minus the mean of its group, standardised over all tokens; .01 k2 in the loss."""
    centred = [x - mean(group) for group in groups(s.scores.tolist(), 8) for x in group]
    policy = clipped(s, standardized(each(centred, s.rows("old"))), 0.2, 0.2)
    kl = []
    for new, old, ref in zip(s.rows("new"), s.rows("old"), s.rows("ref"), strict=True):
        kl.append(
            [math.exp(n - o) * (n - r) ** 2 / 2 for n, o, r in zip(new, old, ref, strict=True)]
        )
    return over_tokens(plus(policy, kl, 0.01))


PAPERS: dict[str, Callable[[Sample], float]] = {
    "ppo_ziegler": ziegler,
    "ppo_instructgpt": instructgpt,
    "vc_ppo": vc_ppo,
    "vapo": vapo,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
}


def config_of(name: str) -> Config:
    (path,) = [path for path in RECIPES if path.stem == name]
    return load_config(["--config", str(path)], path)


def test_every_recipe_has_its_formula() -> None:
    assert {path.stem for path in RECIPES} == set(PAPERS)


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_computes_the_loss_of_its_paper(name: str) -> None:
    sample = Sample()
    found = sample.loss(config_of(name))
    assert found == pytest.approx(PAPERS[name](sample), rel=1e-5, abs=1e-7)


def test_no_two_recipes_are_the_same() -> None:
    """A formula that agreed with another recipe's config would prove nothing."""
    sample = Sample()
    losses = [round(sample.loss(config_of(name)), 6) for name in PAPERS]
    assert len(set(losses)) == len(PAPERS)


SIZES: dict[str, dict[str, Any]] = {
    "ppo_ziegler": {"epochs": 4, "minibatches": 1},
    "ppo_instructgpt": {"epochs": 1, "minibatches": 8, "warmup_steps": 10},
    "vc_ppo": {"epochs": 1, "minibatches": 8, "value_warmup_steps": 10},
    "vapo": {"epochs": 1, "minibatches": 8, "value_warmup_steps": 10},
    "grpo": {"epochs": 1, "minibatches": 1},
    "dr_grpo": {"epochs": 1, "minibatches": 1},
    "dapo": {"epochs": 1, "minibatches": 16},
    "rloo": {"epochs": 1, "minibatches": 1, "objective": "policy_gradient"},
    "reinforce_pp": {"epochs": 1, "minibatches": 2},
    "reinforce_pp_baseline": {"epochs": 1, "minibatches": 2},
}


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_uses_its_rollout_as_often_as_its_paper(name: str) -> None:
    """And 96 responses a step, as the embedded default, so that runs can be compared."""
    config = config_of(name)
    assert {key: getattr(config.ppo, key) for key in SIZES[name]} == SIZES[name]
    assert config.rollout.batch_size * config.rollout.samples_per_prompt == 96
    assert config.output_dir == f"runs/recipes/{name}"


def test_zieglers_controller_moves_by_a_tenth_of_the_error() -> None:
    """K_beta = .1 a step: responses of a step over the horizon."""
    config = config_of("ppo_ziegler")
    assert (config.kl.controller, config.kl.target) == ("adaptive", 6.0)
    assert 96 / config.kl.horizon == 0.1
