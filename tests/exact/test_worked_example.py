"""The worked example of docs/algorithm.md: each number there is the one that the code computes."""

# ruff: noqa: RUF001  # the letters of the page
from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensors import response_tokens

from rlhf_ppo.algorithm.advantages import gae, td_errors
from rlhf_ppo.algorithm.batch import TokenOutputs, TrainBatch
from rlhf_ppo.algorithm.losses import LossSettings, ppo_loss, response_weights
from rlhf_ppo.algorithm.rewards import shape_rewards

PAGE = Path(__file__).parents[2] / "docs" / "algorithm.md"
TEXT = PAGE.read_text(encoding="utf-8").partition("## 10. One response by hand")[2]
TEXT = TEXT.partition("\n## ")[0]
DIGITS = 4


def table() -> dict[str, list[float]]:
    """Rows of three numbers, by the words before them."""
    found = {}
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        numbers = cells[-3:]
        if len(cells) >= 4 and all(re.fullmatch(r"-?\d*\.?\d+", number) for number in numbers):
            found[cells[0]] = [float(number) for number in numbers]
    return found


def stated(name: str) -> float:
    """A number that stands in the text as `name = number`, in code quotes."""
    (found,) = re.findall(rf"`{re.escape(name)} = (-?[\d.]+)`", TEXT)
    return float(found)


GIVEN = ("log π_old", "log π_ref", "V_old", "log π_new", "V_new")


def computed() -> dict[str, list[float]]:
    """The same rows from the given ones, by the functions of the package."""
    rows: dict[str, Any] = {
        name: torch.tensor([table()[name]], dtype=torch.float64) for name in GIVEN
    }
    old, ref, values, new, new_values = (rows[name] for name in GIVEN)
    mask = torch.ones(1, 3, dtype=torch.bool)
    score = torch.tensor([stated("score")], dtype=torch.float64)
    rewards = shape_rewards(score, old, ref, mask, stated("kl.beta"))
    advantages, returns = gae(rewards, values, mask, stated("gamma"), stated("lam"))
    batch = TrainBatch(response_tokens(mask), old, ref, values, advantages, returns)
    settings = LossSettings(
        clip_range=stated("clip_range"),
        value_clip_range=stated("value.clip_range"),
        value_coefficient=stated("value.coefficient"),
    )
    terms = ppo_loss(TokenOutputs(new, new_values, torch.zeros_like(new)), batch, settings)
    weights = response_weights(mask, "token", 3)
    found = {
        "log π_old − log π_ref": old - ref,
        "r": rewards,
        "δ": td_errors(rewards, values, mask, stated("gamma")),
        "A": advantages,
        "R̂": returns,
        "ρ": terms.ratio,
        "clip(ρ)": terms.ratio.clamp(1 - stated("clip_range"), 1 + stated("clip_range")),
        "L^CLIP, minimised": terms.policy,
        "L^V": terms.value,
        "loss": terms.loss,
    }
    total = float((terms.loss * weights[:, None]).sum())
    return {name: row[0].tolist() for name, row in found.items()} | {"total": [total]}


def test_every_row_of_the_table_is_what_the_code_computes() -> None:
    found, shown = computed(), table()
    total = found.pop("total")[0]
    assert set(shown) == {*GIVEN, *found}
    for name, numbers in found.items():
        assert shown[name] == pytest.approx(numbers, abs=0.6 * 10**-DIGITS), name
    assert stated("total loss") == pytest.approx(total, abs=0.6 * 10**-DIGITS)


def test_the_rows_follow_from_one_another_in_plain_arithmetic() -> None:
    """Without the code: a reader with a pocket calculator comes to the same."""
    t = table()
    beta, lam, clip = stated("kl.beta"), stated("lam"), stated("clip_range")
    r = [-beta * (a - b) for a, b in zip(t["log π_old"], t["log π_ref"], strict=True)]
    r[2] += stated("score")
    v = [*t["V_old"], 0.0]
    delta = [r[k] + v[k + 1] - v[k] for k in range(3)]
    advantages = [sum(lam ** (k - j) * delta[k] for k in range(j, 3)) for j in range(3)]
    ratio = [math.exp(a - b) for a, b in zip(t["log π_new"], t["log π_old"], strict=True)]
    policy = [
        -min(p * a, min(max(p, 1 - clip), 1 + clip) * a)
        for p, a in zip(ratio, advantages, strict=True)
    ]
    near = [
        min(max(n, o - stated("value.clip_range")), o + stated("value.clip_range"))
        for n, o in zip(t["V_new"], t["V_old"], strict=True)
    ]
    target = [a + b for a, b in zip(advantages, t["V_old"], strict=True)]
    value = [
        max((n - g) ** 2, (c - g) ** 2) / 2
        for n, c, g in zip(t["V_new"], near, target, strict=True)
    ]
    for name, numbers in (
        ("r", r), ("δ", delta), ("A", advantages), ("R̂", target), ("ρ", ratio),
        ("L^CLIP, minimised", policy), ("L^V", value),
    ):  # fmt: skip
        assert t[name] == pytest.approx(numbers, abs=1.1 * 10**-DIGITS), name
