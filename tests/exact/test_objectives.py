"""Every objective of the loss against exact gradients: at the policy that sampled, and away."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from token_mdp import (
    JUNK,
    TokenMDP,
    assert_equal,
    distance,
    gradient,
    kl_of_states,
    random_problem,
    random_table,
)
from torch import Tensor

from rlhf_ppo.algorithm.advantages import monte_carlo
from rlhf_ppo.algorithm.batch import TokenOutputs, Tokens, TrainBatch
from rlhf_ppo.algorithm.losses import (
    LossSettings,
    clipped_policy_loss,
    kl_penalty_loss,
    policy_gradient_loss,
    ppo_loss,
    surrogate_loss,
)

problems = pytest.mark.parametrize(("seed", "gamma"), list(product(range(3), (1.0, 0.9))))

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]  # new_logprobs, logprobs, advantages
OBJECTIVES: dict[str, Objective] = {
    "policy_gradient": lambda new, old, a: policy_gradient_loss(new, a),
    "surrogate": surrogate_loss,
    "kl_penalty 0.1": lambda new, old, a: kl_penalty_loss(new, old, a, 0.1),
    "kl_penalty 30": lambda new, old, a: kl_penalty_loss(new, old, a, 30.0),
    "clipped": lambda new, old, a: clipped_policy_loss(new, old, a, 0.2),
    "clipped, high": lambda new, old, a: clipped_policy_loss(new, old, a, 0.2, 0.28),
    "clipped, dual": lambda new, old, a: clipped_policy_loss(new, old, a, 0.2, dual_clip=3.0),
    "clipped, both": lambda new, old, a: clipped_policy_loss(new, old, a, 0.1, 0.3, 2.0),
}
SETTINGS = {
    "policy_gradient": LossSettings("policy_gradient", value_coefficient=0.0),
    "surrogate": LossSettings("surrogate", value_coefficient=0.0),
    "kl_penalty": LossSettings("kl_penalty", penalty=3.0, value_coefficient=0.0),
    "clipped": LossSettings("clipped", value_coefficient=0.0),
    "clipped, both": LossSettings(
        "clipped", clip_range=0.1, clip_range_high=0.3, dual_clip=2.0, value_coefficient=0.0
    ),
}


def old_and_new(seed: int) -> tuple[TokenMDP, Tensor, Tensor]:
    mdp, old = random_problem(seed)
    return mdp, old, old + 0.7 * random_table(old.shape, 300 + seed)


def advantage_estimates(mdp: TokenMDP, theta: Tensor, gamma: float) -> dict[str, Tensor]:
    """Two unbiased ones: the true advantages, and Monte Carlo with a wrong baseline."""
    baseline = mdp.at_states(random_table(mdp.depths.shape, 77))
    return {
        "true": mdp.at_tokens(mdp.advantage_table(theta, gamma)),
        "monte_carlo": monte_carlo(mdp.rewards, baseline, mdp.mask, gamma)[0],
    }


def train_batch(mdp: TokenMDP, **tensors: Tensor) -> TrainBatch:
    """Of what is not given, only junk."""
    rows = len(mdp.ids)
    lengths = torch.ones(rows, dtype=torch.int64)
    tokens = Tokens(torch.zeros(rows, 1, dtype=torch.int64), lengths, mdp.ids, mdp.mask)
    names = ("logprobs", "ref_logprobs", "values", "advantages", "returns")
    junk = torch.full_like(mdp.rewards, JUNK)
    return TrainBatch(tokens, **{name: tensors.get(name, junk) for name in names})


def expected_loss(mdp: TokenMDP, old: Tensor, per_token: Tensor, gamma: float = 1.0) -> Tensor:
    return mdp.expectation(mdp.probabilities(old), mdp.discounts(gamma) * per_token)


def conservative_policy_iteration(
    mdp: TokenMDP, old: Tensor, new: Tensor, gamma: float = 1.0
) -> Tensor:
    """sum over s of d_old(s), over a of pi_new(a|s) A_old(s, a) (Kakade and Langford 2002)."""
    gains = (new.softmax(dim=1) * mdp.advantage_table(old, gamma)).sum(dim=1)
    return (mdp.visitation(old, gamma) * gains).sum()


@problems
@pytest.mark.parametrize("estimate", ["true", "monte_carlo"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_at_the_old_policy_every_objective_has_the_exact_gradient(
    seed: int, gamma: float, name: str, estimate: str
) -> None:
    mdp, old = random_problem(seed)
    advantages = advantage_estimates(mdp, old, gamma)[estimate]
    logprobs = mdp.logprobs(old)

    def loss(theta: Tensor) -> Tensor:
        per_token = OBJECTIVES[name](mdp.logprobs(theta), logprobs, advantages)
        return expected_loss(mdp, old, per_token, gamma)

    exact = gradient(lambda x: mdp.objective(x, gamma), old)
    assert_equal(gradient(loss, old), -exact)


@problems
@pytest.mark.parametrize("name", SETTINGS)
def test_at_the_old_policy_the_loss_by_settings_has_the_exact_gradient(
    seed: int, gamma: float, name: str
) -> None:
    mdp, old = random_problem(seed)
    advantages = advantage_estimates(mdp, old, gamma)["true"]
    given = {"logprobs": mdp.logprobs(old), "ref_logprobs": mdp.logprobs(0.5 * old)}
    values = mdp.at_states(random_table(mdp.depths.shape, 1))
    batch = train_batch(mdp, advantages=advantages, values=values, returns=mdp.rewards, **given)

    def loss(theta: Tensor) -> Tensor:
        outputs = TokenOutputs(mdp.logprobs(theta), values, values * JUNK)
        return expected_loss(mdp, old, ppo_loss(outputs, batch, SETTINGS[name]).loss, gamma)

    exact = gradient(lambda x: mdp.objective(x, gamma), old)
    assert_equal(gradient(loss, old), -exact)


@pytest.mark.parametrize("name", SETTINGS)
def test_away_from_the_old_policy_the_loss_by_settings_is_its_function(name: str) -> None:
    mdp, old, new = old_and_new(0)
    advantages = advantage_estimates(mdp, old, 1.0)["true"]
    a, b = mdp.logprobs(new), mdp.logprobs(old)
    expected = {
        "policy_gradient": policy_gradient_loss(a, advantages),
        "surrogate": surrogate_loss(a, b, advantages),
        "kl_penalty": kl_penalty_loss(a, b, advantages, 3.0),
        "clipped": clipped_policy_loss(a, b, advantages, 0.2),
        "clipped, both": clipped_policy_loss(a, b, advantages, 0.1, 0.3, 2.0),
    }
    batch = train_batch(mdp, logprobs=b, advantages=advantages, values=b, returns=b, ref_logprobs=b)
    loss = ppo_loss(TokenOutputs(a, b, b), batch, SETTINGS[name]).loss
    assert_equal(loss, torch.where(mdp.mask, expected[name], 0.0), 1e-14)
    for other, value in expected.items():
        if other != name:
            assert distance(loss, torch.where(mdp.mask, value, 0.0)) > 1e-3


@problems
@pytest.mark.parametrize("estimate", ["true", "monte_carlo"])
def test_the_mean_surrogate_is_that_of_conservative_policy_iteration_everywhere(
    seed: int, gamma: float, estimate: str
) -> None:
    mdp, old, new = old_and_new(seed)
    logprobs = mdp.logprobs(old)
    advantages = advantage_estimates(mdp, old, gamma)[estimate]

    def loss(theta: Tensor) -> Tensor:
        per_token = surrogate_loss(mdp.logprobs(theta), logprobs, advantages)
        return expected_loss(mdp, old, per_token, gamma)

    def exact(theta: Tensor) -> Tensor:
        gain = conservative_policy_iteration(mdp, old, theta, gamma)
        if estimate == "true":
            return -gain
        baseline = mdp.at_states(random_table(mdp.depths.shape, 77))  # leaves V - baseline behind
        values = mdp.at_states(mdp.state_values(old, gamma))
        return -gain - expected_loss(mdp, old, values - baseline, gamma)

    assert_equal(loss(new), exact(new))
    assert_equal(gradient(loss, new), gradient(exact, new))


@problems
@pytest.mark.parametrize("penalty", [0.1, 3.0])
def test_the_penalty_is_the_exact_kl_from_the_old_policy(
    seed: int, gamma: float, penalty: float
) -> None:
    mdp, old, new = old_and_new(seed)
    logprobs = mdp.logprobs(old)
    advantages = advantage_estimates(mdp, old, gamma)["true"]

    def loss(theta: Tensor) -> Tensor:
        per_token = kl_penalty_loss(mdp.logprobs(theta), logprobs, advantages, penalty)
        return expected_loss(mdp, old, per_token, gamma)

    def exact(theta: Tensor) -> Tensor:
        kl = (mdp.visitation(old, gamma) * kl_of_states(old, theta)).sum()
        return penalty * kl - conservative_policy_iteration(mdp, old, theta, gamma)

    assert_equal(loss(new), exact(new))
    assert_equal(gradient(loss, new), gradient(exact, new))


@problems
def test_the_clipped_objective_is_a_lower_bound_of_the_surrogate_by_exact_sums(
    seed: int, gamma: float
) -> None:
    """E[-loss] = sum over s, a of d(s) pi_old min(ratio A, clip(ratio) A)."""
    mdp, old, new = old_and_new(seed)
    table = mdp.advantage_table(old, gamma)
    advantages, logprobs = mdp.at_tokens(table), mdp.logprobs(old)

    def loss(theta: Tensor) -> Tensor:
        per_token = clipped_policy_loss(mdp.logprobs(theta), logprobs, advantages, 0.1, 0.3)
        return expected_loss(mdp, old, per_token, gamma)

    def exact(theta: Tensor) -> Tensor:
        ratio = theta.softmax(dim=1) / old.softmax(dim=1)
        capped = torch.where(table > 0, ratio.clamp(max=1.3), ratio.clamp(min=0.9)) * table
        weights = mdp.visitation(old, gamma)[:, None] * old.softmax(dim=1)
        return -(weights * capped).sum()

    assert_equal(loss(new), exact(new))
    assert_equal(gradient(loss, new), gradient(exact, new))
    assert float(-loss(new)) < float(conservative_policy_iteration(mdp, old, new, gamma))


@problems
def test_whole_trajectory_weights_make_the_policy_gradient_of_another_policys_responses_exact(
    seed: int, gamma: float
) -> None:
    mdp, sampler, theta = old_and_new(seed)
    weights = mdp.probabilities(theta) / mdp.probabilities(sampler)
    advantages = advantage_estimates(mdp, theta, gamma)["monte_carlo"]

    def loss(parameters: Tensor) -> Tensor:
        per_token = policy_gradient_loss(mdp.logprobs(parameters), advantages)
        return expected_loss(mdp, sampler, weights[:, None] * per_token, gamma)

    exact = gradient(lambda x: mdp.objective(x, gamma), theta)
    assert_equal(gradient(loss, theta), -exact)


@problems
def test_without_weights_another_policys_responses_give_another_gradient(
    seed: int, gamma: float
) -> None:
    """Negative control; per-token ratios, the surrogate's, are not enough away from old either."""
    mdp, sampler, theta = old_and_new(seed)
    logprobs = mdp.logprobs(sampler)
    advantages = advantage_estimates(mdp, theta, gamma)["true"]
    exact = gradient(lambda x: mdp.objective(x, gamma), theta)
    for name in ("policy_gradient", "surrogate"):

        def loss(parameters: Tensor, name: str = name) -> Tensor:
            per_token = OBJECTIVES[name](mdp.logprobs(parameters), logprobs, advantages)
            return expected_loss(mdp, sampler, per_token, gamma)

        assert distance(gradient(loss, theta), -exact) > 1e-3


