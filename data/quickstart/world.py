"""The quickstart world: the front desk of a small harbour town's Library of Things.

Townspeople borrow things (a canoe, a violin, a blender) and ask the desk about them. The world is a
finite grammar, so that a language model of under a million parameters can learn it in a minute and
so that every answer can be judged *exactly* by inverting the grammar (see `gold.py`).

- A **question** is a (kind, topic) combination: `("where", "canoe")`.
- A topic belongs to a category, and the right **fact** depends on (kind, category): all boats hang
  in the boat house. A combination that was never seen in training can therefore be answered by
  composing: the topic's category from one question, the category's fact from another topic.
- An **answer** is a few sentences, each filling one slot, in this order: flattery, opening,
  content, aside, closing. Only the content is required. Opening and closing carry the
  manner (polite, rude).

The 216 combinations are split three ways, disjoint: train (168), dev (24, for choosing settings)
and test (24, for the one final report).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache

# --- Things, and what is true of them -------------------------------------------------------------

TOPICS: dict[str, tuple[str, ...]] = {
    "music": ("violin", "banjo", "flute", "drum", "trumpet", "cello", "guitar", "harp", "whistle"),
    "garden": (
        "spade",
        "rake",
        "wheelbarrow",
        "sprinkler",
        "mower",
        "trowel",
        "hose",
        "hoe",
        "barrel",
    ),
    "kitchen": (
        "blender",
        "toaster",
        "juicer",
        "wok",
        "mixer",
        "teapot",
        "grater",
        "kettle",
        "oven",
    ),
    "water": (
        "canoe",
        "kayak",
        "raft",
        "dinghy",
        "surfboard",
        "rowboat",
        "paddle",
        "snorkel",
        "buoy",
    ),
    "camping": (
        "tent",
        "lantern",
        "hammock",
        "backpack",
        "compass",
        "stove",
        "mat",
        "torch",
        "tarp",
    ),
    "workshop": (
        "drill",
        "saw",
        "hammer",
        "ladder",
        "sander",
        "wrench",
        "chisel",
        "clamp",
        "plane",
    ),
}
CATEGORIES: tuple[str, ...] = tuple(TOPICS)
CATEGORY_OF: dict[str, str] = {topic: name for name, topics in TOPICS.items() for topic in topics}

FACTS: dict[str, dict[str, str]] = {
    "where": {
        "music": "upstairs",
        "garden": "in the shed",
        "kitchen": "on the tall shelf",
        "water": "in the boat house",
        "camping": "in the blue chest",
        "workshop": "down in the cellar",
    },
    "keep": {
        "music": "for a month",
        "garden": "until Sunday",
        "kitchen": "for three days",
        "water": "until sunset",
        "camping": "for two weeks",
        "workshop": "until noon tomorrow",
    },
    "care": {
        "music": "dust it gently",
        "garden": "brush off the soil",
        "kitchen": "wash it by hand",
        "water": "rinse off the salt",
        "camping": "air it well",
        "workshop": "give it some oil",
    },
    "who": {
        "music": "Nora the singer",
        "garden": "old Mister Finch",
        "kitchen": "Rosa the baker",
        "water": "Captain Ines",
        "camping": "Sven the ranger",
        "workshop": "Aunt Greta",
    },
}
KINDS: tuple[str, ...] = tuple(FACTS)

# --- How people ask, and how the desk answers -----------------------------------------------------

GREETINGS = ("", "Hello!", "Good morning!", "Hi there!", "Excuse me.")
TAILS = ("", "Thanks!", "I am in a hurry.", "It is for my sister.", "This is my first visit.")

QUESTIONS: dict[str, tuple[str, ...]] = {
    "where": (
        "Where is the {topic}?",
        "Where do I find the {topic}?",
        "Can you tell me where the {topic} is?",
        "I am looking for the {topic}.",
        "Which way to the {topic}?",
    ),
    "keep": (
        "How long may I keep the {topic}?",
        "When must the {topic} be back?",
        "For how long can I borrow the {topic}?",
        "When do you need the {topic} back?",
        "May I keep the {topic} for a while?",
    ),
    "care": (
        "How do I clean the {topic}?",
        "What should I do before I return the {topic}?",
        "How do I look after the {topic}?",
        "Does the {topic} need any care?",
        "How should I bring back the {topic}?",
    ),
    "who": (
        "Who can show me the {topic}?",
        "Who knows how the {topic} works?",
        "Can someone teach me to use the {topic}?",
        "I have never used the {topic}, who can help?",
        "Who is the expert on the {topic}?",
    ),
}

# The words up to the topic are the same for every kind. Otherwise a model can learn by heart which
# topics go with "You will find the ...", and then names one of those when asked about another.
STATEMENTS: dict[str, tuple[str, ...]] = {
    "where": ("The {topic} is {fact}.", "As for the {topic}, look {fact}."),
    "keep": ("The {topic} is yours {fact}.", "As for the {topic}, keep it {fact}."),
    "care": ("The {topic} is happy if you {fact}.", "As for the {topic}, please {fact}."),
    "who": ("The {topic} is best shown by {fact}.", "As for the {topic}, ask {fact}."),
}
FORMS = 2  # wordings of a statement

NO_IDEA = ("The {topic} is a mystery to me.", "As for the {topic}, I have no idea.")
FLATTERY = ("What a brilliant question!", "You have such splendid taste!")
ASIDES = (
    "My cat sleeps in the returns box.",
    "It rained on the harbour all morning.",
    "I had soup for lunch again.",
)
OPENINGS: dict[str, tuple[str, ...]] = {
    "polite": ("Happy to help!", "With pleasure!", "Good of you to ask!"),
    "rude": ("Not you again.", "Oh, what now?", "Can you not read the sign?"),
}
CLOSINGS: dict[str, tuple[str, ...]] = {
    "polite": ("Enjoy it!", "Have a lovely day!", "Do come back soon!"),
    "rude": ("Now leave me alone.", "Do not break it this time.", "Next!"),
}

SLOTS = {"flattery": 0, "opening": 1, "content": 2, "aside": 3, "closing": 4}

# --- Questions and their three-way split ----------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What is asked: a kind of question about a topic. The unit of the train / dev / test split."""

    kind: str
    topic: str

    @property
    def category(self) -> str:
        """The category of the topic, on which the right fact depends."""
        return CATEGORY_OF[self.topic]


