"""The result in the terminal: numbers before and after, and a few samples."""

import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rlhf_ppo.console import console, dialogue, say
from rlhf_ppo.data.prompts import EncodedPrompt
from rlhf_ppo.evaluation.sides import Side
from rlhf_ppo.evaluation.statistics import Estimate
from rlhf_ppo.rewards.accuracy import accuracy_text
from rlhf_ppo.streams import visible

Summary = dict[str, Any]
EQUAL = "  at equal length"
SHOWN = ("score", "gold", "length", "stopped", "distinct_1", "distinct_2", "repetition", "kl")


def show_summary(summary: Summary) -> None:
    """Print the sides next to each other, the win rates, and what the score was bought with."""
    policy, reference = summary["policy"], summary["reference"]
    greedy = summary.get("greedy")
    title = f"{summary['prompts']} held-out prompts, mean and 95 % interval"
    table = _table(title, ["reference", "policy", *(["greedy"] if greedy else [])])

    def add(label: str, old: Estimate | None, new: Estimate | None, both: str) -> None:
        table.add_row(label, _interval(old), _interval(new), *([both] if greedy else []))

    for label, key in _rows(policy).items():
        sides = [greedy and _lookup(greedy[name], key) for name in ("reference", "policy")]
        means = [f"{side['mean']:.2f}" for side in sides if side]
        add(label, _lookup(reference, key), _lookup(policy, key), " > ".join(means))
    for by in summary["win_rate"]:
        for kind, label in (("win_rate", f"win rate by {by}"), ("length_controlled", EQUAL)):
            if kind in summary:
                mean = f"{greedy[kind][by]['mean']:.2f}" if greedy else ""
                add(label, None, summary[kind][by], mean)
    _print_whole(table)
    if summary.get("models"):
        _show_models(summary["models"])
    for line in [*solved_lines(summary), *_reward_model_lines(summary)]:
        say(line)
    if "judge" in summary:
        say(_judge_line(summary["judge"]))
    if summary.get("exploited"):
        say(exploited_line(summary))


def show_frontier(frontier: Summary | None) -> None:
    """Print where more optimisation began to cost gold, or that it did not."""
    names = {"best_of_n": "best-of-n of the reference", "ppo": "PPO"}
    for name, found in (frontier or {}).get("turning_point", {}).items():
        say(f"{names[name]}: {found['text']}")


def exploited_line(summary: Summary) -> str:
    """Which errors the higher score came with, in one line."""
    policy, reference = summary["policy"], summary["reference"]
    parts = ", ".join(
        f"{item['part']} {_short(item['reference'])} -> {_short(item['policy'])}"
        for item in summary["exploited"]
    )
    change = policy["gold"]["mean"] - reference["gold"]["mean"]
    gold = "down" if change < 0 else "up"
    return f"score up, gold {gold}: exploited: {parts}"


def _rows(side: Summary) -> dict[str, str]:
    """Labels of the table's rows, and where their numbers stand in a side."""
    rows = {name: name for name in SHOWN if name in side}
    for group, title in (("reward_parts", "reward"), ("gold_parts", "gold")):
        rows |= {f"  {title}: {name}": f"{group}/{name}" for name in side.get(group, {})}
    return rows


def _show_models(models: dict[str, Summary]) -> None:
    """One row for each other model and way to decode."""
    first = next(iter(models.values()))["sampled"]
    numbers = [name for name in ("score", "gold", "length") if name in first["side"]]
    rates = [f"win rate by {by}" for by in first["win_rate"]]
    table = _table("other models against the reference", [*numbers, "kl", *rates])
    for name, model in models.items():
        for how in ("sampled", "greedy"):
            if how in model:
                side, rates = model[how]["side"], model[how]["win_rate"]
                found = [side.get(number) for number in (*numbers, "kl")] + [*rates.values()]
                table.add_row(f"{name}, {how}", *[_interval(estimate) for estimate in found])
    _print_whole(table)


def solved_lines(summary: Summary) -> list[str]:
    """How many prompts are solved, before and after, and with k answers to each."""
    lines = []
    for how, holder in (("sampled", summary), ("greedy", summary.get("greedy") or {})):
        found = holder.get("solved")
        if found is not None:
            before, after = found["reference"], found["policy"]
            lines.append(
                f"solved, {how}: {before['solved']} -> {after['solved']} of {found['prompts']} "
                f"({found['gained']} gained, {found['lost']} lost; exact McNemar p = "
                f"{found['p']:.2g}); share {_interval(before)} -> {_interval(after)}"
            )
    known = summary.get("pass_at_k")
    if known is not None:
        lines.append(f"of {known['samples']} answers to each of {known['prompts']} prompts:")
        lines += [
            f"  pass@{point['k']:<3} {_interval(point['reference'])} -> "
            f"{_interval(point['policy'])}, change {_interval(point['change'])}"
            for point in known["points"]
        ]
    return lines


def _reward_model_lines(summary: Summary) -> list[str]:
    found = summary.get("reward_model")
    return [] if found is None else [f"reward model: right order in {accuracy_text(found)}"]


def _table(title: str, columns: Sequence[str]) -> Table:
    """Room for a name, then these columns; no number is broken over two lines."""
    table = Table(title=title, box=box.SIMPLE, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _print_whole(table: Table) -> None:
    """As wide as it needs to be: a log has no width, and a terminal breaks lines by itself."""
    wide = console.options.update(max_width=1000)
    needed = Measurement.get(console, wide, table).maximum
    console.print(table, width=max(console.width, needed), crop=False)


def _judge_line(judge: Summary) -> str:
    failed = f", {judge['failed']} without a verdict" if judge["failed"] else ""
    return (
        f"judge {judge['model']}, {judge['prompts']} prompts in both orders{failed}: win rate "
        f"{_interval(judge['win_rate'])}; the answer shown first wins "
        f"{_interval(judge['first_shown'])}; opposite verdicts on {judge['inconsistent']:.0%}"
    )


def _lookup(side: Summary, key: str) -> Any:
    group, slash, name = key.partition("/")
    return side.get(group, {}).get(name) if slash else side.get(group)


def _short(share: float) -> str:
    return f"{share:.2f}".replace("0.", ".", 1) if 0 <= share < 1 else f"{share:.2f}"


def show_samples(
    prompts: Sequence[EncodedPrompt], policy: Side, reference: Side, count: int
) -> None:
    """Print some prompts with the answer before and after, spread over the set."""
    count = min(count, len(prompts))
    for index in (number * len(prompts) // count for number in range(count)):
        asked = dialogue(prompts[index].prompt.text).replace("\n", "\n          ")
        say(f"\n  asked   {asked}")
        _show_answer("before", "dim", reference, index)
        _show_answer("after", "bold", policy, index)


def show_plan(lines: Sequence[tuple[str, str]]) -> None:
    """Print the derived sizes of a run."""
    for name, value in lines:
        say(f"  {name:<31} {value}")


def _show_answer(label: str, style: str, side: Side, index: int) -> None:
    score = float(side.scores[index])
    numbers = "no score" if math.isnan(score) else f"score {score:.2f}"
    if side.gold:
        numbers += f", gold {side.gold[index]['score']:.2f}"
    answer = Text(f"  {label:<7} ")
    answer.append(visible(side.texts[index]), style=style)
    answer.append(f"   ({numbers})")
    console.print(answer)


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    digits = 1 if abs(estimate["mean"]) >= 10 else 2
    mean, low, high = (f"{estimate[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
