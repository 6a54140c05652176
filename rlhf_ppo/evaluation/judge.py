"""A language model as judge of two answers, asked over HTTP in both orders."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rlhf_ppo.config import JudgeConfig
from rlhf_ppo.console import tick
from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.errors import UserError
from rlhf_ppo.evaluation.statistics import estimate_worth
from rlhf_ppo.rewards.post import ServiceError, post_json, with_retries

SETTING = "evaluation.judge"
SHOWN = 3  # reasons in a message
VERDICT = re.compile(r"\[\[([ABC])\]\]")
# Worth of a verdict to the answer shown first.
WORTH = {"A": 1.0, "B": 0.0, "C": 0.5}
# After the pairwise prompt of Zheng et al. 2023 (MT-bench), shortened.
TEMPLATE = """\
Please act as an impartial judge and compare the answers that two assistants gave to the \
conversation below. Look at whether they are correct, helpful, relevant and as long as they should \
be. Do not let the order in which they are shown or their length influence you. Explain briefly, \
then end with your verdict in exactly this form: [[A]] if answer A is better, [[B]] if answer B is \
better, [[C]] if they are equally good.

[The conversation]
{prompt}

[Answer A]
{answer_a}

[Answer B]
{answer_b}
"""


@dataclass(frozen=True)
class Verdict:
    """What the judge said of one prompt; worths are 1, 1/2 or 0."""

    policy_first: float  # to the policy, when its answer was shown first
    reference_first: float  # to the policy, when the reference's was
    reason: str = ""  # why there is none; then the worths say nothing


def check_judge(judge: JudgeConfig, prompt: Prompt) -> None:
    """Ask once about two equal answers.

    Raises:
        UserError: the key is not there, or the judge gives no verdict.
    """
    try:
        _ask(judge, _key(judge), prompt, "yes", "yes")
    except ServiceError as error:
        raise UserError(
            f"{SETTING}.url: {judge.url} gave no verdict: {error}. Start the service first, or "
            "mend the address, model or template; docs/evaluation.md says what it must answer."
        ) from error


def ask_judge(
    judge: JudgeConfig,
    prompts: Sequence[Prompt],
    policy: Sequence[str],
    reference: Sequence[str],
    allowed: int,
) -> list[Verdict]:
    """One verdict a prompt, `parallel` prompts at a time.

    After more than `allowed` failures nobody is asked any more: the result would not count.

    Args:
        judge: settings.
        prompts: what was asked.
        policy, reference: the answers.
        allowed: failures that are borne.
    """
    key, failures = _key(judge), Counter[str]()

    def both_orders(number: int) -> Verdict:
        if failures.total() > allowed:
            return Verdict(0.0, 0.0, "not asked: too many requests had failed")
        prompt, ours, theirs = prompts[number], policy[number], reference[number]
        try:
            first = with_retries(partial(_ask, judge, key, prompt, ours, theirs), judge.retries)
            second = with_retries(partial(_ask, judge, key, prompt, theirs, ours), judge.retries)
        except ServiceError as error:
            failures[str(error)] += 1
            return Verdict(0.0, 0.0, str(error))
        finally:
            tick()
        return Verdict(first, 1 - second)

    with ThreadPoolExecutor(judge.parallel) as pool:
        return list(pool.map(both_orders, range(len(prompts))))


def summarise_verdicts(
    judge: JudgeConfig, verdicts: Sequence[Verdict], samples: int, seed: int
) -> dict[str, Any]:
    """`judge` of `summary.json`.

    A prompt's worth is the mean of its two orders, so a judge that always prefers the answer shown
    first gives each side half. `first_shown` is the worth of the place itself: 0.5 without bias.

    Args:
        judge: settings.
        verdicts: one a prompt; failed ones are counted and left out.
        samples: resamples.
        seed: of the resampling.

    Raises:
        UserError: more than `max_failed` of the prompts have no verdict.
    """
    good = [verdict for verdict in verdicts if not verdict.reason]
    failed = len(verdicts) - len(good)
    if failed > judge.max_failed * len(verdicts):  # below 1: so there is a verdict
        reasons = Counter(verdict.reason for verdict in verdicts if verdict.reason)
        listed = "\n".join(f"  - {n} x {reason}" for reason, n in reasons.most_common(SHOWN))
        raise UserError(
            f"{SETTING}: {failed} of {len(verdicts)} prompts got no verdict from {judge.url}, more "
            f"than {SETTING}.max_failed = {judge.max_failed:g} allows:\n{listed}\nAll else is "
            "written, without a win rate by the judge. Mend the service and evaluate again."
        )
    ours, theirs = (
        torch.tensor([getattr(verdict, name) for verdict in good], dtype=torch.float64)
        for name in ("policy_first", "reference_first")
    )
    means, first = (ours + theirs) / 2, (ours + 1 - theirs) / 2
    opposite = sum(abs(v.policy_first - v.reference_first) == 1 for v in good)
    return {
        "model": judge.model,
        "prompts": len(good),
        "win_rate": estimate_worth(means, samples, seed)
        | {"ties": float((means == 0.5).double().mean())},
        "first_shown": estimate_worth(first, samples, seed),
        "inconsistent": opposite / len(good),
        "failed": failed,
    }


def read_verdict(answer: Any) -> float:
    """Worth of the answer shown first, from the reply of a chat endpoint.

    Raises:
        ServiceError: no text, or not exactly one of the three verdicts in it.
    """
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ServiceError("the answer has no choices[0].message.content", again=False)
    found = set(VERDICT.findall(text))
    if len(found) != 1:
        what = "several verdicts" if found else "no verdict [[A]], [[B]] or [[C]]"
        raise ServiceError(f"{what} in {text[-80:]!r}", again=False)
    return WORTH[found.pop()]


def _ask(judge: JudgeConfig, key: str | None, prompt: Prompt, first: str, second: str) -> float:
    places = {"prompt": _conversation(prompt), "answer_a": first, "answer_b": second}
    # In one go: an answer that holds "{answer_b}" itself stays as it is.
    question = re.sub(
        r"\{(prompt|answer_a|answer_b)\}", lambda m: places[m[1]], judge.template or TEMPLATE
    )
    body = {"model": judge.model, "messages": [{"role": "user", "content": question}]}
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    url = judge.url.rstrip("/") + "/chat/completions"
    return read_verdict(post_json(url, judge.options | body, judge.timeout, headers))


def _conversation(prompt: Prompt) -> str:
    if isinstance(prompt.text, str):
        return prompt.text
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt.text)


def _key(judge: JudgeConfig) -> str | None:
    if judge.api_key_env is None:
        return None
    key = os.environ.get(judge.api_key_env)
    if not key:
        raise UserError(
            f"{SETTING}.api_key_env: the environment variable {judge.api_key_env} is not set. Set "
            "it to the key, or leave api_key_env out where none is needed."
        )
    return key
