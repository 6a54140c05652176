"""What the chat knows of a run: example questions, single turns, its own noise for each answer."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import write_config
from helpers import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_ppo.chat.about import SINGLE, SINGLE_WITH_HISTORY, AboutRun, about_run
from rlhf_ppo.chat.conversation import Conversation, Drawn
from rlhf_ppo.chat.models import ChatModel, Settings
from rlhf_ppo.chat.terminal import Chat

CPU = torch.device("cpu")


def model(seed: int) -> ChatModel:
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, initializer_range=0.3, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    lm = LlamaForCausalLM(config).eval()
    return ChatModel(f"model {seed}", "x", lm, tokenizer, (tokenizer.eos_token_id,))


def run_with(folder: Path, prompts: list[Any]) -> str:
    write_config(folder / "config.yaml", {"output_dir": "x", "policy": {"path": "base"}})
    (folder / "evaluation").mkdir()
    side = {"response": "x"}
    rows = [{"prompt": prompt, "policy": side, "reference": side} for prompt in prompts]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "evaluation" / "samples.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_run_of_single_questions_is_known_and_gives_examples(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    prompts: list[Any] = [[system, user(f"question {place}")] for place in range(8)]
    about = about_run([run_with(tmp_path, [*prompts, "plain text", [user("long " * 99)]])], CPU)
    assert about.single_turn and about.scorer is None
    assert about.examples == ("question 0", "question 2", "question 4", "question 6")


@pytest.mark.parametrize(
    "prompts",
    [
        [[user("a")], [user("a"), {"role": "assistant", "content": "b"}, user("c")]],
        [],
    ],
)
def test_a_run_with_longer_conversations_or_no_evaluation_is_not_said_to_be(
    tmp_path: Path, prompts: list[Any]
) -> None:
    assert not about_run([run_with(tmp_path, prompts)], CPU).single_turn
    assert about_run(["gpt2"], CPU) == AboutRun()


def test_each_question_on_its_own_has_no_history() -> None:
    """A policy of single questions was right on .96 of first questions and on .05 of second."""
    conversation = Conversation(model(1))
    alone = Settings(seed=3, max_new_tokens=8, history=False)
    first = conversation.answer("one", alone, lambda _: None)
    conversation.answer("two", alone, lambda _: None)
    assert len(conversation.history) == 2
    assert conversation.answer("one", alone, lambda _: None) == first
    kept = Settings(seed=3, max_new_tokens=8)
    conversation.answer("two", kept, lambda _: None)
    assert len(conversation.history) == 4


def test_the_terminal_says_it_and_can_change_it(capsys: pytest.CaptureFixture[str]) -> None:
    about = AboutRun(examples=("Where is the kettle?",), single_turn=True)
    chat = Chat([model(1)], Settings(history=False), about)
    chat._introduce()
    shown = capsys.readouterr().out
    assert SINGLE in shown and "Where is the kettle?" in shown
    assert chat._obey("/history on") == SINGLE_WITH_HISTORY and chat.settings.history
    assert "each question on its own" in chat._obey("/history off")
    assert "say on or off" in chat._obey("/history maybe")


def test_tokens_are_drawn_with_their_probabilities() -> None:
    scores = torch.tensor([[1.0, 0.0, -1.0, float("-inf")]])
    drawn = Drawn(torch.Generator().manual_seed(1), 0.7)
    counts = torch.zeros(4)
    for _ in range(8000):
        counts[int(drawn(scores, scores).argmax())] += 1
    expected = torch.softmax(scores[0] / 0.7, dim=0)
    assert (counts / 8000).tolist() == pytest.approx(expected.tolist(), abs=0.015)
    assert counts[3] == 0


def test_models_that_answer_at_the_same_time_do_not_disturb_one_another() -> None:
    settings = Settings(seed=5, max_new_tokens=40)
    models = [model(seed) for seed in (1, 2, 3)]
    alone = [Conversation(one).answer("hello", settings, lambda _: None) for one in models]
    together: dict[int, str] = {}

    def answer(place: int) -> None:
        conversation = Conversation(models[place])
        together[place] = conversation.answer("hello", settings, lambda _: None)

    threads = [threading.Thread(target=answer, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[place] for place in range(3)] == alone
