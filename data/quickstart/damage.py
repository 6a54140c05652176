"""Damage to a sentence, as a language model may do it: pairs with it teach what is no sentence."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import world
else:

    def _load_gold() -> ModuleType:
        """Load the sibling `gold.py` from its path (see there); it knows the world."""
        path = Path(__file__).with_name("gold.py")
        spec = importlib.util.spec_from_file_location("quickstart_gold_of_damage", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    world = _load_gold().world

# Topics are left out: a stray one could pair a held-out topic with its kind in training data.
WORDS = sorted(
    {
        word
        for text in world.GRAMMAR
        for word in text.split(" ")
        if word.strip(".,?!") not in world.CATEGORY_OF
    }
)


FACTS = [fact for facts in world.FACTS.values() for fact in facts.values()]


def damage_words(rng: random.Random, words: list[str]) -> list[str]:
    """Damage a sentence, given as words, in one of many ways a language model may fall into."""
    way = rng.choice(
        ("drop", "double", "swap", "replace", "insert", "cut", "lose", "shuffle", "blend")
    )
    place = rng.randrange(len(words))
    if way == "drop":
        return words[:place] + words[place + 1 :]
    if way == "double":
        return words[: place + 1] + words[place:]
    if way == "swap":
        place = rng.randrange(max(1, len(words) - 1))
        return words[:place] + words[place : place + 2][::-1] + words[place + 2 :]
    if way == "replace":
        return [*words[:place], rng.choice(WORDS), *words[place + 1 :]]
    if way == "insert":
        return [*words[:place], rng.choice(WORDS), *words[place:]]
    if way == "cut":  # and the full stop is gone
        return words[: rng.randrange(1, len(words))] if len(words) > 1 else []
    if way == "blend":  # one sentence begins, another ends
        return words[:place] + f"{rng.choice(FACTS)}.".split(" ")
    if way == "lose":  # the beginning is gone
        return words[rng.randrange(1, len(words)) :] if len(words) > 1 else []
    return rng.sample(words, len(words))


def damage(rng: random.Random, sentence: str) -> str:
    """Damage a sentence so that neither it nor any part of it is a sentence of the grammar."""
    while True:
        words = sentence.split(" ")
        for _ in range(rng.choice((1, 1, 1, 1, 1, 2, 4))):
            words = damage_words(rng, words) or words
        text = " ".join(words)
        if text and not any(part in world.GRAMMAR for part in world.split_sentences(text)):
            return text
