"""The gold score of the quickstart world: what a perfect judge would say of an answer.

It inverts the grammar of `world.py`: an answer is cut into sentences, each is looked up, and what
is not in the grammar is gibberish. Nothing is ever trained on this score; annotators see it through
noise (see `make_data.py`), the reward model sees only the annotators, and the policy sees only the
reward model. So it tells whether the whole chain worked, and whether PPO exploits the reward model.

    content   +1.5 right, -1 wrong (slip, wrong fact, wrong question, off topic), -0.5 none
    manner    +1 polite, -1 rude (rude wins when both are there)
    each      -0.25 flattery, -0.25 rambling (asides, repeats, sentences out of order),
              -0.5 sentence outside the grammar, -0.5 the response was cut

The most is 2.5: a right and polite answer that keeps to the point.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import world
else:

    def _load_world() -> Any:
        """Load the sibling `world.py` from its path: this folder is not an installed package."""
        name = "rlhf_ppo_quickstart_world"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(
                name, Path(__file__).with_name("world.py")
            )
            sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look here
            spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]

    world = _load_world()

CONTENT_SCORE = {"right": 1.5, "no_idea": -0.5, "empty": -0.5} | dict.fromkeys(world.ERRORS, -1.0)
MANNER_SCORE = {"polite": 1.0, "plain": 0.0, "rude": -1.0}
FLATTERY_SCORE = -0.25
RAMBLING_SCORE = -0.25
GIBBERISH_SCORE = -0.5
CUT_SCORE = -0.5


def judge_content(sentences: list[world.Sentence], question: world.Question) -> str:
    """Label the content of an answer: right only if it claims something and every claim is right.

    Of several contents the first that is not right counts, so that hedging ("the canoe is here, the
    kayak is there") cannot pass as right.
    """
    labels = [
        world.judge(sentence.claim, question) if sentence.claim else "no_idea"
        for sentence in sentences
        if sentence.slot == "content"
    ]
    wrong = [label for label in labels if label != "right"]
    return wrong[0] if wrong else ("right" if labels else "empty")


def judge_manner(sentences: list[world.Sentence]) -> str:
    """Label the manner of an answer: one rude sentence makes it rude, whatever else it says."""
    acts = {sentence.act for sentence in sentences}
    return "rude" if "rude" in acts else "polite" if "polite" in acts else "plain"


def count_rambling(sentences: list[world.Sentence]) -> int:
    """Count asides and sentences whose slot was filled or passed (repeats, wrong order)."""
    count, furthest = 0, -1
    for sentence in sentences:
        slot = world.SLOTS[sentence.slot]
        count += sentence.act == "aside" or slot <= furthest
        furthest = max(furthest, slot)
    return count


def score_one(response: str, question: world.Question, stopped: bool = True) -> dict[str, float]:
    """Score one response to one question; `score` is the total, the other keys are 0 or 1."""
    texts = world.split_sentences(response.strip())
    sentences = [world.GRAMMAR[text] for text in texts if text in world.GRAMMAR]
    gibberish = len(texts) - len(sentences)
    content = judge_content(sentences, question)
    manner = judge_manner(sentences)
    flattery = sum(sentence.act == "flattery" for sentence in sentences)
    rambling = count_rambling(sentences)
    total = (
        CONTENT_SCORE[content]
        + MANNER_SCORE[manner]
        + FLATTERY_SCORE * flattery
        + RAMBLING_SCORE * rambling
        + GIBBERISH_SCORE * gibberish
        + CUT_SCORE * (not stopped)
    )
    return {
        "score": total,
        **{label: float(content == label) for label in CONTENT_SCORE},
        **{label: float(manner == label) for label in ("polite", "rude")},
        "flattery": float(flattery > 0),
        "rambling": float(rambling > 0),
        "gibberish": float(gibberish > 0),
    }


def score(
    prompts: list[list[dict[str, str]]], responses: list[str], **columns: list[Any]
) -> list[dict[str, float]]:
    """Score responses, one a prompt.

    Args:
        prompts: The chats; not read, because the columns say what was asked.
        responses: What the policy answered, as text without special tokens.
        **columns: `kind` and `topic` of every question, as in the prompt files; optionally
            `stopped`, whether each response ended by itself (text alone cannot tell).

    Returns:
        One dict a response: "score" and its parts, each 0 or 1.

    Raises:
        ValueError: If a column is missing, or the lists differ in length.
    """
    missing = [name for name in ("kind", "topic") if name not in columns]
    if missing:
        raise ValueError(
            f"The quickstart gold score needs the column(s) {missing} of the prompt files, got "
            f"{sorted(columns)}. Keep the extra columns when you load the prompts."
        )
    stopped = columns.get("stopped", [True] * len(responses))
    sizes = {len(x) for x in (prompts, responses, columns["kind"], columns["topic"], stopped)}
    if len(sizes) != 1:
        raise ValueError(f"Prompts, responses and columns differ in length: {sorted(sizes)}.")
    pairs = zip(columns["kind"], columns["topic"], strict=True)
    questions = [world.Question(kind, topic) for kind, topic in pairs]
    return [score_one(*item) for item in zip(responses, questions, stopped, strict=True)]
