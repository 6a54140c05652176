"""`data.heldout` cuts by a hash of the prompt: the same cut whatever the order, form or stage."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from helpers import make_config, write_jsonl

from rlhf_ppo.config import Config
from rlhf_ppo.data.heldout import held_out, split_key
from rlhf_ppo.errors import UserError
from rlhf_ppo.inputs import Inputs, read_inputs
from rlhf_ppo.stamps import make_stamps

ALL = ("sft", "reward_model", "ppo", "evaluation")
NAMES = [f"thing {number}" for number in range(60)]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def by_hash(names: list[str]) -> list[str]:
    """In the order of SHA-256 of the conversation as JSON, computed here from its definition."""

    def value(name: str) -> str:
        return hashlib.sha256(json.dumps([["user", name]]).encode()).hexdigest()

    return sorted(names, key=value)


def config(folder: Path, names: list[str], **data: Any) -> Config:
    """All sources hold the same prompts."""
    pairs = [
        {"prompt": user(name), "chosen": answer("yes"), "rejected": answer("no")} for name in names
    ]
    sources = {
        "prompts": write_jsonl(folder / "p.jsonl", [{"prompt": user(name)} for name in names]),
        "preferences": write_jsonl(folder / "pairs.jsonl", pairs),
        "demonstrations": write_jsonl(
            folder / "d.jsonl", [{"messages": user(name) + answer("yes")} for name in names]
        ),
    }
    sections = {"policy": {"scratch": {}}, "sft": {}, "reward_model": {}}
    return make_config(data=sources | data, **sections)


def names_of(rows: Any) -> list[str]:
    return [
        row.text[-1]["content"] if hasattr(row, "text") else row.prompt[-1]["content"]
        for row in rows
    ]


def read(folder: Path, names: list[str] = NAMES, stages: Any = ALL, **data: Any) -> Inputs:
    return read_inputs(config(folder, names, **data), stages)


def test_the_lowest_hashes_are_held_out_and_trained_on_in_no_stage(tmp_path: Path) -> None:
    inputs = read(tmp_path, heldout=7)
    held = set(by_hash(NAMES)[:7])
    assert set(names_of(inputs.heldout_prompts)) == held
    assert set(names_of(inputs.probes)) == held
    left = [name for name in NAMES if name not in held]
    for rows in (inputs.train_prompts, inputs.preferences, inputs.demonstrations):
        assert names_of(rows) == left
    sources = inputs.report.sources
    assert {name: (item.rows, item.used) for name, item in sources.items()} == {
        "data.demonstrations": (60, 53),
        "data.preferences": (60, 53),
        "data.prompts": (60, 53),
        "data.heldout_preferences": (7, 7),
        "data.heldout_prompts": (7, 7),
    }
    assert any("held out by data.heldout = 7" in line for line in inputs.report.lines())


def test_neither_order_nor_seed_nor_a_system_prompt_moves_a_prompt(tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(NAMES, len(NAMES))
    first = set(names_of(read(tmp_path, heldout=0.2).heldout_prompts))
    assert 4 < len(first) < 22
    assert set(names_of(read(tmp_path, shuffled, heldout=0.2).heldout_prompts)) == first
    found = read(tmp_path, heldout=0.2, system_prompt="Be kind.")
    assert {name.text[-1]["content"] for name in found.heldout_prompts} == first  # type: ignore[index]


def test_of_a_share_no_new_row_moves_an_old_one(tmp_path: Path) -> None:
    few = set(names_of(read(tmp_path, NAMES[:40], heldout=0.3).heldout_prompts))
    more = set(names_of(read(tmp_path, NAMES, heldout=0.3).heldout_prompts))
    assert few == more & set(NAMES[:40])


def test_repeats_of_a_prompt_stay_on_its_side_in_any_form(tmp_path: Path) -> None:
    held = by_hash(NAMES)[0]
    rows: list[Any] = [{"prompt": user(name)} for name in NAMES]
    rows += [{"prompt": held}, {"prompt": f"\n\nHuman: {held}\n\nAssistant:"}]
    rows += [{"prompt": [{"role": "system", "content": "s"}, *user(held)]}]
    source = write_jsonl(tmp_path / "more.jsonl", rows)
    inputs = read(tmp_path, heldout=1, prompts=source)
    assert len(inputs.heldout_prompts) == 4
    assert len(inputs.train_prompts) == len(NAMES) - 1


@pytest.mark.parametrize("stage", ALL)
def test_a_stage_alone_cuts_as_all_together(tmp_path: Path, stage: str) -> None:
    """Else a prompt that is held out by PPO might be imitated by the supervised stage."""
    alone, whole = read(tmp_path, stages=(stage,), heldout=7), read(tmp_path, heldout=7)
    for rows, of_whole, stages in (
        (alone.demonstrations, whole.demonstrations, {"sft"}),
        (alone.preferences, whole.preferences, {"reward_model"}),
        (alone.probes, whole.probes, {"reward_model"}),
        (alone.train_prompts, whole.train_prompts, {"ppo"}),
        (alone.heldout_prompts, whole.heldout_prompts, {"ppo", "evaluation"}),
    ):
        assert names_of(rows) == (names_of(of_whole) if stage in stages else [])


def test_a_prompt_held_out_of_one_file_is_trained_on_from_no_other(tmp_path: Path) -> None:
    """Prompts and pairs from different files: each holds out its own lowest, none learns any."""
    other = [f"other {number}" for number in range(30)] + by_hash(NAMES)[3:6]
    rows = [
        {"prompt": user(name), "chosen": answer("a"), "rejected": answer("b")} for name in other
    ]
    inputs = read(tmp_path, heldout=5, preferences=write_jsonl(tmp_path / "o.jsonl", rows))
    held = set(names_of(inputs.heldout_prompts)) | set(names_of(inputs.probes))
    assert len(inputs.heldout_prompts) == 5 and len(inputs.probes) == 5
    for trained in (inputs.train_prompts, inputs.preferences, inputs.demonstrations):
        assert not held & set(names_of(trained))


@pytest.mark.parametrize(
    ("amount", "part"),
    [(60, "leaves nothing to train on of data."), (0.0001, "holds out no row of data.")],
)
def test_a_cut_that_takes_all_or_nothing_is_refused(
    tmp_path: Path, amount: float, part: str
) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, heldout=amount)
    assert part in str(caught.value) and "60 different prompts" in str(caught.value)


def test_without_a_cut_held_out_prompts_are_asked_for_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.heldout_prompts: missing.*data.heldout = 200"):
        read(tmp_path)


def test_stages_know_that_they_were_cut_otherwise(tmp_path: Path) -> None:
    stamps = [make_stamps(config(tmp_path, NAMES, **more)) for more in ({}, {"heldout": 7})]
    assert all(stamps[0][stage] != stamps[1][stage] for stage in ALL)
    other = config(tmp_path, NAMES[1:], heldout=7)
    assert make_stamps(other)["sft"] != stamps[1]["sft"]


def test_shares_and_counts_of_keys() -> None:
    keys = [split_key(name) for name in NAMES]
    assert held_out(keys, 3) == set(sorted(keys)[:3])
    assert held_out([*keys, *keys], 3) == set(sorted(keys)[:3])
    below = {key for key in keys if int(key[:13], 16) / 16**13 < 0.25}
    assert held_out(keys, 0.25) == below