@problems
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_whole_loss_is_exact_in_policy_value_entropy_and_kl(
    seed: int, gamma: float, estimator: str
) -> None:
    mdp, old, new = old_and_new(seed)
    reference = random_table(old.shape, 400 + seed)
    advantages, returns = monte_carlo(
        mdp.rewards, mdp.at_states(mdp.state_values(old, gamma)), mdp.mask, gamma
    )
    batch = train_batch(
        mdp,
        logprobs=mdp.logprobs(old),
        ref_logprobs=mdp.logprobs(reference),
        advantages=advantages,
        returns=returns,
        values=mdp.with_junk(torch.zeros_like(returns)),
    )
    settings = LossSettings(
        "surrogate",
        value_coefficient=0.3,
        value_clip_range=None,
        entropy_coefficient=0.05,
        kl_coefficient=0.2,
        kl_estimator=estimator,  # type: ignore[arg-type]
    )
    value_table = random_table(mdp.depths.shape, 500 + seed)

    def entropies(theta: Tensor) -> Tensor:
        return -(theta.softmax(dim=1) * theta.log_softmax(dim=1)).sum(dim=1)

    def loss(theta: Tensor, values: Tensor) -> Tensor:
        outputs = TokenOutputs(
            mdp.logprobs(theta), mdp.at_states(values), mdp.at_states(entropies(theta))
        )
        return expected_loss(mdp, old, ppo_loss(outputs, batch, settings).loss, gamma)

    def exact(theta: Tensor) -> Tensor:
        visits = mdp.visitation(old, gamma)
        bonus = (visits * entropies(theta)).sum()
        kl = (visits * kl_of_states(theta, reference)).sum()
        gain = conservative_policy_iteration(mdp, old, theta, gamma)
        return -gain - 0.05 * bonus + 0.2 * kl

    assert_equal(gradient(lambda x: loss(x, value_table), new), gradient(exact, new))
    error = value_table - mdp.state_values(old, gamma)
    value_gradient = 0.3 * mdp.visitation(old, gamma) * error
    assert_equal(gradient(lambda v: loss(new, v), value_table), value_gradient)


@problems
@pytest.mark.parametrize("clip_range", [None, 0.2])
def test_the_value_loss_stops_at_the_true_value(
    seed: int, gamma: float, clip_range: float | None
) -> None:
    """Its mean gradient there is 0, however the returns vary; the clip is open."""
    mdp, old = random_problem(seed)
    true = mdp.state_values(old, gamma)
    _, returns = monte_carlo(mdp.rewards, mdp.at_states(true), mdp.mask, gamma)
    batch = train_batch(
        mdp,
        logprobs=mdp.logprobs(old),
        ref_logprobs=mdp.logprobs(old),
        advantages=mdp.at_tokens(torch.zeros_like(old)),
        returns=returns,
        values=mdp.at_states(true),
    )
    settings = LossSettings(value_coefficient=1.0, value_clip_range=clip_range)

    def loss(values: Tensor) -> Tensor:
        outputs = TokenOutputs(mdp.logprobs(old), mdp.at_states(values), mdp.rewards)
        return expected_loss(mdp, old, ppo_loss(outputs, batch, settings).loss, gamma)

    assert_equal(gradient(loss, true), torch.zeros_like(true))
