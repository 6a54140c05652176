"""The quickstart world: its files are as generated, its splits disjoint, its judge exact."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "data" / "quickstart"
TRAINING_FILES = ("demonstrations", "preferences", "prompts")


def load(name: str) -> ModuleType:
    """Load a module of the data folder from its path, as a run does."""
    spec = importlib.util.spec_from_file_location(f"test_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make_data = load("make_data")
gold = make_data.gold
world = gold.world

QUESTION = world.Question("where", "canoe")
RIGHT = "The canoe is in the boat house."


def rows(name: str) -> list[dict[str, Any]]:
    """Read a shipped file."""
    text = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def question_of_prompt() -> dict[str, Any]:
    """Invert the grammar of prompts."""
    return {
        text: question
        for split in ("train", "dev", "test")
        for question in world.questions(split)
        for text in world.prompt_texts(question)
    }


def turns(row: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the user's text and every answer of a row, whatever the file."""
    messages = row.get("messages") or row["prompt"] + row.get("chosen", []) + row.get(
        "rejected", []
    )
    return messages[0]["content"], [message["content"] for message in messages[1:]]


def test_shipped_files_are_what_make_data_generates() -> None:
    for name, text in make_data.make_files().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"{name} is stale"


def test_splits_partition_the_combinations() -> None:
    splits = {split: set(world.questions(split)) for split in ("train", "dev", "test")}
    assert {split: len(questions) for split, questions in splits.items()} == {
        "train": 168,
        "dev": 24,
        "test": 24,
    }
    assert len(set().union(*splits.values())) == 216
    for topic in world.CATEGORY_OF:
        assert sum(question.topic == topic for question in splits["train"]) >= 2
    for held_out in (splits["dev"], splits["test"]):  # each (kind, category) exactly once
        assert len({(question.kind, question.category) for question in held_out}) == 24


@pytest.mark.parametrize("name", TRAINING_FILES)
def test_training_files_never_speak_of_held_out_combinations(name: str) -> None:
    asked = question_of_prompt()
    train = set(world.questions("train"))
    for row in rows(name):
        prompt, answers = turns(row)
        assert asked[prompt] in train
        for answer in answers:
            for text in world.split_sentences(answer):
                sentence = world.GRAMMAR.get(text)
                if sentence is not None and sentence.claim is not None:
                    assert sentence.claim.question in train


@pytest.mark.parametrize(("prefix", "split"), [("dev", "dev"), ("heldout", "test")])
def test_held_out_files_ask_only_their_own_combinations(prefix: str, split: str) -> None:
    asked = question_of_prompt()
    expected = set(world.questions(split))
    assert {asked[turns(row)[0]] for row in rows(f"{prefix}_prompts")} == expected
    assert {asked[turns(row)[0]] for row in rows(f"{prefix}_preferences")} == expected


def test_no_prompt_is_repeated_or_shared_between_splits() -> None:
    names = ("prompts", "dev_prompts", "heldout_prompts")
    prompts = [turns(row)[0] for name in names for row in rows(name)]
    assert len(prompts) == len(set(prompts))


def test_prompt_columns_say_what_is_asked() -> None:
    asked = question_of_prompt()
    for name in ("prompts", "dev_prompts", "heldout_prompts"):
        for row in rows(name):
            question = world.Question(row["kind"], row["topic"])
            assert asked[turns(row)[0]] == question
            assert row["category"] == question.category


@pytest.mark.parametrize("manner", ["polite", "plain", "rude"])
@pytest.mark.parametrize("label", ["right", *world.ERRORS, "no_idea"])
def test_gold_inverts_the_grammar(label: str, manner: str) -> None:
    content_points = {"right": 1.5, "no_idea": -0.5}.get(label, -1.0)
    manner_points = {"polite": 1.0, "plain": 0.0, "rude": -1.0}[manner]
    rng = random.Random(f"{label} {manner}")
    for question in world.questions("train") + world.questions("test"):
        flatter, ramble = (rng.random() < 0.5 for _ in range(2))
        content = make_data.content_sentence(rng, question, label, rng.randrange(world.FORMS))
        answer = str(world.dress(rng, content, manner, flatter=flatter, ramble=ramble))
        judged = gold.score_one(answer, question)
        parts = {name for name, value in judged.items() if name != "score" and value == 1.0}
        expected = {label, manner} - {"plain"}
        extras = {"flattery": flatter, "rambling": ramble}
        expected |= {name for name, there in extras.items() if there}
        assert parts == expected
        assert judged["score"] == content_points + manner_points - 0.25 * (flatter + ramble)


