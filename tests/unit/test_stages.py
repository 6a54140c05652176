"""What the trainers of the three stages are given: rows, masks, rates; probes by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import byte_tokenizer, make_config, tiny_model

from rlhf_ppo.config import RewardModelConfig, SupervisedConfig
from rlhf_ppo.data.fitting import fit_demonstrations, fit_pairs
from rlhf_ppo.data.lengths import LengthLimit
from rlhf_ppo.data.preferences import Demonstration, Preference
from rlhf_ppo.models.limits import limits_of
from rlhf_ppo.models.policy import build_policy
from rlhf_ppo.rewards.judgement import Missing, Score
from rlhf_ppo.training import reward_model as reward_model_module
from rlhf_ppo.training import sft as sft_module
from rlhf_ppo.training.distributed import Processes
from rlhf_ppo.training.reward_model import file_order, probe, train_reward_model
from rlhf_ppo.training.roles import make_optimizer
from rlhf_ppo.training.sft import train_supervised


class Handed(Exception):  # noqa: N818  # carries what a trainer was given out of the stage
    """What a trainer was given."""


def trainer(**given: Any) -> None:
    """Stands where a trainer stands."""
    raise Handed(given)


def rows_for(module: Any, name: str, train: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The rows that a stage hands to its trainer."""
    monkeypatch.setattr(module, name, trainer)
    with pytest.raises(Handed) as handed:
        train()
    return list(handed.value.args[0]["train_dataset"])


MODEL = tiny_model("gpt2", len(byte_tokenizer(chat=False))).config


def limit(most: int) -> LengthLimit:
    """The most tokens of a row, of a model of 64 positions."""
    return LengthLimit("max_tokens", most, limits_of(MODEL, "policy.path"))


def plain(prompt: str, completion: str, row: int = 1) -> Demonstration:
    return Demonstration(f"d:{row}", prompt, completion)


