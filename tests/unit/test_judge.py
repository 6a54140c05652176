"""A judge behind a chat endpoint: both orders, strict verdicts, failures that are never ties."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from typing import Any

import pytest
from helpers import plain_prompts
from local_server import serving

from rlhf_ppo.config import JudgeConfig
from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.errors import UserError
from rlhf_ppo.evaluation.judge import (
    Verdict,
    ask_judge,
    check_judge,
    read_verdict,
    summarise_verdicts,
)
from rlhf_ppo.rewards.post import ServiceError

Json = dict[str, Any]
Answer = Callable[[str, str], str]  # the two answers in the order shown -> what the judge writes
PROMPTS = plain_prompts(*({} for _ in range(12)))
LONG, SHORT = ["a long answer"] * 12, ["short"] * 12
TEMPLATE = "{prompt}|{answer_a}|{answer_b}"


def longer_wins(first: str, second: str) -> str:
    if len(first) == len(second):
        return "Equal. [[C]]"
    return "The longer. [[A]]" if len(first) > len(second) else "[[B]] it is, [[B]]."


@contextmanager
def judge(answer: Answer = longer_wins, **settings: Any) -> Iterator[tuple[JudgeConfig, list[Any]]]:
    """Settings of a judge in a thread, and what it has been asked."""
    asked: list[Any] = []

    def respond(path: str, headers: Message, question: Any) -> tuple[int, bytes]:
        asked.append((path, headers.get("Authorization"), question))
        _, first, second = question["messages"][0]["content"].split("|")
        text = answer(first, second)
        body = {"choices": [{"message": {"role": "assistant", "content": text}}]}
        return 500 if text == "broken" else 200, json.dumps(body).encode()

    with serving(respond) as url:
        given = {"url": f"{url}/v1", "model": "tiny", "template": TEMPLATE} | settings
        yield JudgeConfig.model_validate(given), asked


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between tries, without waiting."""
    found: list[float] = []
    real = time.sleep
    monkeypatch.setattr("rlhf_ppo.rewards.post.time.sleep", lambda s: found.append(s) or real(0))
    return found


def test_each_prompt_is_asked_in_both_orders_and_the_better_answer_wins() -> None:
    with judge(parallel=1, options={"temperature": 0, "seed": 3}) as (settings, asked):
        verdicts = ask_judge(settings, PROMPTS[:2], LONG, SHORT, allowed=0)
    assert verdicts == [Verdict(1.0, 1.0)] * 2
    shown = [question["messages"][0]["content"] for _, _, question in asked]
    assert shown[:2] == ["prompt 0|a long answer|short", "prompt 0|short|a long answer"]
    path, key, question = asked[0]
    assert path == "/v1/chat/completions" and key is None
    assert (question["model"], question["temperature"], question["seed"]) == ("tiny", 0, 3)
    found = summarise_verdicts(settings, verdicts, 100, 1)
    rate = found["win_rate"]
    assert (rate["mean"], rate["high"], rate["ties"], rate["p"]) == (1.0, 1.0, 0.0, 0.5)
    assert rate["low"] <= 0.5  # two wins of two are no verdict
    assert found["first_shown"]["mean"] == 0.5
    assert (found["inconsistent"], found["failed"], found["prompts"]) == (0.0, 0, 2)


def test_a_judge_that_likes_what_comes_first_is_found_out_and_favours_nobody() -> None:
    with judge(lambda first, second: "[[A]]") as (settings, _):
        verdicts = ask_judge(settings, PROMPTS, LONG, SHORT, allowed=0)
    found = summarise_verdicts(settings, verdicts, 100, 1)
    rate = found["win_rate"]
    assert (rate["mean"], rate["ties"], rate["p"]) == (0.5, 1.0, 1.0)
    assert rate["low"] < 0.5 < rate["high"]
    assert found["first_shown"]["mean"] == 1.0 and found["inconsistent"] == 1.0


def test_a_tie_is_the_judge_saying_so() -> None:
    with judge() as (settings, _):
        verdicts = ask_judge(settings, PROMPTS, LONG, LONG, allowed=0)
    assert verdicts == [Verdict(0.5, 0.5)] * 12


@pytest.mark.parametrize(
    "text", ["A is better", "[[A]] or [[B]]", "", "[A]", "[[D]]", "[[a]]"], ids=repr
)
def test_anything_but_one_clear_verdict_is_a_failure_with_its_reason(text: str) -> None:
    def sometimes(first: str, second: str) -> str:
        return text if "odd" in first + second else longer_wins(first, second)

    ours = ["odd one out", *LONG[1:]]
    with judge(sometimes, max_failed=0.1) as (settings, _):
        verdicts = ask_judge(settings, PROMPTS, ours, SHORT, allowed=1)
        assert "verdict" in verdicts[0].reason and not verdicts[1].reason
        found = summarise_verdicts(settings, verdicts, 100, 1)
        assert (found["prompts"], found["failed"]) == (11, 1)
        assert found["win_rate"]["mean"] == 1.0
        with pytest.raises(UserError, match=r"2 of 12 prompts got no verdict .* 0\.1 allows"):
            summarise_verdicts(settings, [verdicts[0], *verdicts[:11]], 100, 1)