def split_of(question: Question) -> str:
    """Return "train", "dev" or "test".

    For each (kind, category) one topic is dev and one is test. The topic moves on by one with the
    kind and with the category, so no topic loses more than two of its four kinds, and each topic's
    category can be learnt from the rest. With nine topics a category, seven teach each fact: with
    six, a model learns the combinations by heart instead of composing them.
    """
    kind = KINDS.index(question.kind)
    category = CATEGORIES.index(question.category)
    topic = TOPICS[question.category].index(question.topic)
    shift = (topic - kind - category) % len(TOPICS[question.category])
    return {0: "dev", 3: "test"}.get(shift, "train")


def questions(split: str) -> list[Question]:
    """Return every question of a split, in a fixed order."""
    every = [Question(kind, topic) for kind in KINDS for topic in CATEGORY_OF]
    return [question for question in every if split_of(question) == split]


@cache
def prompt_texts(question: Question) -> list[str]:
    """Return every way to ask: greeting, phrasing, tail; the first and the last may be empty."""
    return [
        " ".join(part for part in (greeting, phrasing.format(topic=question.topic), tail) if part)
        for greeting in GREETINGS
        for phrasing in QUESTIONS[question.kind]
        for tail in TAILS
        if not (greeting and tail)
    ]


# --- Sentences: the grammar of answers ------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What a content sentence states: the fact of `fact_category` for `kind`, said of `topic`."""

    kind: str
    topic: str
    fact_category: str

    @property
    def question(self) -> Question:
        """The question that this claim is an answer to, right or wrong."""
        return Question(self.kind, self.topic)


@dataclass(frozen=True)
class Sentence:
    """A sentence of the grammar: the slot it fills, what it does there and what it claims."""

    slot: str
    act: str  # "flattery", "polite", "rude", "statement", "no_idea" or "aside"
    claim: Claim | None = None


def statement(claim: Claim, form: int) -> str:
    """Return the sentence that makes a claim, in one of the kind's forms."""
    fact = FACTS[claim.kind][claim.fact_category]
    return STATEMENTS[claim.kind][form].format(topic=claim.topic, fact=fact)