def test_completions_are_learnt_and_prompts_are_not(
    tmp_path: Path, gpt2_models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token a byte and one for the end: of a row as long as the limit nothing is lost."""
    config = make_config(output_dir=str(tmp_path), policy={"path": gpt2_models["policy"]})
    items = [plain("ask: ", "yes"), plain("ask: ", "yes!", 2), plain("a", "b", 3)]
    tokenizer = byte_tokenizer(chat=False)
    fitted = fit_demonstrations(items, tokenizer, limit(9), "data.demonstrations", "drop")
    assert [(row.where, row.tokens) for row in fitted.long] == [("d:2", 10)]
    rows = rows_for(
        sft_module,
        "SFTTrainer",
        lambda: train_supervised(
            config, SupervisedConfig(), items, fitted, tmp_path / "sft", {}, Processes(config)
        ),
        monkeypatch,
    )
    assert [tokenizer.decode(row["input_ids"]) for row in rows] == [
        "ask: yes<|endoftext|>",
        "ab<|endoftext|>",
    ]
    assert [row["completion_mask"] for row in rows] == [[0] * 5 + [1] * 4, [0, 1, 1]]


def pair(prompt: str, chosen: str, rejected: str, kind: str = "all") -> Preference:
    return Preference("p:1", prompt, chosen, rejected, kind)


def test_pairs_are_as_long_as_their_longer_side(
    tmp_path: Path, gpt2_models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(output_dir=str(tmp_path), policy={"path": gpt2_models["policy"]})
    pairs = [pair("ask: ", "yes", "no"), pair("ask: ", "a", "abcd"), pair("", "a", "bcd")]
    pairs.append(pair("ask: ", "abcd", "a"))
    tokenizer = byte_tokenizer(chat=False)
    fitted = fit_pairs(pairs, tokenizer, limit(9), "data.preferences", "drop")
    assert [row.tokens for row in fitted.long] == [10, 10]
    rows = rows_for(
        reward_model_module,
        "RewardTrainer",
        lambda: train_reward_model(
            config,
            RewardModelConfig(),
            fitted,
            None,
            {},
            gpt2_models["reward"],
            tmp_path / "rm",
            {},
            Processes(config),
        ),
        monkeypatch,
    )
    found = [tuple(tokenizer.decode(row[f"{side}_ids"]) for side in ("chosen", "rejected"))
             for row in rows]  # fmt: skip
    assert found == [
        ("ask: yes<|endoftext|>", "ask: no<|endoftext|>"),
        ("a<|endoftext|>", "bcd<|endoftext|>"),
    ]
    assert [row["length"] for row in rows] == [9, 4]


# ---- the order of a file


def pairs_of(lengths: list[int]) -> list[dict[str, Any]]:
    return [{"length": length, "number": number} for number, length in enumerate(lengths)]


def test_pairs_stay_within_their_stretch_of_the_file_and_similar_lengths_meet() -> None:
    """Stretches of 50 batches; the short batch of the last one stays at the end."""
    lengths = [(7 * n) % 23 for n in range(2 * 100 + 5)]
    found = file_order(pairs_of(lengths), 2, seed=1)
    assert sorted(item["number"] for item in found) == list(range(205))
    for start in (0, 100, 200):
        numbers = {item["number"] for item in found[start : start + 100]}
        assert numbers == set(range(start, min(205, start + 100)))
    whole = [found[at : at + 2] for at in range(0, 200, 2)]
    assert sum(abs(a["length"] - b["length"]) for a, b in whole) < 30  # in the file's order: 1600
    last = max(item["length"] for item in found[200:])
    assert found[-1]["length"] == last  # the odd one out is the longest: the batches were sorted


# ---- probes


class Scorer:
    """A reward model that knows the scores of a few answers."""

    def __init__(self, scores: dict[str, Score]) -> None:
        self.scores = scores

    def score_ids(self, sequences: Any) -> list[Score]:
        texts = [byte_tokenizer(chat=False).decode(ids) for ids in sequences]
        return [self.scores[text.removeprefix("q").removesuffix("<|endoftext|>")] for text in texts]


def test_probes_count_right_orders_by_kind_ties_as_half() -> None:
    scorer: Any = Scorer(
        {"best": 3.0, "good": 1.0, "same": 1.0, "bad": -1.0, "long": Missing("too long")}
    )
    pairs = [
        pair("q", "best", "bad", "facts"),
        pair("q", "good", "same", "facts"),
        pair("q", "bad", "good", "facts"),
        pair("q", "good", "same", "manners"),
        pair("q", "best", "good", "manners"),
        pair("q", "long", "good", "manners"),
        pair("q", "good", "long", "manners"),
    ]
    fitted = fit_pairs(pairs, byte_tokenizer(chat=False), limit(64), "data.preferences", "drop")
    found = probe(scorer, fitted.rows, [each.kind for each in pairs])
    assert list(found) == ["facts", "manners"]
    shown = {kind: (v["pairs"], v["accuracy"], v["margin"]) for kind, v in found.items()}
    assert shown["facts"] == (3, pytest.approx(1.5 / 3), pytest.approx((4 + 0 - 2) / 3))
    assert shown["manners"] == (2, 0.75, 1.0)


# ---- the optimizer


def test_the_optimizer_has_the_settings_and_only_what_is_trained() -> None:
    config = make_config(
        ppo={
            "learning_rate": 0.1,
            "adam_beta2": 0.95,
            "adam_epsilon": 1e-4,
            "weight_decay": 0.3,
        },
        value={"learning_rate": 0.7},
        lora={"rank": 2},
    )
    lm = tiny_model("llama")
    policy = build_policy(lm, config.lora, config.value, None, False)
    found = make_optimizer(config, policy)
    assert [(g["lr"], g["peak"]) for g in found.param_groups] == [(0.1, 0.1), (0.7, 0.7)]
    for group in found.param_groups:
        assert group["betas"] == (0.9, 0.95)
        assert (group["eps"], group["weight_decay"]) == (1e-4, 0.3)
    trained = {id(p) for p in policy.parameters() if p.requires_grad}
    assert {id(p) for group in found.param_groups for p in group["params"]} == trained
    frozen = [p for p in policy.parameters() if not p.requires_grad]
    assert frozen  # the base


def test_without_a_rate_of_their_own_the_values_learn_at_the_policys() -> None:
    config = make_config(ppo={"learning_rate": 0.1})
    policy = build_policy(tiny_model("llama"), None, config.value, None, False)
    found = make_optimizer(config, policy)
    assert [group["lr"] for group in found.param_groups] == [0.1, 0.1]