def test_a_judge_that_does_not_answer_is_asked_again_and_then_given_up(waits: list[float]) -> None:
    with judge(lambda first, second: "broken", retries=2, parallel=1) as (settings, asked):
        verdicts = ask_judge(settings, PROMPTS, LONG, SHORT, allowed=1)
    assert len(asked) == 2 * 3 and waits == [1.0, 2.0] * 2  # two prompts, then nobody is asked
    assert "HTTP 500" in verdicts[0].reason and "not asked" in verdicts[2].reason
    with pytest.raises(UserError, match="HTTP 500"):
        summarise_verdicts(settings, verdicts, 100, 1)


def test_a_timeout_is_a_failure() -> None:
    def slow(first: str, second: str) -> str:
        threading.Event().wait(0.5)
        return "[[A]]"

    with judge(slow, timeout=0.05, retries=0) as (settings, _):
        (verdict,) = ask_judge(settings, PROMPTS[:1], LONG, SHORT, allowed=0)
    assert "no answer within timeout = 0.05 s" in verdict.reason


def test_an_answer_that_looks_like_a_place_stays_as_it_is() -> None:
    with judge(parallel=1) as (settings, asked):
        ask_judge(settings, PROMPTS[:1], ["{answer_b}"], ["x"], allowed=0)
    assert asked[0][2]["messages"][0]["content"] == "prompt 0|{answer_b}|x"


def test_the_key_comes_from_the_environment_and_must_be_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with judge(api_key_env="JUDGE_KEY") as (settings, asked):
        check_judge(settings, PROMPTS[0])
        assert asked[0][1] == "Bearer secret"
        monkeypatch.delenv("JUDGE_KEY")
        with pytest.raises(UserError, match="JUDGE_KEY is not set"):
            check_judge(settings, PROMPTS[0])


def test_a_judge_that_is_not_there_is_found_out_by_one_question() -> None:
    with judge() as (settings, _):
        pass
    with pytest.raises(UserError, match=r"evaluation\.judge\.url: http://127.* gave no verdict"):
        check_judge(settings, PROMPTS[0])


@pytest.mark.parametrize("answer", [None, {}, {"choices": []}, {"choices": [{"message": None}]}])
def test_a_reply_that_breaks_the_contract_is_named(answer: Any) -> None:
    with pytest.raises(ServiceError, match=r"choices\[0\]\.message\.content"):
        read_verdict(answer)


def of(**settings: Any) -> JudgeConfig:
    return JudgeConfig.model_validate({"url": "http://h/v1", "model": "m"} | settings)


MIXED = [
    Verdict(1.0, 1.0),  # won in both orders
    Verdict(1.0, 0.0),  # what came first won twice: opposite
    Verdict(0.5, 0.0),  # a tie and a loss: not opposite
    Verdict(0.5, 0.5),
    Verdict(0.0, 0.0, "no verdict"),
]


def test_verdicts_are_summed_up_by_hand_over_those_that_there_are() -> None:
    found = summarise_verdicts(of(max_failed=0.2), MIXED, 200, 0)
    assert found["win_rate"]["mean"] == (1.0 + 0.5 + 0.25 + 0.5) / 4
    assert found["win_rate"]["ties"] == 2 / 4
    assert found["first_shown"]["mean"] == (0.5 + 1.0 + 0.75 + 0.5) / 4
    assert found["inconsistent"] == 1 / 4
    assert (found["prompts"], found["failed"], found["model"]) == (4, 1, "m")


def test_as_many_failures_as_are_allowed_are_borne_and_one_more_is_not() -> None:
    summarise_verdicts(of(max_failed=0.2), MIXED, 50, 0)
    with pytest.raises(UserError, match="1 of 5 prompts got no verdict"):
        summarise_verdicts(of(max_failed=0.19), MIXED, 50, 0)
    with pytest.raises(UserError, match="2 x no verdict"):
        summarise_verdicts(of(max_failed=0.99), [MIXED[4]] * 2, 50, 0)


def test_whatever_the_options_say_the_model_and_the_question_are_ours() -> None:
    options = {"model": "another", "temperature": 1}
    with judge(parallel=1, options=options) as (settings, asked):
        ask_judge(settings, PROMPTS[:1], LONG, SHORT, allowed=0)
    assert asked[0][2]["model"] == "tiny" and asked[0][2]["temperature"] == 1


def test_a_base_address_may_end_with_a_slash_and_a_key_must_hold_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with judge(parallel=1) as (settings, asked):
        slashed = settings.model_copy(update={"url": f"{settings.url}/"})
        ask_judge(slashed, PROMPTS[:1], LONG, SHORT, allowed=0)
        assert [path for path, _, _ in asked] == ["/v1/chat/completions"] * 2
        monkeypatch.setenv("JUDGE_KEY", "")
        with pytest.raises(UserError, match="JUDGE_KEY is not set"):
            check_judge(settings.model_copy(update={"api_key_env": "JUDGE_KEY"}), PROMPTS[0])


def test_a_judge_sees_the_whole_conversation() -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "why?"},
    ]
    prompt = Prompt(0, "d:1", turns, {})
    with judge(parallel=1) as (settings, asked):
        ask_judge(settings, [prompt], ["a"], ["b"], allowed=0)
    content = asked[0][2]["messages"][0]["content"]
    assert content == "user: hi\n\nassistant: hello\n\nuser: why?|a|b"


def test_every_failure_counts_however_alike_and_so_many_as_allowed_are_borne() -> None:
    with judge(lambda first, second: "broken", retries=0, parallel=1) as (settings, asked):
        verdicts = ask_judge(settings, PROMPTS[:6], LONG, SHORT, allowed=2)
    assert len(asked) == 3  # the third is one too many
    assert ["not asked" in verdict.reason for verdict in verdicts] == [False] * 3 + [True] * 3
