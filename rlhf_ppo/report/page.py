"""The page: what a run left behind, or several runs beside one another, as one HTML file."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlhf_ppo.errors import UserError
from rlhf_ppo.evaluation.paired_runs import compare_answers
from rlhf_ppo.report.charts import SIZES, spans
from rlhf_ppo.report.compare import answers_of, named_apart
from rlhf_ppo.report.curves import Figure, curve_groups, stage_figures
from rlhf_ppo.report.figures import (
    distributions,
    forest,
    frontier_figures,
    part_rows,
    rate_rows,
    turning_sentences,
)
from rlhf_ppo.report.folder import Estimate, Json, RunFolder, estimate, lookup, number, read_run
from rlhf_ppo.report.numbers import DASH, interval, p_value, percent, shown
from rlhf_ppo.report.samples import as_script, compared_samples, run_samples
from rlhf_ppo.report.settings import different_settings, setting_rows
from rlhf_ppo.report.tables import (
    Row,
    exploited_rows,
    judge_notes,
    machine_rows,
    part_table,
    pass_rows,
    probe_rows,
    side_rows,
    time_rows,
    win_rates,
)
from rlhf_ppo.report.verdict import cautions, judge_run, reward_accuracy

TEMPLATES = Path(__file__).parent / "templates"
MOST_RUNS = 6  # so many colours can be told apart
HEADLINES = (
    ("solved", ("solved", "policy")),
    ("win rate by gold score", ("win_rate", "gold")),
    ("gold score", ("policy", "gold")),
    ("win rate by score", ("win_rate", "score")),
    ("score", ("policy", "score")),
    ("KL, nats per response", ("policy", "kl")),
    ("length, tokens", ("policy", "length")),
    ("ended by themselves", ("policy", "stopped")),
)


def write_report(folder: Path, target: Path | None = None) -> Path:
    """Draw the report of a run, finished or not.

    Args:
        folder: the run's `output_dir`.
        target: the HTML file; None: `<folder>/evaluation/report.html`, or `<folder>/report.html`
            as long as there is no evaluation, whose folder only a finished stage makes.

    Returns:
        Where it was written.

    Raises:
        UserError: no run folder, or a damaged file in it.
    """
    page = report_html(read_run(folder))
    if target is None:
        evaluation = folder / "evaluation"
        target = (evaluation if evaluation.is_dir() else folder) / "report.html"
    return _write(target, page)


def write_comparison(folders: Sequence[Path], target: Path) -> Path:
    """Draw several runs over one another.

    Raises:
        UserError: one of them is no run folder or damaged, or there are more than `MOST_RUNS`.
    """
    if len(folders) > MOST_RUNS:
        raise UserError(
            f"{len(folders)} runs: at most {MOST_RUNS} can be told apart in one chart. Leave some "
            "out."
        )
    places = [folder.resolve() for folder in folders]
    for place, folder in zip(places, folders, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{folder}: given twice. Give each run once.")
    return _write(target, comparison_html([read_run(folder) for folder in folders]))


def report_html(run: RunFolder) -> str:
    """The page of one run."""
    summary = run.summary or {}
    numbers, greedy = _side_tables(summary)
    rates = win_rates(summary)
    groups = curve_groups([run])
    frontier = frontier_figures(run.frontier)
    stopped = lookup(run.policy_stamp, "stopped")
    settings = setting_rows(run.config)
    probes = probe_rows(reward_accuracy(run))
    return _render(
        "report.html",
        title=f"{run.name}: report",
        run=run,
        verdict=judge_run(run),
        cautions=cautions(run),
        stopped=stopped,
        tiles=_tiles(run),
        findings=run.findings,
        exploited=exploited_rows(summary) if "exploited" in summary else None,
        numbers=numbers,
        greedy=greedy,
        rates=rates,
        rate_chart=forest(
            "Win rates over the reference",
            rate_rows(rates),
            (0.0, 1.0),
            0.5,
        ),
        parts_chart=forest("Parts of the gold score", part_rows(summary)),
        judge=judge_notes(summary),
        groups=groups,
        frontier=frontier,
        turning=turning_sentences(run.frontier),
        distributions=distributions(run),
        probes=probes,
        probe_chart=forest(
            "Accuracy of the reward model by kind of error",
            [(name, [("after", share)]) for name, share, _, _ in probes],
            (0.0, 1.0),
            0.5,
            width=SIZES["half"][0],
        ),
        passes=pass_rows(summary),
        stages=stage_figures([run]),
        times=time_rows(run),
        machine=machine_rows(run.machine),
        settings=settings,
        changed=[row for row in settings if row.changed],
        samples=run_samples(run) if run.samples else None,
    )


def comparison_html(runs: Sequence[RunFolder]) -> str:
    """The page of several runs."""
    runs = named_apart(runs)
    columns = [
        (name, place)
        for name, place in HEADLINES
        if any(estimate(lookup(run.summary, *place)) for run in runs)
    ]
    rows = []
    for run in runs:
        found = [estimate(lookup(run.summary, *place)) for _, place in columns]
        rows.append([interval(item) if item else DASH for item in found])
    charts = []
    for (name, place), span in zip(columns, spans(len(columns)), strict=True):
        marks = [
            (run.name, [(f"run-{index}", known)])
            for index, run in enumerate(runs)
            if (known := estimate(lookup(run.summary, *place)))
        ]
        rule = 0.5 if place[0] == "win_rate" else None
        chart = forest(name, marks, line_at=rule, width=SIZES[span][0])
        if chart is not None:
            charts.append(Figure(name, "", "", "mean and 95 % interval", "", chart, span=span))
    data = compared_samples(runs)
    return _render(
        "compare.html",
        title="Comparison of runs",
        runs=runs,
        verdicts=[judge_run(run) for run in runs],
        columns=[name for name, _ in columns],
        rows=rows,
        charts=charts,
        groups=curve_groups(runs),
        stages=stage_figures(runs),
        different=different_settings(runs),
        paired=compare_answers([answers_of(run) for run in runs]),
        samples=data if data["rows"] else None,
    )


def _side_tables(summary: Json) -> list[tuple[list[str], list[Row], list[Row]]]:
    """Heads, rows of numbers and rows of parts: of sampled answers, and of greedy ones."""
    models: Json = lookup(summary, "models") or {}
    tables: list[tuple[list[str], list[Row], list[Row]]] = []
    for kind, holder in (("sampled", summary), ("greedy", lookup(summary, "greedy") or {})):
        heads, sides = ["before", "after"], [holder.get("reference"), holder.get("policy")]
        changes = [None, holder.get("change")]
        for name, model in models.items():
            if lookup(model, kind, "side"):
                heads.append(name)
                sides.append(lookup(model, kind, "side"))
                changes.append(lookup(model, kind, "change"))
        if sides[0] is None or sides[1] is None:
            tables.append(([], [], []))
            continue
        found = [side or {} for side in sides]
        tables.append((heads, side_rows(found, changes), part_table(found, changes)))
    return tables


def _tiles(run: RunFolder) -> list[tuple[str, str, str]]:
    """Name, large number and its interval, of the few that say most."""
    summary = run.summary or {}
    tiles = []
    for how, holder in (("", summary), (", greedy", lookup(summary, "greedy"))):
        solved = lookup(holder, "solved")
        if solved:
            before, after = (lookup(solved, side, "solved") for side in ("reference", "policy"))
            detail = f"of {solved.get('prompts')} held-out prompts"
            tiles.append((f"solved{how}", f"{before} → {after}", detail))
    for by, name in (("gold", "gold score"), ("score", "score")):
        for how, holder in (("", summary), (", greedy", lookup(summary, "greedy"))):
            rate = estimate(lookup(holder, "win_rate", by))
            if rate and not lookup(summary, "solved"):
                ends = f"95 % interval {100 * rate.low:.1f} to {100 * rate.high:.1f}"
                tiles.append((f"wins by {name}{how}", percent(rate.mean), ends))
    for by, name in (("gold", "gold score"), ("score", "score")):
        before = estimate(lookup(summary, "reference", by))
        after = estimate(lookup(summary, "policy", by))
        if before and after and not (by == "score" and lookup(summary, "solved")):
            detail = f"{interval(before)} → {interval(after)}"
            tiles.append((f"mean {name}", f"{shown(before.mean)} → {shown(after.mean)}", detail))
    kl = estimate(lookup(summary, "policy", "kl"))
    if kl:
        ends = interval(kl).partition(" ")[2]
        tiles.append(("KL to the reference", shown(kl.mean), f"nats per response {ends}"))
    accuracy = reward_accuracy(run)
    if accuracy:
        known = Estimate(*(number(accuracy[key]) for key in ("accuracy", "low", "high")))
        ends = (
            f"{100 * known.low:.1f} to {100 * known.high:.1f}, {accuracy['pairs']} held-out pairs"
        )
        tiles.append(("reward model's accuracy", percent(known.mean), ends))
    return tiles


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["interval"] = interval
    environment.filters["p_value"] = p_value
    environment.filters["rate"] = lambda item: interval(Estimate(item.rate, item.low, item.high))
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "samples.js").read_text(encoding="utf-8")
    samples = values.pop("samples")
    return environment.get_template(template).render(
        style=Markup(style),
        script=Markup(script),
        # Nothing may be fetched, and nothing runs but what stands in these two files.
        policy=(
            f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
            "base-uri 'none'; form-action 'none'"
        ),
        samples=samples,
        sample_data=as_script(samples) if samples else None,
        **values,
    )


def _digest(text: str) -> str:
    """As a Content-Security-Policy names an inline element."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _write(target: Path, page: str) -> Path:
    """Complete or not at all."""
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Lone surrogates, which JSON can hold, cannot be written.
        partial.write_text(page, encoding="utf-8", errors="replace", newline="\n")
        partial.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}).") from error
    return target
