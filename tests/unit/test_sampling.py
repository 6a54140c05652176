"""The draw of a token, and the noise behind it."""

from __future__ import annotations

import hashlib

import pytest
import torch

from rlhf_ppo.rollout.generation import inverse_cdf_sample
from rlhf_ppo.rollout.noise import derive_seed, generator, sampling_noise


def test_frequencies_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    draws = 40_000
    uniform = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = inverse_cdf_sample(probabilities.log().expand(draws, 4), uniform)
    frequencies = torch.bincount(tokens, minlength=4) / draws
    assert int((tokens == 1).sum()) == 0
    assert float((frequencies - probabilities).abs().max()) < 4 * (0.25 / draws) ** 0.5


@pytest.mark.parametrize("probabilities", [[0.0, 0.5, 0.0, 0.5, 0.0], [0.0, 1.0], [1.0, 0.0]])
def test_a_token_of_probability_zero_is_never_chosen_not_even_at_the_edges(
    probabilities: list[float],
) -> None:
    logprobs = torch.tensor(probabilities).log()
    edges = torch.tensor([0.0, 0.5, 1 - 2**-53, 5e-324], dtype=torch.float64)
    tokens = inverse_cdf_sample(logprobs.expand(len(edges), -1), edges)
    assert all(probabilities[token] > 0 for token in tokens.tolist())


def test_the_largest_noise_stays_in_the_vocabulary_when_float32_sums_below_one() -> None:
    logprobs = torch.full((1, 50_000), 1.0).log_softmax(-1) - 1e-5
    token = inverse_cdf_sample(logprobs, torch.tensor([1 - 2**-53], dtype=torch.float64))
    assert int(token) == 49_999


def test_each_row_uses_its_own_number() -> None:
    logprobs = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    assert inverse_cdf_sample(logprobs, torch.tensor([0.6, 0.6]).double()).tolist() == [1, 0]


def test_noise_of_a_prompt_does_not_depend_on_its_batch() -> None:
    together = sampling_noise(1, "rollout", 3, [5, 9, 2], 6)
    assert torch.equal(sampling_noise(1, "rollout", 3, [2], 6)[0], together[2])
    assert torch.equal(sampling_noise(1, "rollout", 3, [2, 5, 9], 6), together[[2, 0, 1]])
    assert torch.equal(sampling_noise(1, "rollout", 3, [5], 4)[0], together[0, :4])


def test_noise_differs_by_seed_purpose_step_prompt_and_copy() -> None:
    twice = sampling_noise(1, "rollout", 3, [5, 5], 6)
    others = [
        sampling_noise(2, "rollout", 3, [5], 6)[0],
        sampling_noise(1, "evaluation", 3, [5], 6)[0],
        sampling_noise(1, "rollout", 4, [5], 6)[0],
        sampling_noise(1, "rollout", 3, [6], 6)[0],
        twice[1],
    ]
    for other in others:
        assert not torch.equal(twice[0], other)
    assert bool(((twice >= 0) & (twice < 1)).all())
    assert twice.dtype == torch.float64


def test_seeds_keep_their_parts_apart() -> None:
    seeds = {derive_seed(1, 23), derive_seed(12, 3), derive_seed(123), derive_seed("1", "2", "3")}
    assert len(seeds) == 4
    assert torch.rand(1, generator=generator(1, "a")) == torch.rand(1, generator=generator(1, "a"))


@pytest.mark.parametrize("scale", [1.0, 0.9, 1.1])
def test_a_number_falls_into_the_slice_of_its_token_whatever_the_total(scale: float) -> None:
    """Low numbers are low tokens; half-precision probabilities that sum to .9 change no draw."""
    logprobs = (scale * torch.tensor([0.5, 0.0, 0.2, 0.3], dtype=torch.float64)).log()
    uniform = torch.tensor([0.0, 0.3, 0.499, 0.501, 0.69, 0.71, 0.999], dtype=torch.float64)
    tokens = inverse_cdf_sample(logprobs.expand(7, 4), uniform)
    assert tokens.tolist() == [0, 0, 0, 2, 2, 3, 3]


def test_rare_tokens_behind_a_likely_one_keep_their_slices() -> None:
    """In float32 the sum is 1 before they come, and they would never be drawn."""
    logprobs = torch.tensor([[0.0, -20.0, -20.5, -21.0]])
    rare = logprobs.double().exp()[0]
    edges = rare.cumsum(0) / rare.sum()
    middles = edges - rare / rare.sum() / 2
    tokens = inverse_cdf_sample(logprobs.expand(4, -1), middles)
    assert tokens.tolist() == [0, 1, 2, 3]


def test_every_copy_of_a_prompt_has_noise_of_its_own_by_its_number_alone() -> None:
    three = sampling_noise(1, "rollout", 3, [5, 5, 5], 6)
    assert len({tuple(row) for row in three.tolist()}) == 3
    mixed = sampling_noise(1, "rollout", 3, [5, 9, 5, 8, 5], 6)
    assert torch.equal(mixed[[0, 2, 4]], three)


def test_noise_has_all_the_digits_of_float64() -> None:
    """Of 24 bits, a vocabulary of 200,000 would have tokens that are never drawn."""
    noise = sampling_noise(1, "rollout", 1, range(20), 20)
    assert not torch.equal(noise, noise.float().double())
    assert not bool((noise * 2**24 == (noise * 2**24).round()).any())


def test_seeds_are_numbers_of_63_bits_that_stay_the_same_for_ever() -> None:
    """A resumed run, another process and another release draw alike: by BLAKE2b of the words."""
    digest = hashlib.blake2b(b"7/rollout/3", digest_size=8).digest()
    assert derive_seed(7, "rollout", 3) == int.from_bytes(digest, "big") // 2
    seeds = [derive_seed(n) for n in range(200)]
    assert 2**62 < max(seeds) < 2**63
