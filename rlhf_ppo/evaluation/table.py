"""The result in the terminal: numbers before and after, and a few samples."""

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhf_ppo.console import console, say
from rlhf_ppo.data.prompts import EncodedPrompt
from rlhf_ppo.data.template import as_text
from rlhf_ppo.evaluation.heldout import Side


def show_summary(summary: dict[str, Any]) -> None:
    """Print both sides next to each other, and the win rates."""
    table = Table(title=f"{summary['prompts']} held-out prompts, mean and 95 % interval")
    table.add_column("")
    table.add_column("reference", justify="right")
    table.add_column("policy", justify="right")
    policy, reference = summary["policy"], summary["reference"]
    for name in ("score", "gold", "length", "stopped", "distinct_2", "kl"):
        if name in policy:
            table.add_row(name, _interval(reference.get(name)), _interval(policy[name]))
    for title, parts in (("reward", "reward_parts"), ("gold", "gold_parts")):
        for name, estimate in policy.get(parts, {}).items():
            table.add_row(
                f"  {title}: {name}", _interval(reference[parts][name]), _interval(estimate)
            )
    for name, estimate in summary["win_rate"].items():
        table.add_row(f"win rate by {name}", "0.50", _interval(estimate))
    console.print(table)


def show_samples(
    prompts: Sequence[EncodedPrompt], policy: Side, reference: Side, count: int
) -> None:
    """Print some prompts with the answer before and after, spread over the set."""
    count = min(count, len(prompts))
    for index in (number * len(prompts) // count for number in range(count)):
        say(f"\n  asked   {as_text(prompts[index].prompt.text)}")
        _show_answer("before", "dim", reference, index)
        _show_answer("after", "bold", policy, index)


def show_plan(lines: Sequence[tuple[str, str]]) -> None:
    """Print the derived sizes of a run."""
    for name, value in lines:
        say(f"  {name:<24}{value}")


def _show_answer(label: str, style: str, side: Side, index: int) -> None:
    score = float(side.scores[index])
    numbers = "no score" if math.isnan(score) else f"score {score:.2f}"
    if side.gold:
        numbers += f", gold {side.gold[index]['score']:.2f}"
    answer = Text(f"  {label:<7} ")
    answer.append(side.texts[index], style=style)
    answer.append(f"   ({numbers})")
    console.print(answer)


def _interval(estimate: dict[str, float] | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate['mean']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"