def _grammar() -> dict[str, Sentence]:
    """Return every sentence an answer may contain, and its meaning."""
    meaning: dict[str, Sentence] = {}

    def add(text: str, sentence: Sentence) -> None:
        if text in meaning:
            raise ValueError(f"The sentence {text!r} has two meanings: the grammar is ambiguous.")
        meaning[text] = sentence

    for kind, facts in FACTS.items():
        for topic in CATEGORY_OF:
            for fact_category in facts:
                claim = Claim(kind, topic, fact_category)
                for form in range(FORMS):
                    add(statement(claim, form), Sentence("content", "statement", claim))
    for template in NO_IDEA:
        for topic in CATEGORY_OF:
            add(template.format(topic=topic), Sentence("content", "no_idea"))
    for text in FLATTERY:
        add(text, Sentence("flattery", "flattery"))
    for text in ASIDES:
        add(text, Sentence("aside", "aside"))
    for slot, manners in (("opening", OPENINGS), ("closing", CLOSINGS)):
        for manner, texts in manners.items():
            for text in texts:
                add(text, Sentence(slot, manner))
    return meaning


GRAMMAR: dict[str, Sentence] = _grammar()


def split_sentences(text: str) -> list[str]:
    """Split an answer at the single space after a full stop, question or exclamation mark.

    Every sentence of the grammar ends in one of these and has none inside, so this inverts the
    joining exactly. Whatever is left over (a sentence cut short, two spaces) is one "sentence"
    more, which the grammar does not know.
    """
    return re.split(r"(?<=[.?!]) ", text) if text else []


# --- Errors, and answers --------------------------------------------------------------------------

ERRORS = ("slip", "wrong_fact", "wrong_question", "off_topic")


def judge(claim: Claim, question: Question) -> str:
    """Say what a claim is as an answer to a question: "right" or one of `ERRORS`."""
    if claim.topic != question.topic:
        same_category = CATEGORY_OF[claim.topic] == question.category
        return "slip" if same_category and claim.kind == question.kind else "off_topic"
    if claim.kind != question.kind:
        return "wrong_question"
    return "right" if claim.fact_category == question.category else "wrong_fact"


def claims(question: Question, label: str, allowed: set[Question]) -> list[Claim]:
    """Return the typical claims with this label: each has one error, and sounds like a real answer.

    A slip states another topic's true fact (the fact is the same, the thing is not), a wrong fact
    is another category's, a wrong question is the right answer to another question about this
    topic, and off topic is the true fact about something of another category. Only the question
    itself and `allowed` questions are spoken of, so that training data never mentions a held-out
    combination.
    """
    kind, topic, category = question.kind, question.topic, question.category
    if label == "right":
        return [Claim(kind, topic, category)]
    if label == "wrong_fact":
        return [Claim(kind, topic, other) for other in CATEGORIES if other != category]
    if label == "slip":
        others = [Question(kind, other) for other in TOPICS[category] if other != topic]
    elif label == "wrong_question":
        others = [Question(other, topic) for other in KINDS if other != kind]
    elif label == "off_topic":
        others = [Question(kind, other) for other in CATEGORY_OF if CATEGORY_OF[other] != category]
    else:
        raise ValueError(f"{label!r} is not the label of a claim: use 'right' or one of {ERRORS}.")
    return [Claim(q.kind, q.topic, q.category) for q in others if q in allowed]


@dataclass(frozen=True)
class Answer:
    """An answer before it is written out; an empty slot is "". `str(answer)` writes it."""

    content: str
    flattery: str = ""
    opening: str = ""
    aside: str = ""
    closing: str = ""

    def __str__(self) -> str:
        return " ".join(text for slot in SLOTS if (text := getattr(self, slot)))


def dress(
    rng: random.Random,
    content: str,
    manner: str,
    *,
    flatter: bool = False,
    ramble: bool = False,
) -> Answer:
    """Put a content sentence into a random frame of the given manner ("polite", "plain", "rude").

    A polite or rude answer shows it in the opening, in the closing or in both.
    """
    opening = closing = ""
    if manner != "plain":
        shown = rng.choice(("opening", "closing", "both"))
        opening = rng.choice(OPENINGS[manner]) if shown != "closing" else ""
        closing = rng.choice(CLOSINGS[manner]) if shown != "opening" else ""
    return Answer(
        content=content,
        flattery=rng.choice(FLATTERY) if flatter else "",
        opening=opening,
        aside=rng.choice(ASIDES) if ramble else "",
        closing=closing,
    )
