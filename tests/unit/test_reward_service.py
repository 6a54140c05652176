"""A reward over HTTP: the contract, what is tried again, and what is never a silent 0."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from helpers import plain_prompts
from local_server import serving

from rlhf_ppo.config import HttpSource
from rlhf_ppo.errors import UserError
from rlhf_ppo.rewards.function import RewardFunction
from rlhf_ppo.rewards.judgement import Missing, Score
from rlhf_ppo.rewards.post import post_json
from rlhf_ppo.rewards.service import RewardService

Json = dict[str, Any]
Answer = Callable[[int, Json], tuple[int, bytes]]  # number of the request from 0, and what it asks
PROMPTS = plain_prompts(*({"answer": row} for row in range(5)))
RESPONSES = ["a", "bb", "ccc", "dddd", "eeeee"]


def lengths(number: int, question: Json) -> tuple[int, bytes]:
    """The score of a text is its length."""
    return 200, json.dumps({"scores": [len(text) for text in question["responses"]]}).encode()


@contextmanager
def service(
    answer: Answer = lengths, **settings: Any
) -> Iterator[tuple[RewardService, list[Json]]]:
    """A client of a server in a thread, and what it has been asked."""
    asked: list[Json] = []

    def respond(path: str, headers: Message, question: Json) -> tuple[int, bytes]:
        asked.append(question)
        return answer(len(asked) - 1, question)

    with serving(respond) as url:
        source = HttpSource.model_validate({"kind": "http", "url": f"{url}/"} | settings)
        yield RewardService(source, "here"), asked


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between tries, without waiting."""
    found: list[float] = []
    real = time.sleep
    monkeypatch.setattr("rlhf_ppo.rewards.post.time.sleep", lambda s: found.append(s) or real(0))
    return found


def reasons(scores: list[Score]) -> list[str]:
    return [score.reason for score in scores if isinstance(score, Missing)]


def test_batches_are_asked_in_order_with_their_own_columns() -> None:
    with service(batch_size=2) as (reward, asked):
        assert reward.score(PROMPTS, RESPONSES) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [question["responses"] for question in asked] == [
        ["a", "bb"],
        ["ccc", "dddd"],
        ["eeeee"],
    ]
    assert [question["columns"] for question in asked] == [
        {"answer": [0, 1]}, {"answer": [2, 3]}, {"answer": [4]},
    ]  # fmt: skip
    assert asked[0]["prompts"] == ["prompt 0", "prompt 1"]


def test_messages_and_dates_of_the_data_are_sent_as_json() -> None:
    (prompt,) = plain_prompts({"day": date(2026, 11, 21)})
    messages = [{"role": "user", "content": "hé"}]
    with service() as (reward, asked):
        reward.score([type(prompt)(0, "test:0", messages, prompt.columns)], ["é"])
    assert asked[0] == {
        "prompts": [messages],
        "responses": ["é"],
        "columns": {"day": ["2026-11-21"]},
    }


def test_a_request_that_fails_is_tried_again_after_longer_and_longer_waits(
    waits: list[float],
) -> None:
    def thrice(number: int, question: Json) -> tuple[int, bytes]:
        return (503, b"busy") if number < 3 else lengths(number, question)

    with service(thrice, retries=3) as (reward, asked):
        assert reward.score(PROMPTS, RESPONSES) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert len(asked) == 4 and waits == [1.0, 2.0, 4.0]


def test_responses_of_a_request_that_fails_for_good_are_missing_and_the_others_are_not() -> None:
    def second(number: int, question: Json) -> tuple[int, bytes]:
        return (500, b"out of memory") if "ccc" in question["responses"] else lengths(0, question)

    with service(second, retries=1, batch_size=2) as (reward, asked):
        scores = reward.score(PROMPTS, RESPONSES)
    assert scores[:2] == [1.0, 2.0] and scores[4] == 5.0
    assert len(asked) == 4
    assert len(reasons(scores)) == 2
    assert all("HTTP 500" in why and "out of memory" in why for why in reasons(scores))


def test_a_timeout_is_told_with_its_seconds() -> None:
    def slow(number: int, question: Json) -> tuple[int, bytes]:
        threading.Event().wait(0.5)
        return lengths(number, question)

    with service(slow, timeout=0.05, retries=0) as (reward, _):
        assert "no answer within timeout = 0.05 s" in reasons(reward.score(PROMPTS[:1], ["a"]))[0]


@pytest.mark.parametrize(
    ("body", "said", "tries"),
    [
        (b'{"scores": [1]}', "1 scores for 5 responses", 1),
        (b'{"score": [1, 2, 3, 4, 5]}', 'no list "scores"', 1),
        (b"[1, 2, 3, 4, 5]", 'no list "scores"', 1),
        (b"<html>", "not JSON", 2),
    ],
)
def test_an_answer_that_breaks_the_contract_gives_no_scores(
    body: bytes, said: str, tries: int
) -> None:
    with service(lambda number, question: (200, body), retries=1) as (reward, asked):
        found = reasons(reward.score(PROMPTS, RESPONSES))
    assert len(found) == 5 and all(said in why for why in found)
    assert len(asked) == tries


def test_a_question_that_is_refused_is_not_asked_again() -> None:
    with service(lambda number, question: (422, b"no"), retries=3) as (reward, asked):
        assert "HTTP 422" in reasons(reward.score(PROMPTS[:1], ["a"]))[0]
    assert len(asked) == 1


