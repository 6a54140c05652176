"""From settings and a rollout to what the update is given: each setting arrives, in order."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from helpers import make_config, random_tokens

from rlhf_ppo.algorithm import advantages, kl, losses, rewards
from rlhf_ppo.algorithm.advantages import AdvantageSettings, gae
from rlhf_ppo.algorithm.batch import Responses, Rollout
from rlhf_ppo.algorithm.losses import LossSettings
from rlhf_ppo.algorithm.rewards import Moments, shape_rewards
from rlhf_ppo.config import AdvantageConfig, KlConfig, PpoConfig, RewardConfig, rules
from rlhf_ppo.training.train_batch import (
    advantage_settings,
    compared_responses,
    learns_values,
    loss_settings,
    make_train_batch,
    shape_scores,
)

ROWS = 6
SCORES = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 9.0])


def rollout(seed: int = 0) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    tokens = random_tokens(ROWS, widths=(4, 7), seed=seed)
    mask = tokens.response_mask

    def column() -> torch.Tensor:
        return torch.randn(mask.shape, generator=generator) * mask

    responses = Responses(
        tokens=tokens,
        sampling_logprobs=column(),
        stopped=torch.tensor([True, True, False, True, False, True]),
        prompt_rows=torch.arange(ROWS),
    )
    return Rollout(responses, column(), column(), column(), column().abs(), SCORES[:, None])


def shaped(found: Rollout, moments: Moments | None = None, **reward: Any) -> torch.Tensor:
    config = make_config(reward=reward)
    return shape_scores(config.reward, SCORES, found, moments or Moments())[0]


def test_scores_pass_unchanged_by_default() -> None:
    assert torch.equal(shaped(rollout()), SCORES)


def test_normalised_then_clipped_then_fined() -> None:
    found = rollout()
    lengths = found.responses.tokens.response_mask.sum(dim=1)
    z = (SCORES - 4.0) / SCORES.std(unbiased=False)
    wanted = z.clamp(-1, 1) - torch.tensor([0.0, 0, 2, 0, 2, 0])
    wanted = wanted - 0.5 * (lengths - 3).clamp(min=0)
    settings = {
        "normalization": "standardize",
        "clip_range": 1.0,
        "missing_stop_penalty": 2.0,
        "length_penalty": 0.5,
        "length_free_tokens": 3,
    }
    torch.testing.assert_close(shaped(found, **settings), wanted)
    assert int(lengths.max()) > 3


def test_the_fixed_score_of_unstopped_responses_is_not_normalised() -> None:
    found = shaped(rollout(), normalization="center", missing_stop_score=-1.0)
    assert found[2] == found[4] == -1.0
    assert found[0] == -3.0


@pytest.mark.parametrize(("source", "second"), [("reference", 6.0), ("running", 5.0)])
def test_moments_come_from_the_first_step_or_from_all(source: str, second: float) -> None:
    reward = make_config(reward={"normalization": "center", "normalization_from": source}).reward
    scores, moments = shape_scores(reward, SCORES, rollout(), Moments())
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-6)
    later = torch.full((ROWS,), 10.0)  # the mean of all is then 7
    scores, after = shape_scores(reward, later, rollout(), moments)
    assert scores.tolist() == pytest.approx([10.0 - (4.0 if source == "reference" else 7.0)] * ROWS)
    assert (after == moments) == (source == "reference")
    assert moments.count == ROWS and after.count in (ROWS, 2 * ROWS)


def test_the_kl_stands_in_the_reward_or_in_the_loss_and_never_in_both() -> None:
    found = rollout()
    settings: dict[str, Any] = {"advantage": {"lam": 1.0, "whiten": False}}
    mask = found.responses.tokens.response_mask
    for place, beta in (("reward", 0.3), ("loss", 0.0)):
        config = make_config(kl={"place": place}, **settings)
        batch = make_train_batch(config, found, SCORES, 0.3)
        rewards = shape_rewards(SCORES, found.logprobs, found.ref_logprobs, mask, beta)
        _, returns = gae(rewards, found.values, mask, 1.0, 1.0)
        torch.testing.assert_close(batch.returns, returns)
        assert loss_settings(config, 0.3, 1.0).kl_coefficient == 0.3 - beta
        assert torch.equal(batch.ref_logprobs, found.ref_logprobs)


def test_returns_are_made_before_whitening() -> None:
    """Whitened advantages plus values would be targets in no unit at all."""
    found = rollout()
    plain = make_train_batch(make_config(advantage={"whiten": False}), found, SCORES, 0.1)
    white = make_train_batch(make_config(), found, SCORES, 0.1)
    assert torch.equal(plain.returns, white.returns)
    assert not torch.allclose(plain.advantages, white.advantages)


@pytest.mark.parametrize(
    ("kind", "whiten", "expected"),
    [
        ("gae", None, True),
        ("gae", False, False),
        ("reward_to_go", None, True),
        ("rloo", None, False),
        ("rloo", True, True),
        ("grpo", None, False),
        ("reinforce_pp", None, True),
    ],
)
def test_whitening_follows_the_method_unless_told(
    kind: str, whiten: bool | None, expected: bool
) -> None:
    config = make_config(
        advantage={"kind": kind, "whiten": whiten}, rollout={"samples_per_prompt": 3}
    )
    batch = make_train_batch(config, rollout(), SCORES, 0.1)
    kept = batch.advantages[batch.tokens.response_mask]
    white = abs(float(kept.mean())) < 1e-5 and abs(float(kept.var(unbiased=False)) - 1) < 1e-4
    assert white == expected


def test_whitened_rewards_keep_their_mean() -> None:
    found = rollout()
    mask = found.responses.tokens.response_mask
    settings: dict[str, Any] = {"advantage": {"kind": "reward_to_go", "gamma": 0.0}}
    settings["advantage"]["whiten"] = False  # with gamma 0 the advantage is the token's reward
    plain = make_train_batch(make_config(**settings), found, SCORES, 0.1).advantages[mask]
    config = make_config(reward={"whiten": True}, **settings)
    white = make_train_batch(config, found, SCORES, 0.1).advantages[mask]
    assert float(white.mean()) == pytest.approx(float(plain.mean()), abs=1e-5)
    assert float(white.var(unbiased=False)) == pytest.approx(1.0, abs=1e-4)


LOSS = {
    "objective": {"ppo": {"objective": "surrogate"}},
    "clip_range": {"ppo": {"clip_range": 0.11}},
    "clip_range_high": {"ppo": {"clip_range_high": 0.31}},
    "dual_clip": {"ppo": {"dual_clip": 3.0}},
    "value_coefficient": {"value": {"coefficient": 0.77}},
    "value_clip_range": {"value": {"clip_range": None}},
    "entropy_coefficient": {"ppo": {"entropy_coefficient": 0.02}},
    "kl_estimator": {"kl": {"estimator": "k3"}},
    "kl_coefficient": {"kl": {"place": "loss"}},
}
ADVANTAGE = {
    "kind": {"advantage": {"kind": "one_step"}},
    "gamma": {"advantage": {"gamma": 0.9}},
    "n": {"advantage": {"kind": "n_step", "n": 5}},
    "lam": {"advantage": {"lam": 0.7}},
    "value_lam": {"advantage": {"value_lam": 1.0}},
    "length_alpha": {"advantage": {"length_alpha": 0.05}},
    "group_size": {"rollout": {"samples_per_prompt": 4}},
    "scale_groups": {
        "advantage": {"kind": "grpo", "scale_groups": False},
        "rollout": {"samples_per_prompt": 2},
    },
}


def test_every_setting_of_the_loss_arrives_and_none_moves_another() -> None:
    """A setting that is read nowhere is the commonest lie of a config."""
    default = loss_settings(make_config(), beta=0.4, penalty=1.5)
    assert set(LOSS) | {"penalty"} == set(LossSettings.__dataclass_fields__)
    assert default.penalty == 1.5
    for name, sections in LOSS.items():
        found = loss_settings(make_config(**sections), beta=0.4, penalty=1.5)
        changed = {field for field in LOSS if getattr(found, field) != getattr(default, field)}
        assert changed == {name}


def test_every_setting_of_the_advantages_arrives_and_none_moves_another() -> None:
    default = advantage_settings(make_config())
    assert set(ADVANTAGE) == set(AdvantageSettings.__dataclass_fields__)
    for name, sections in ADVANTAGE.items():
        found = advantage_settings(make_config(**sections))
        changed = {f for f in ADVANTAGE if getattr(found, f) != getattr(default, f)}
        along = {"n": {"kind"}, "scale_groups": {"kind", "group_size"}}.get(name, set())
        assert changed == {name} | along


@pytest.mark.parametrize("kind", ["reward_to_go", "rloo", "grpo", "reinforce_pp"])
def test_kinds_without_values_learn_none(kind: str) -> None:
    config = make_config(advantage={"kind": kind}, rollout={"samples_per_prompt": 2})
    assert not learns_values(config)
    assert loss_settings(config, 0.1, 1.0).value_coefficient == 0.0
    assert learns_values(make_config())


def test_the_config_names_what_the_algorithm_knows() -> None:
    """Written twice, because `--help` must not wait for torch."""
    pairs = [
        (AdvantageConfig, "kind", advantages.Kind),
        (PpoConfig, "objective", losses.Objective),
        (PpoConfig, "loss_aggregation", losses.Aggregation),
        (KlConfig, "estimator", kl.Estimator),
        (RewardConfig, "normalization", rewards.Normalization),
    ]
    for section, name, known in pairs:
        assert get_args(section.model_fields[name].annotation) == get_args(known), name
    assert rules.WITHOUT_VALUES == advantages.WITHOUT_VALUES


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_in_the_reward_is_by_its_estimator_under_the_policy_that_is_trained(
    estimator: Any,
) -> None:
    """By hand, at each token (gamma 0): minus beta times the estimate, and the score at the end."""
    found = rollout()
    settings: dict[str, Any] = {"kind": "reward_to_go", "gamma": 0.0, "whiten": False}
    config = make_config(advantage=settings, kl={"estimator": estimator})
    batch = make_train_batch(config, found, SCORES, 0.3)
    d = found.logprobs - found.ref_logprobs
    estimate = {"k1": d, "k2": d**2 / 2, "k3": (-d).exp() - 1 + d}[estimator]
    for row, length in enumerate(batch.tokens.response_mask.sum(dim=1).tolist()):
        expected = -0.3 * estimate[row, :length]
        expected[-1] += SCORES[row]
        torch.testing.assert_close(batch.advantages[row, :length], expected)


def test_the_update_is_given_what_the_models_said_of_each_token() -> None:
    """The old policy is the one that is trained, not the sampler's rounding of it."""
    found = rollout()
    batch = make_train_batch(make_config(), found, SCORES, 0.3)
    for name in ("logprobs", "ref_logprobs", "values"):
        assert torch.equal(getattr(batch, name), getattr(found, name)), name
    assert torch.equal(batch.tokens.response_ids, found.responses.tokens.response_ids)


@pytest.mark.parametrize(
    ("kind", "compared"),
    [("gae", 1), ("reward_to_go", 1), ("rloo", 3), ("grpo", 3), ("reinforce_pp", 3)],
)
def test_a_response_leaves_with_those_it_is_compared_with(kind: str, compared: int) -> None:
    config = make_config(advantage={"kind": kind}, rollout={"samples_per_prompt": 3})
    assert compared_responses(config) == compared