@pytest.mark.parametrize(
    ("answer", "label", "points"),
    [
        (RIGHT, "right", 1.5),
        ("The kayak is in the boat house.", "slip", -1.0),
        ("The canoe is down in the cellar.", "wrong_fact", -1.0),
        ("The canoe is yours until sunset.", "wrong_question", -1.0),
        ("The drill is down in the cellar.", "off_topic", -1.0),
        ("As for the canoe, I have no idea.", "no_idea", -0.5),
        ("Happy to help!", "empty", 0.5),
        ("", "empty", -0.5),
        (f"{RIGHT} {RIGHT}", "right", 1.25),
        (f"{RIGHT} The kayak is in the boat house.", "slip", -1.25),
        (f"{RIGHT} Happy to help!", "right", 2.25),
        (f"Happy to help! {RIGHT} Next!", "right", 0.5),
        (RIGHT.removesuffix("."), "empty", -1.0),
        (f"{RIGHT} The canoe", "right", 1.0),
    ],
)
def test_gold_by_hand(answer: str, label: str, points: float) -> None:
    judged = gold.score_one(answer, QUESTION)
    assert judged[label] == 1.0
    assert judged["score"] == points


def test_damaged_content_is_never_right() -> None:
    rng = random.Random(0)
    for question in world.questions("train") * 10:
        content = make_data.content_sentence(rng, question, "right", rng.randrange(world.FORMS))
        judged = gold.score_one(make_data.damage(rng, content), question)
        assert judged["right"] == 0.0
        assert judged["gibberish"] == 1.0
        assert judged["score"] <= -1.0


@pytest.mark.parametrize("prefix", ["dev", "heldout"])
def test_probes_hold_one_error_each_and_the_right_answer_wins(prefix: str) -> None:
    asked = question_of_prompt()
    part = {"other_topic": "off_topic", "corrupted": "gibberish"}
    counts: dict[str, int] = {}
    for row in rows(f"{prefix}_preferences"):
        prompt, (chosen, rejected) = turns(row)
        good, bad = (gold.score_one(text, asked[prompt]) for text in (chosen, rejected))
        assert good["right"] == 1.0
        assert good["score"] > bad["score"]
        counts[row["kind"]] = counts.get(row["kind"], 0) + 1
        if row["kind"] in ("slip", "wrong_fact", "other_topic", "corrupted"):
            assert bad[part.get(row["kind"], row["kind"])] == 1.0
            assert bad["right"] == 0.0
    assert min(counts[kind] for kind in ("slip", "wrong_fact", "other_topic", "corrupted")) >= 200


def test_annotators_are_noisy_but_mostly_agree_with_gold() -> None:
    asked = question_of_prompt()
    agreed = []
    for row in rows("preferences"):
        prompt, (chosen, rejected) = turns(row)
        good, bad = (gold.score_one(text, asked[prompt])["score"] for text in (chosen, rejected))
        agreed.append(1.0 if good > bad else 0.5 if good == bad else 0.0)
    assert 0.90 < sum(agreed) / len(agreed) < 0.97


def test_score_reads_the_columns_and_says_what_is_missing() -> None:
    prompts = [[{"role": "user", "content": "Where is the canoe?"}]] * 2
    columns = {"kind": ["where"] * 2, "topic": ["canoe"] * 2}
    judged = gold.score(prompts, [RIGHT, RIGHT], **columns, stopped=[True, False])
    assert [item["score"] for item in judged] == [1.5, 1.0]
    with pytest.raises(ValueError, match="topic"):
        gold.score(prompts, [RIGHT, RIGHT], kind=["where"] * 2)
    with pytest.raises(ValueError, match="length"):
        gold.score(prompts, [RIGHT], **columns)