def test_null_and_nan_are_missing_with_the_reason_of_the_service() -> None:
    answer = b'{"scores": [1, null, NaN, null, 2], "reasons": [null, "too rude", null, null, null]}'
    with service(lambda number, question: (200, answer)) as (reward, _):
        scores = reward.score(PROMPTS, RESPONSES)
    assert (scores[0], scores[4]) == (1.0, 2.0)
    assert reasons(scores) == ["too rude", "the score is nan", "no score (None)"]


def test_a_service_that_is_not_there_is_found_out_by_one_question(waits: list[float]) -> None:
    with service() as (reward, _):
        reward.check(PROMPTS)
    with pytest.raises(UserError, match=r"here\.url: http://127.* gave no scores: .*refused"):
        reward.check(PROMPTS)
    assert waits == []


def test_the_example_server_answers_what_the_function_itself_says(tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text(
        "def score(prompts, responses, answer):\n"
        "    return [a / len(r) for a, r in zip(answer, responses)]\n"
    )
    script = Path(__file__).parents[2] / "scripts" / "reward_server.py"
    spec = importlib.util.spec_from_file_location("reward_server", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = RewardFunction(
        module.FunctionSource(kind="function", path=f"{file}:score"), "function"
    )

    def answer(number: int, question: Json) -> tuple[int, bytes]:
        return 200, json.dumps(module.answer(function, question)).encode()

    texts = ["a", "", "ccc", "dddd", "eeeee"]
    with service(answer, batch_size=3) as (reward, _):
        assert reward.score(PROMPTS, texts) == function.score(PROMPTS, texts)
        assert "ZeroDivisionError" in reasons(reward.score(PROMPTS, texts))[0]


def test_only_columns_that_all_prompts_of_a_batch_have_are_sent() -> None:
    prompts = plain_prompts({"a": 1, "b": 2}, {"a": 3}, {"b": 4, "c": 5})
    with service(batch_size=2) as (found, asked):
        found.score(prompts, ["x", "y", "z"])
    assert [question["columns"] for question in asked] == [{"a": [1, 3]}, {"b": [4], "c": [5]}]
    assert [question["prompts"] for question in asked] == [["prompt 0", "prompt 1"], ["prompt 2"]]


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_scores_is_none_and_is_not_asked_for_again(count: int) -> None:
    """Nobody knows whose they are."""
    body = json.dumps({"scores": [1.0] * count}).encode()
    with service(lambda number, question: (200, body), retries=3) as (found, asked):
        scores = found.score(PROMPTS[:2], ["a", "b"])
    assert [reason_of(score) for score in scores] == [
        f"{found.source.url}: it answered {count} scores for 2 responses"
    ] * 2
    assert len(asked) == 1


def reason_of(score: Score) -> str:
    assert isinstance(score, Missing)
    return score.reason


@pytest.mark.parametrize("reasons", [["why"], ["a", "b", "c"], "why", None, {"0": "why"}])
def test_reasons_that_do_not_fit_are_passed_over(reasons: Any) -> None:
    body = json.dumps({"scores": [None, 2.0], "reasons": reasons}).encode()
    with service(lambda number, question: (200, body)) as (found, _):
        first, second = found.score(PROMPTS[:2], ["a", "b"])
    assert reason_of(first) == "no score (None)" and second == 2.0


def test_a_score_that_has_a_reason_is_a_score_all_the_same() -> None:
    body = json.dumps({"scores": [1.5, None], "reasons": ["short but right", "empty"]}).encode()
    with service(lambda number, question: (200, body)) as (found, _):
        first, second = found.score(PROMPTS[:2], ["a", ""])
    assert first == 1.5 and reason_of(second) == "empty"


@pytest.mark.parametrize(
    ("status", "tries"), [(400, 1), (404, 1), (408, 3), (429, 3), (500, 3), (503, 3)]
)
def test_what_may_pass_is_tried_again_and_what_will_not_is_not(
    status: int, tries: int, waits: list[float]
) -> None:
    with service(lambda number, question: (status, b"busy"), retries=2) as (found, asked):
        (score,) = found.score(PROMPTS[:1], ["a"])
    assert f"HTTP {status}" in reason_of(score) and "busy" in reason_of(score)
    assert len(asked) == tries and waits == [1.0, 2.0][: tries - 1]


def test_waits_double_up_to_half_a_minute(waits: list[float]) -> None:
    with service(lambda number, question: (500, b""), retries=7) as (found, _):
        found.score(PROMPTS[:1], ["a"])
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_nobody_there_is_tried_again(waits: list[float]) -> None:
    source = HttpSource.model_validate(
        {"kind": "http", "url": "http://127.0.0.1:1/", "retries": 2, "timeout": 5}
    )
    (score,) = RewardService(source, "here").score(PROMPTS[:1], ["a"])
    assert isinstance(score, Missing) and waits == [1.0, 2.0]


def test_headers_stand_beside_the_content_type() -> None:
    seen: list[Message] = []

    def respond(path: str, headers: Message, question: Json) -> tuple[int, bytes]:
        seen.append(headers)
        return 200, b'{"a": 1}'

    with serving(respond) as url:
        assert post_json(url, {}, 5.0, {"Authorization": "Bearer k"}) == {"a": 1}
    assert seen[0]["Authorization"] == "Bearer k"
    assert seen[0]["Content-Type"] == "application/json"


def test_an_answer_that_comes_too_late_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    def late(*_: Any, timeout: float) -> Any:
        raise TimeoutError

    monkeypatch.setattr("rlhf_ppo.rewards.post.urlopen", late)
    source = HttpSource.model_validate(
        {"kind": "http", "url": "http://127.0.0.1:1/", "retries": 1, "timeout": 7}
    )
    (score,) = RewardService(source, "here").score(PROMPTS[:1], ["a"])
    assert "no answer within timeout = 7 s" in reason_of(score) and waits == [1.0]
