"""The order of preference pairs: a curriculum in a file must reach the reward model as one."""

from __future__ import annotations

from typing import Any

from rlhf_ppo.training.reward_model import file_order


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"row": row, "length": (row * 7) % 13} for row in range(count)]


def test_file_order_keeps_every_pair_once_and_near_its_place() -> None:
    arranged = file_order(pairs(1030), batch_size=4, seed=1)
    assert sorted(pair["row"] for pair in arranged) == list(range(1030))
    stretch = 50 * 4
    for place, pair in enumerate(arranged):
        assert place // stretch == pair["row"] // stretch


def test_file_order_puts_similar_lengths_into_one_batch() -> None:
    arranged = file_order(pairs(400), batch_size=4, seed=1)
    spreads = []
    for start in range(0, len(arranged), 4):
        lengths = [pair["length"] for pair in arranged[start : start + 4]]
        spreads.append(max(lengths) - min(lengths))
    assert max(spreads) <= 2
    means = [arranged[start]["length"] for start in range(0, 200, 4)]
    assert means != sorted(means), "the batches of a stretch must not come by rising length"


def test_file_order_depends_on_the_seed_alone() -> None:
    assert file_order(pairs(300), 4, seed=1) == file_order(pairs(300), 4, seed=1)
    assert file_order(pairs(300), 4, seed=1) != file_order(pairs(300), 4, seed=2)


def test_a_short_batch_does_not_shift_the_batches_after_it() -> None:
    arranged = file_order(pairs(203), batch_size=4, seed=1)
    assert {pair["row"] for pair in arranged[200:]} == {200, 201, 202}
