"""A side of an evaluation: whose responses, with which noise, at which KL, scored by whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import byte_tokenizer, tiny_model
from runs import PROMPTS, PythonReward, make_run

from rlhf_ppo.algorithm.batch import Responses, Tokens
from rlhf_ppo.algorithm.rewards import Moments
from rlhf_ppo.evaluation.sides import Candidate, Evaluator
from rlhf_ppo.models.policy import FrozenPolicy
from rlhf_ppo.rewards.sources import Sources
from rlhf_ppo.rollout.generation import SamplingSettings
from rlhf_ppo.rollout.noise import sampling_noise

SETTINGS = SamplingSettings(5, 1.4, (1, *range(5, 70)), 8)


def other(seed: int) -> Any:
    return tiny_model("llama", len(byte_tokenizer()), seed, 0.3)


def evaluator(**sections: Any) -> Evaluator:
    """Policy (seed 1) and reference (seed 9) are different models; small micro-batches."""
    sources = [{"kind": "function", "name": name, "path": "a:b", "weight": weight}
               for name, weight in (("length", 2.0), ("vowels", 1.0))]  # fmt: skip
    reward = {"sources": sources} | sections.pop("reward", {})
    run = make_run(spread=0.3, reward=reward, ppo={"judge_batch_tokens": 25}, **sections)
    both = Sources(
        [("length", PythonReward(len)), ("vowels", PythonReward(lambda text: text.count("e")))]
    )
    roles = replace(run.roles, reference=FrozenPolicy(other(9)), reward=both)
    return Evaluator(run.config, roles, SETTINGS, run.processes, None)


class Drawn:
    """Stands where a model draws; keeps the noise and the settings it is given."""

    def __call__(self, prompts: Any, noise: torch.Tensor, settings: SamplingSettings) -> Responses:
        self.rows = [item.prompt.row for item in prompts]
        self.noise, self.settings = noise, settings
        mask = torch.ones(len(prompts), 2, dtype=torch.bool)
        mask[0, 1] = False
        ids = (70 + noise[:, :2] * 50).long()
        lengths = torch.tensor([len(item.ids) for item in prompts])
        asked = torch.tensor([[*item.ids, 0, 0, 0][:3] for item in prompts])
        stopped = torch.tensor([True] + [False] * (len(prompts) - 1))
        return Responses(Tokens(asked, lengths, ids * mask, mask), 0.0 * mask, stopped, lengths)


def drawing(found: Evaluator) -> tuple[Candidate, Drawn]:
    drawn = Drawn()
    return replace(found.reference(PROMPTS[2:6]), draw=drawn), drawn


@pytest.mark.parametrize("copies", [1, 3])
def test_copies_are_neighbours_and_the_noise_is_the_evaluations_own(copies: int) -> None:
    """Whatever the model: equal models give equal responses, in training and at the end."""
    found = evaluator()
    candidate, drawn = drawing(found)
    side = found.side(candidate, {}, purpose="best", copies=copies)
    rows = [row for row in (2, 3, 4, 5) for _ in range(copies)]
    assert drawn.rows == rows
    assert torch.equal(drawn.noise, sampling_noise(found.config.seed, "best", 0, rows, 5))
    found.side(replace(candidate, log_ratios=lambda r: [0.0] * 4 * copies), {}, purpose="best",
               copies=copies)  # fmt: skip
    assert torch.equal(drawn.noise, sampling_noise(found.config.seed, "best", 0, rows, 5))
    assert side.lengths == [1.0] + [2.0] * (len(rows) - 1)
    assert side.stopped == [1.0] + [0.0] * (len(rows) - 1)


def test_scores_are_the_weighted_sum_and_parts_what_each_source_said() -> None:
    found = evaluator()
    candidate, _ = drawing(found)
    side = found.side(candidate, {})
    assert side.parts["length"].tolist() == [len(text) for text in side.texts]
    assert side.parts["vowels"].tolist() == [text.count("e") for text in side.texts]
    total = [2.0 * len(text) + text.count("e") for text in side.texts]
    assert side.scores.tolist() == total and side.scores.dtype == torch.float64
    assert side.gold == [] and side.kl == []


def test_sources_are_normalised_by_what_training_saw_and_the_evaluation_adds_nothing() -> None:
    source = {"kind": "function", "name": "length", "path": "a:b", "normalization": "standardize"}
    found = evaluator(reward={"sources": [source]})
    roles = replace(found.roles, reward=Sources([("length", PythonReward(len))]))
    found = replace(found, roles=roles)
    candidate, _ = drawing(found)
    side = found.side(candidate, {"length": Moments(count=100, mean=10.0, squares=400.0)})
    expected = [(len(text) - 10.0) / 2.0 for text in side.texts]
    assert side.scores.tolist() == pytest.approx(expected)


def test_the_candidates_are_the_policy_the_reference_and_others_with_their_own_stops() -> None:
    found = evaluator()
    policy, reference = found.policy(PROMPTS), found.reference(PROMPTS)
    assert policy.sampling == reference.sampling == SETTINGS
    assert policy.log_ratios is not None and reference.log_ratios is None
    greedy = policy.greedy()
    assert greedy.sampling == replace(SETTINGS, temperature=0.0) and greedy.log_ratios is None
    assert policy.first(3).prompts == PROMPTS[:3]
    model, tokenizer = FrozenPolicy(other(4)), byte_tokenizer()
    third = found.other("third", model, tokenizer, PROMPTS, (7, 8), comparable=False)
    assert third.sampling == replace(SETTINGS, stop_ids=(7, 8)) and third.log_ratios is None
    fourth = found.other("fourth", model, tokenizer, PROMPTS, (7,), comparable=True)
    assert fourth.log_ratios is not None
    names = [each.name for each in (policy, reference, greedy, third)]
    assert names == ["policy", "reference", "policy, greedy", "third"]


def ratios(model: Any, reference: Any, responses: Responses, temperature: float) -> list[float]:
    """Sums over tokens of log model - log reference, by plain forward passes."""
    found = []
    tokens = responses.tokens
    for row, prompt in enumerate(PROMPTS):
        response = tokens.response_ids[row][tokens.response_mask[row]].tolist()
        sums = []
        for each in (model, reference):
            with torch.no_grad():
                logits = each(input_ids=torch.tensor([[*prompt.ids, *response]])).logits[0]
            table = (logits[len(prompt.ids) - 1 : -1] / temperature).log_softmax(dim=-1)
            sums.append(float(table.gather(1, torch.tensor(response)[:, None]).sum()))
        found.append(sums[0] - sums[1])
    return found


def test_the_kl_of_a_response_is_its_log_ratio_to_the_reference() -> None:
    """Of the policy and of another model; every row finds its way back from the micro-batches."""
    found = evaluator()
    reference: Any = found.roles.reference
    third = FrozenPolicy(other(4))
    noise = sampling_noise(1, "x", 0, range(len(PROMPTS)), 5)
    for candidate, model in (
        (found.policy(PROMPTS), found.roles.policy.lm),
        (
            found.other("x", third, byte_tokenizer(), PROMPTS, SETTINGS.stop_ids, comparable=True),
            third.lm,
        ),
    ):
        responses = candidate.draw(PROMPTS, noise, SETTINGS)
        assert len(set(responses.tokens.lengths.tolist())) > 2
        assert candidate.log_ratios is not None
        wanted = ratios(model, reference.lm, responses, SETTINGS.temperature)
        assert candidate.log_ratios(responses) == pytest.approx(wanted, abs=1e-4)
    drawn = found.reference(PROMPTS).draw(PROMPTS, noise, SETTINGS)
    assert not torch.equal(drawn.tokens.response_ids, responses.tokens.response_ids)
