"""One PPO step around an update that only records: what it is given, and what is carried on.

A sampler that turns its noise into tokens stands for the models, so a step takes milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import PROMPTS, PythonReward, make_run

import rlhf_ppo.training.ppo as ppo_module
from rlhf_ppo.algorithm.batch import Responses, Rollout, Tokens
from rlhf_ppo.algorithm.rewards import Moments
from rlhf_ppo.data.sampler import step_rows
from rlhf_ppo.rewards.sources import Sources
from rlhf_ppo.rollout.collect import response_texts
from rlhf_ppo.rollout.noise import derive_seed
from rlhf_ppo.training.checkpoint import Progress
from rlhf_ppo.training.guard import Watch
from rlhf_ppo.training.ppo import PpoRun, ppo_step
from rlhf_ppo.training.ptx import TextRow, draw_rows
from rlhf_ppo.training.update import UpdateStats

NOTHING = UpdateStats(
    *([0.0] * 9), torch.zeros(0), ptx_loss=0.0, grad_norm=0.0, optimizer_steps=1, skipped=0,
    skipped_in_row=0,
)  # fmt: skip
START = Progress(step=0, episodes=0, tokens=0, beta=0.05)


class Update:
    """Stands where the update stands; keeps what it is given and moves nothing."""

    def __init__(self, stats: UpdateStats = NOTHING) -> None:
        self.stats, self.calls = stats, []  # type: ignore[var-annotated]

    def __call__(self, *given: Any, **named: Any) -> UpdateStats:
        names = ("policy", "forward", "optimizer", "batch", "config", "loss", "shuffle")
        self.calls.append(dict(zip(names, given, strict=False)) | named)
        return self.stats

    @property
    def last(self) -> dict[str, Any]:
        return self.calls[-1]  # type: ignore[no-any-return]


def sample(roles: Any, prompts: Any, noise: torch.Tensor, settings: Any) -> Responses:
    """Responses that are nothing but their noise: bytes, as long as its first number says."""
    lengths = 1 + (noise[:, 0] * noise.shape[1]).long()
    mask = torch.arange(noise.shape[1]) < lengths[:, None]
    ids = (70 + noise * 50).long() * mask
    asked = torch.tensor([item.ids for item in prompts])
    tokens = Tokens(asked, torch.full((len(asked),), asked.shape[1]), ids, mask)
    rows = torch.tensor([item.prompt.row for item in prompts])
    return Responses(tokens, -1.0 * mask, mask[:, -1], rows)


def collect(roles: Any, prompts: Any, responses: Responses, *_: Any) -> Any:
    """What the models would say: a log-ratio of .1, .2, .3 ... nats, and the reward."""
    mask = responses.tokens.response_mask
    asked = [item.prompt.text for item in prompts]
    texts = response_texts(roles.tokenizer, responses.tokens, asked)
    found = roles.reward.score([item.prompt for item in prompts], texts)
    log_ratio = 0.1 * torch.arange(1, mask.shape[1] + 1) * mask
    zero = torch.zeros(mask.shape)
    rollout = Rollout(responses, -1.0 * mask, -1.0 * mask - log_ratio, zero, zero, found.scores)
    return rollout, found.failures


@pytest.fixture
def update(monkeypatch: pytest.MonkeyPatch) -> Update:
    recorder = Update()
    for name, stand_in in (("ppo_update", recorder), ("sample", sample), ("collect", collect)):
        monkeypatch.setattr(ppo_module, name, stand_in)
    # These responses differ from their reference from the first step on.
    monkeypatch.setattr(ppo_module, "first_step_trouble", lambda rounding, differences: None)
    return recorder


class Gold:
    """Keeps the prompts and texts that a step ends with."""

    def __init__(self) -> None:
        self.prompts: Sequence[Any] = ()

    def __call__(self, prompts: Sequence[Any], texts: Sequence[str]) -> float:
        self.prompts, self.texts = prompts, texts
        return 0.0


def small(reward: Callable[[str], float] = len, /, **sections: Any) -> PpoRun:
    rollout = {"batch_size": 4, "max_new_tokens": 5} | sections.pop("rollout", {})
    return replace(make_run(reward, rollout=rollout, **sections), gold=Gold())


def rows_of(run: PpoRun) -> list[int]:
    assert isinstance(run.gold, Gold)
    return [item.prompt.row for item in run.gold.prompts]


# ---- which prompts, which noise


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_step_takes_its_own_prompts_and_copies_of_one_are_neighbours(
    update: Update, step: int
) -> None:
    run = small(rollout={"samples_per_prompt": 2})
    _, metrics, _ = ppo_step(run, step, START)
    rows = step_rows(len(PROMPTS), 4, step, run.config.seed)
    assert rows_of(run) == [row for row in rows for _ in range(2)]
    tokens = update.last["batch"].tokens
    for place, row in enumerate(rows_of(run)):
        assert tuple(tokens.prompt_ids[place].tolist()) == PROMPTS[row].ids
    assert {"group/identical", "group/equal_scores"} <= metrics.keys()


def test_a_single_response_to_each_prompt_is_no_group(update: Update) -> None:
    _, metrics, _ = ppo_step(small(), 1, START)
    assert not [name for name in metrics if name.startswith("group/")]


def test_responses_without_a_score_leave_with_their_prompts(update: Update) -> None:
    """Two sources fail on the same response: one response is dropped, two scores are missing."""

    def odd(text: str) -> float:
        return math.nan if len(text) % 2 else 1.0

    sources = [{"kind": "function", "name": name, "path": "a:b"} for name in "ab"]
    run = small(reward={"sources": sources, "max_failed": 0.9}, rollout={"batch_size": 12})
    both = Sources([("a", PythonReward(odd)), ("b", PythonReward(odd))])
    run = replace(run, roles=replace(run.roles, reward=both))
    after, metrics, _ = ppo_step(run, 1, replace(START, episodes=100, tokens=1000))
    assert isinstance(run.gold, Gold)
    kept = len(run.gold.texts)
    assert 1 <= kept < 12 and all(len(text) % 2 == 0 for text in run.gold.texts)
    assert metrics["reward/dropped"] == 12 - kept
    assert metrics["reward/a/failed"] == metrics["reward/b/failed"] == 12 - kept
    assert after.episodes == metrics["episodes"] == 100 + kept
    tokens = update.last["batch"].tokens
    assert after.tokens == metrics["tokens"] == 1000 + int(tokens.response_mask.sum())
    for place, row in enumerate(rows_of(run)):
        assert tuple(tokens.prompt_ids[place].tolist()) == PROMPTS[row].ids


class Second:
    """The second of two processes, alone: it has the second half, and gathers nothing."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def share(self, total: int) -> slice:
        return slice(total // 2, total)


def test_a_process_samples_what_one_process_alone_would_have(update: Update) -> None:
    """The cut goes through the two copies of a prompt, whose noise must stay that of the second."""
    run = small(rollout={"batch_size": 3, "samples_per_prompt": 2})
    ppo_step(run, 1, START)
    whole = update.last["batch"].tokens
    second: Any = Second(run.processes)
    ppo_step(replace(run, processes=second), 1, START)
    half = update.last["batch"].tokens
    width = half.response_ids.shape[1]
    assert torch.equal(half.response_ids, whole.response_ids[3:, :width])
    assert torch.equal(half.response_mask.sum(dim=1), whole.response_mask.sum(dim=1)[3:])


def test_noise_shuffle_and_text_are_others_in_each_step_and_after_each_rollback(
    update: Update,
) -> None:
    rows = [TextRow((n, n + 1, n + 2), 1) for n in range(20, 60)]
    run = small(ptx={"batch_size": 3}, ppo={"epochs": 2, "minibatches": 2})
    run = replace(run, ptx_rows=rows)
    found = []
    for step, rollbacks in ((1, 0), (1, 1), (1, 2), (2, 0), (1, 0)):
        ppo_step(run, step, replace(START, watch=Watch(rollbacks=rollbacks)))
        text = update.last["draw_text"](1)
        seen = (
            update.last["batch"].tokens.response_ids.flatten().tolist(),
            update.last["shuffle"].initial_seed(),
            text.prompt_ids.flatten().tolist(),
        )
        found.append(seen)
    assert found[0] == found[4]
    for what in range(3):
        assert len({str(seen[what]) for seen in found}) == 4, what
    # The text of step 2's second optimizer step is the run's 4 + 2nd.
    ppo_step(run, 2, START)
    expected = draw_rows(rows, 3, 6, derive_seed(run.config.seed, "ptx"))
    assert torch.equal(update.last["draw_text"](1).prompt_ids, expected.prompt_ids)


# ---- what the step before left


def test_beta_is_the_steps_own_and_the_next_one_follows_from_its_kl(update: Update) -> None:
    """Ziegler's rule over all responses; the beta that was paid is the one that is shown."""
    kl = {"controller": "adaptive", "target": 1.0, "horizon": 100, "beta": 0.7}
    settings = {"kind": "reward_to_go", "whiten": False}
    run = small(kl=kl, advantage=settings, rollout={"samples_per_prompt": 2})
    after, metrics, _ = ppo_step(run, 1, replace(START, beta=0.3))
    batch = update.last["batch"]
    log_ratio = ((batch.logprobs - batch.ref_logprobs) * batch.tokens.response_mask).sum(dim=1)
    assert isinstance(run.gold, Gold)
    scores = torch.tensor([float(len(text)) for text in run.gold.texts])
    torch.testing.assert_close(batch.advantages[:, 0], scores - 0.3 * log_ratio)
    assert metrics["kl/beta"] == 0.3
    assert metrics["kl/ref"] == pytest.approx(float(log_ratio.mean()), rel=1e-5)
    error = min(max(metrics["kl/ref"] / 1.0 - 1, -0.2), 0.2)
    assert after.beta == pytest.approx(0.3 * (1 + error * 8 / 100))
    assert after.kl_error == pytest.approx(error)


def test_the_loss_has_the_beta_and_the_penalty_of_the_step(update: Update) -> None:
    run = small(
        kl={"place": "loss", "beta": 0.7},
        ppo={"objective": "kl_penalty", "penalty": 2.0, "penalty_target": 0.1},
    )
    after, _, _ = ppo_step(run, 1, replace(START, beta=0.3, penalty=4.0))
    assert update.last["loss"].kl_coefficient == 0.3
    assert update.last["loss"].penalty == 4.0
    assert after.penalty == 8.0  # the policy is far from what the sampler said: doubled


def test_moments_of_sources_and_of_the_sum_go_on(update: Update) -> None:
    source = {"kind": "function", "path": "a:b", "normalization": "standardize"}
    run = small(
        reward={"sources": [source], "normalization": "center", "normalization_from": "running"}
    )
    sources = {"function": Moments(count=10, mean=5.0, squares=3.0)}
    before = replace(START, scores=Moments(count=20, mean=1.0, squares=2.0), sources=sources)
    after, _, _ = ppo_step(run, 1, before)
    assert after.sources["function"].count == 14
    assert after.scores.count == 24
    assert ppo_step(run, 2, after)[0].sources["function"].count == 18


def test_scores_and_kl_that_are_not_finite_steer_nothing_later(
    update: Update, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"kind": "function", "path": "a:b", "weight": 10.0}
    kl = {"controller": "adaptive", "beta": 0.1}
    run = small(
        lambda text: 3e38,
        kl=kl,
        reward={"sources": [source], "normalization": "center", "normalization_from": "running"},
    )

    def poisoned(*arguments: Any) -> Any:
        rollout, failures = collect(*arguments)
        rollout.ref_logprobs[0, 0] = -math.inf
        return rollout, failures

    monkeypatch.setattr(ppo_module, "collect", poisoned)
    before = replace(START, scores=Moments(count=20, mean=1.0, squares=2.0))
    after, metrics, _ = ppo_step(run, 1, before)
    assert metrics["score/mean"] == metrics["kl/ref"] == math.inf
    assert (after.beta, after.kl_error) == (before.beta, before.kl_error)
    assert after.scores == before.scores


def test_the_guard_sees_the_skips_in_a_row(update: Update) -> None:
    update.stats = replace(NOTHING, skipped=1, skipped_in_row=3)
    after, _, _ = ppo_step(small(), 1, replace(START, watch=Watch(skipped=2)))
    assert update.last["skipped_in_row"] == 2
    assert after.watch.skipped == 3


@pytest.mark.parametrize(
    ("kind", "expected"), [("gae", [False, False, True]), ("reward_to_go", [True, True, True])]
)
def test_the_policy_waits_while_its_values_warm_up(
    update: Update, kind: str, expected: list[bool]
) -> None:
    run = small(advantage={"kind": kind}, ppo={"value_warmup_steps": 2})
    for step in (1, 2, 3):
        ppo_step(run, step, START)
    assert [call["train_policy"] for call in update.calls] == expected


def test_rates_are_shares_of_the_peak_and_every_rollback_lowers_them_again(update: Update) -> None:
    run = small(
        ppo={"learning_rate": 0.5, "warmup_steps": 4},
        value={"learning_rate": 2.0},
        guard={"max_kl": 99.0, "action": "rollback", "learning_rate_factor": 0.1},
    )
    for step, rollbacks, share in ((1, 0, 0.25), (2, 0, 0.5), (4, 0, 1.0), (4, 2, 0.01)):
        _, metrics, _ = ppo_step(run, step, replace(START, watch=Watch(rollbacks=rollbacks)))
        assert metrics["learning_rate"] == pytest.approx(0.5 * share)
        rates = [group["lr"] for group in run.optimizer.param_groups]
        assert rates == pytest.approx([0.5 * share, 2.0 * share])


def test_the_phases_of_a_step_are_timed_one_after_the_other(
    update: Update, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by one second each time it is read."""
    ticks = count()
    monkeypatch.setattr(ppo_module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    _, metrics, _ = ppo_step(small(), 1, START)
    names = ("time/rollout", "time/judge", "time/update")
    assert [metrics[name] for name in names] == [1, 1, 1]
    assert metrics["throughput/tokens_per_second"] == metrics["tokens"] / 3
    assert metrics["throughput/judge"] == metrics["tokens"]
