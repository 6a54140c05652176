"""The report's page: what it says, what it survives, what it refuses."""

from __future__ import annotations

import html
import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cli import run_here
from hypothesis import given
from hypothesis import strategies as st
from report_runs import NASTY, write_json, write_lines, write_run

from rlhf_ppo.errors import UserError
from rlhf_ppo.report.charts import spans
from rlhf_ppo.report.curves import heldout_rows, part_multiples
from rlhf_ppo.report.folder import read_run
from rlhf_ppo.report.guide import describe, metric_guide
from rlhf_ppo.report.numbers import shown, signed
from rlhf_ppo.report.page import comparison_html, report_html, write_report
from rlhf_ppo.report.samples import MOST_BYTES, as_script
from rlhf_ppo.report.scales import bins, running_mean, thin, tick_labels, ticks
from rlhf_ppo.report.settings import different_settings, setting_rows
from rlhf_ppo.report.tables import side_rows, time_rows
from rlhf_ppo.report.verdict import cautions, judge_run

ROOT = Path(__file__).parents[2]
finite = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report") / "run", texts=NASTY)


# docs/metrics.md is the one source of names


def test_every_metric_that_training_writes_has_a_name_and_a_unit() -> None:
    found = set()
    for part in ("training", "evaluation"):
        for file in (ROOT / "rlhf_ppo" / part).glob("*.py"):
            text = file.read_text(encoding="utf-8")
            groups = r"(score|gold|kl|policy|value|response|reward|heldout|ptx|update|time|memory)"
            found |= set(re.findall(rf'"({groups}/[\w/{{}}]+)"', text))
    keys = {re.sub(r"\{.*?\}", "NAME", key) for key, _ in found} | {"grad_norm", "learning_rate"}
    assert len(keys) > 30
    for key in keys:
        entry = describe(key)
        assert entry is not None and entry.name and entry.unit, f"{key}: not in docs/metrics.md"


def test_no_two_metrics_share_a_name() -> None:
    names = [entry.name for entry in metric_guide()]
    assert len(names) > 35
    assert len(set(names)) == len(names)


def test_the_name_of_a_reward_source_stands_in_its_title() -> None:
    entry = describe("reward/helpful/mean")
    assert entry is not None and entry.name == "score by helpful"
    assert describe("reward/judges/strict/mean") is not None  # a member of an ensemble
    assert describe("no/such/metric") is None


# The headline


@pytest.mark.parametrize(
    ("gold", "gold_rate", "score_rate", "kind"),
    [
        (True, 0.8, 0.9, "better"),
        (True, 0.2, 0.3, "worse"),
        (True, 0.52, 0.48, "unclear"),
        (True, 0.52, 0.9, "doubtful"),
        (True, 0.2, 0.9, "exploited"),
        (True, 0.8, 0.5, "better"),
        (False, 0.8, 0.9, "better"),
        (False, 0.8, 0.1, "worse"),
    ],
)
def test_the_headline_follows_the_interval_of_the_win_rate(
    tmp_path: Path, gold: bool, gold_rate: float, score_rate: float, kind: str
) -> None:
    folder = write_run(
        tmp_path / "run", steps=2, prompts=8, gold=gold, gold_rate=gold_rate, score_rate=score_rate
    )
    verdict = judge_run(read_run(folder))
    assert verdict.kind == kind
    if kind in ("exploited", "doubtful"):
        assert verdict.lead.startswith("The score rose, but the gold score")
    assert ("Training maximised" in verdict.sentence) == (not gold)


def test_a_mean_that_disagrees_with_the_win_rate_is_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=2, prompts=8)
    file = folder / "evaluation" / "summary.json"
    summary = json.loads(file.read_text(encoding="utf-8"))
    assert "disagree" not in judge_run(read_run(folder)).sentence
    summary["policy"]["gold"] = {"mean": -3.0, "low": -4.0, "high": -2.0}
    write_json(file, summary)
    assert "disagree" in judge_run(read_run(folder)).sentence


def test_a_good_headline_does_not_hide_what_went_wrong(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=2, prompts=8)
    page = report_html(read_run(folder))
    assert "1 problem in training; got worse while the score rose: rude." in page
    write_json(folder / "evaluation" / "diagnostics.json", [])
    summary = folder / "evaluation" / "summary.json"
    found = json.loads(summary.read_text(encoding="utf-8"))
    write_json(summary, found | {"exploited": []})
    page = report_html(read_run(folder))
    assert "But mind" not in page and "no check of the training numbers failed" in page


def test_a_run_that_is_not_finished_says_how_far_it_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=7, finished=False)
    verdict = judge_run(read_run(folder))
    assert verdict.kind == "unfinished" and "step 7 of " in verdict.lead
    (folder / "metrics.jsonl").unlink()
    assert "no step yet" in judge_run(read_run(folder)).sentence
    assert "No PPO step yet" in report_html(read_run(folder))


# Whatever is missing, there is a page


OPTIONAL = [
    "config.yaml", "metrics.jsonl", "heldout.jsonl", "machine.json", "reward_model/probes.json",
    "sft/metrics.jsonl", "evaluation/summary.json", "evaluation/samples.jsonl",
    "evaluation/frontier.json", "evaluation/diagnostics.json",
]  # fmt: skip


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_run_without_this_file_has_a_report(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run", steps=5, prompts=8)
    (folder / name).unlink()
    assert "<h1" in report_html(read_run(folder))


@pytest.mark.parametrize("missing", [{"gold": False}, {"values": False}, {"finished": False}])
def test_a_run_without_gold_values_or_end_has_a_report(
    tmp_path: Path, missing: dict[str, bool]
) -> None:
    page = report_html(read_run(write_run(tmp_path / "run", **missing)))  # type: ignore[arg-type]
    assert ("Gold score" in page) == missing.get("gold", missing.get("finished", True))
    assert ("explained variance" in page) == missing.get("values", True)


def test_missing_and_infinite_numbers_leave_gaps_and_no_nan_in_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=4, prompts=8)
    rows = [
        {"step": 1, "score/mean": math.nan, "kl/ref": None},
        {"step": 2, "score/mean": math.inf, "value/loss": "x"},
        {"step": 3, "score/mean": 1.0},
        {"step": 4},
    ]
    write_lines(folder / "metrics.jsonl", rows)
    page = report_html(read_run(folder))
    assert not re.search(r'[dxy]\d?="[^"]*(nan|inf)', page)
    assert '<path class="line' in page


def test_the_page_holds_all_that_a_run_left(run: Path) -> None:
    page = report_html(read_run(run))
    for words in (
        "Better than before", "KL ran away.", "Raise kl.beta.", "Was the score cheated?",
        "PPO: gold is highest at 2.50 nats.", "bigger",
        "Best of n: too few points; no curve is fitted.", "a judge judged 50 prompts",
        "length controlled", "repeated 4-grams", "1 h 6 min", "a device", "ppo.learning_rate",
        "held-out prompts, 95 % interval", "Parts of the gold score on held-out",
        "Reward model, by kind of error",
    ):  # fmt: skip
        assert words in page, words


def test_5000_samples_and_2000_steps_stay_under_3_mb(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run", steps=2000, prompts=5000, texts=["\u00fc<&" * 60, "z" * 400]
    )
    page = report_html(read_run(folder))
    assert len(page.encode("utf-8")) < 3_000_000
    (script,) = re.findall(r'id="sample-data">(.*?)</script>', page)
    data = json.loads(script)
    places = [row[0] for row in data["rows"]]
    assert data["total"] == 5000
    assert f"{len(places)} of 5000 prompts, evenly spread" in page
    assert 0.8 * MOST_BYTES < len(script) <= 1.05 * MOST_BYTES
    gaps = {later - earlier for earlier, later in itertools.pairwise(places)}
    assert max(gaps) - min(gaps) <= 1 and places[0] == 1 and 5000 - places[-1] < max(gaps)


# Nothing in a run can run in the page


def test_embedded_json_cannot_leave_its_element_and_reads_back() -> None:
    data: dict[str, Any] = {"rows": [*NASTY, "\ud800 alone", 'quote " \\ back']}
    script = as_script(data)
    assert not re.search("[<>&\u2028\u2029]", script)
    assert json.loads(script) == data


def test_the_page_fetches_nothing_and_has_no_inline_style_or_handler(run: Path) -> None:
    page = report_html(read_run(run))
    outside = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page, flags=re.S)
    tags = " ".join(re.findall(r"<[a-zA-Z][^>]*>", outside))
    assert not re.search(r"\s(style|on\w+|src|srcset|action)=", tags)
    assert set(re.findall(r'href="(.)', tags)) == {"#"}
    (policy,) = re.findall(r'content="(default-src[^"]*)"', page)
    assert html.unescape(policy).startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_names_from_a_run_are_escaped_wherever_they_stand(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "<i>run", steps=3, prompts=8)
    write_lines(folder / "metrics.jsonl", [{"step": n, "reward/<u>/mean": n} for n in (1, 2)])
    summary = json.loads((folder / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    summary["policy"]["gold_parts"]["<s>"] = {"mean": 1, "low": 0, "high": 2}
    summary["reference"]["gold_parts"]["<s>"] = {"mean": 1, "low": 0, "high": 2}
    summary["models"] = {"<q>": {"sampled": {"side": summary["policy"]}}}
    write_json(folder / "evaluation" / "summary.json", summary)
    page = report_html(read_run(folder))
    for tag in ("<i>run", "<u>", "<s>", "<q>"):
        assert tag not in page, tag
        assert tag.replace("<", "&lt;").replace(">", "&gt;") in page, tag


# Bad input


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run folder: it holds none of config\.yaml"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", '{"step": 1}\n{"step": \n{"step": 3}\n', r"metrics\.jsonl:2: not valid"),
        ("metrics.jsonl", '{"step": 1}\n[]\n', r"metrics\.jsonl:2: must be an object"),
        ("metrics.jsonl", '{"score/mean": 1}\n', r"metrics\.jsonl:1: has no number under `step`"),
        ("evaluation/summary.json", "{", r"summary\.json: not valid JSON"),
        ("evaluation/summary.json", "[]", r"summary\.json: must hold an object"),
        ("evaluation/diagnostics.json", "{}", r"diagnostics\.json: must hold a list"),
        ("evaluation/samples.jsonl", '{"prompt": "x"}\n', r"samples\.jsonl:1: 'policy' must be"),
        ("evaluation/samples.jsonl", '{"prompt": 3}\n', r"samples\.jsonl:1: `prompt` must be"),
        ("config.yaml", "a: [", r"config\.yaml: not valid YAML"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    folder = write_run(tmp_path / "run", steps=3, prompts=8)
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_run(folder)


def test_the_half_line_of_a_killed_run_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=3, finished=False)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 4, "score/me')
    assert [row["step"] for row in read_run(folder).metrics] == [1, 2, 3]


def test_the_script_draws_refuses_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", steps=3, prompts=8)
    write_run(tmp_path / "b", steps=3, prompts=8, gold=False, values=False, seed=2)
    write_run(tmp_path / "half", steps=3, finished=False)
    assert run_here("report", ["a"], tmp_path, monkeypatch) == 0
    assert (tmp_path / "a" / "evaluation" / "report.html").is_file()
    assert run_here("report", ["half"], tmp_path, monkeypatch) == 0
    # An evaluation folder of ours would keep the evaluation from being written there.
    assert (tmp_path / "half" / "report.html").is_file()
    assert not (tmp_path / "half" / "evaluation").exists()
    assert run_here("report", ["a", "b", "--out", "c.html"], tmp_path, monkeypatch) == 0
    assert (tmp_path / "c.html").is_file()
    capsys.readouterr()
    assert run_here("report", ["a", "b"], tmp_path, monkeypatch) == 2
    assert "--out compare.html" in capsys.readouterr().err
    assert run_here("report", ["a", "a", "--out", "d.html"], tmp_path, monkeypatch) == 2
    assert "given twice" in capsys.readouterr().err
    assert run_here("report", ["nothing"], tmp_path, monkeypatch) == 2
    assert "nothing: not a run folder" in capsys.readouterr().err
    assert run_here("report", ["a"] * 7 + ["--out", "d.html"], tmp_path, monkeypatch) == 2
    assert not (tmp_path / "d.html").exists()


# Several runs


def test_a_comparison_shows_what_differs_and_common_prompts(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / "x" / "out", steps=4, prompts=8)),
        read_run(write_run(tmp_path / "y" / "out", steps=6, prompts=6, gold=False, seed=2)),
        read_run(write_run(tmp_path / "third", steps=5, finished=False, values=False)),
    ]
    page = comparison_html(runs)
    assert "x/out" in page and "y/out" in page  # the same last name: told apart by the path
    assert {name for name, _ in different_settings(runs)} == {"seed"}
    for words in ("win rate by gold score", "Not finished: step 5", "explained variance"):
        assert words in page, words
    page = comparison_html(runs[:2])
    assert "All 6 prompts." in page


def test_settings_are_marked_where_they_differ_from_the_defaults(tmp_path: Path) -> None:
    config = read_run(write_run(tmp_path / "run", steps=2, finished=False)).config
    assert config is not None
    changed = {row.name for row in setting_rows(config) if row.changed}
    config["ppo"]["learning_rate"] = 0.5
    config["old"] = {"key": 1}
    after = {row.name: row for row in setting_rows(config) if row.changed}
    assert set(after) == changed | {"ppo.learning_rate", "old"}
    assert after["ppo.learning_rate"].value == "0.5"
    assert after["ppo.learning_rate"].default != "0.5"


def test_a_change_is_marked_only_where_its_paired_interval_excludes_0() -> None:
    """Intervals of two sides may overlap though every prompt moved the same way."""
    low, high = {"mean": 0.0, "low": -1.0, "high": 1.0}, {"mean": 0.2, "low": -0.8, "high": 1.2}
    found = {"score": {"mean": 0.2, "low": 0.1, "high": 0.3}}
    noise = {"score": {"mean": 0.2, "low": 0.0, "high": 0.3}}
    sides = [{"score": low}, {"score": high}, {"score": high}, {"score": high}]
    (row,) = side_rows(sides, [None, found, noise, None])
    assert [cell.apart for cell in row.cells] == [False, True, False, False]


# Charts


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([173750.0, 174000.0, 174250.0], ["1.7375e+05", "1.74e+05", "1.7425e+05"]),
        ([0.0, 1e5, 2e5], ["0", "1e+05", "2e+05"]),
        ([0.0, 0.25, 0.5], ["0", "0.25", "0.50"]),
        ([1.0000001, 1.0000002], ["1.0000001", "1.0000002"]),
    ],
)
def test_ticks_of_a_short_stretch_far_from_0_keep_names_of_their_own(
    values: list[float], names: list[str]
) -> None:
    """Six ticks around 174,000 had two names between them."""
    assert tick_labels(values) == names


@given(finite, finite, st.integers(2, 9))
def test_ticks_are_evenly_spread_round_and_inside(low: float, high: float, count: int) -> None:
    low, high = sorted((low, high))
    found = ticks(low, high, count)
    assert 1 <= len(found) <= count + 1
    room = 1e-6 * max(abs(low), abs(high), 1e-9)
    if len(found) > 1:
        assert low - room <= found[0] and found[-1] <= high + room
        step = found[1] - found[0]
        assert found == pytest.approx([found[0] + n * step for n in range(len(found))])
        assert len(set(tick_labels(found))) == len(found)


@given(st.integers(1, 800), st.randoms(use_true_random=False))
def test_thinning_keeps_the_extremes_and_the_order(count: int, noise: Random) -> None:
    values = [noise.gauss(0, 1) for _ in range(count)]
    points = list(enumerate(values))
    kept = thin(points, 100)
    assert len(kept) <= 102
    assert set(kept) <= set(points) and kept == sorted(kept)
    assert max(y for _, y in kept) == max(values) and min(y for _, y in kept) == min(values)


def test_a_running_mean_leaves_a_straight_line_as_it_is() -> None:
    line = [(x, 3.0 * x - 2) for x in range(50)]
    smooth = running_mean([*line[:20], (20, math.nan), *line[21:]], 1)
    assert smooth == [*line[:20], *line[21:]]
    for (_, mean), (_, exact) in zip(running_mean(line, 7), line, strict=True):
        assert mean == pytest.approx(exact)
    noisy = [(x, (-1.0) ** x) for x in range(100)]
    assert max(abs(y) for _, y in running_mean(noisy, 10)[5:-5]) < 0.1


@given(st.lists(finite, min_size=1, max_size=60))
def test_bins_cover_all_values_with_one_width(values: list[float]) -> None:
    edges = bins(values)
    room = 1e-6 * max(max(values) - min(values), 1e-9)
    assert edges[0] <= min(values) + room and max(values) <= edges[-1] + room
    widths = [right - left for left, right in itertools.pairwise(edges)]
    assert widths == pytest.approx([widths[0]] * len(widths))
    assert len(widths) <= 28


def test_a_report_is_the_same_twice_and_replaces_the_last(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=3, prompts=8)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert not list(folder.rglob("*.partial"))


# At the end of a run


def test_a_page_that_cannot_be_drawn_costs_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlhf_ppo.pipeline import _draw_report  # here: it imports all that a run needs

    folder = write_run(tmp_path / "run", steps=2, prompts=6)
    (folder / "metrics.jsonl").write_text("broken\n", encoding="utf-8")
    _draw_report(folder)
    output = capsys.readouterr().out
    assert "could not be drawn (UserError" in output and "scripts/report.py" in output
    write_json(folder / "evaluation" / "summary.json", {"exploited": 5})  # no form that we know
    _draw_report(folder)
    assert "could not be drawn" in capsys.readouterr().out
    assert not (folder / "evaluation" / "report.html").exists()


# What a designer asked for


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3.0, "3.00"), (3.58, "3.58"), (-6.36e-4, "\u22120.0006"), (0.027, "0.027"), (0.0, "0.00"),
        (12.94, "12.94"), (174.3, "174.3"), (5120.0, "5120"), (2e-5, "0.00002"),
        (6.36e-7, "6.4·10⁻⁷"), (-2.5e6, "\u22122.5·10⁶"), (math.nan, "\u2013"),
    ],
)  # fmt: skip
def test_numbers_have_one_format(value: float, words: str) -> None:
    """+3 stood beside +3.58, and -6.36e-04 in a sentence."""
    assert shown(value) == words
    assert signed(value).lstrip("+") == words


def test_held_out_curves_begin_at_the_reference_and_end_with_the_finished_policy(
    tmp_path: Path,
) -> None:
    """The last held-out point of 100 steps was that of step 75, the parts began at step 25."""
    folder = write_run(tmp_path / "run", steps=30, prompts=8)
    run = read_run(folder)
    rows = heldout_rows(run)
    assert [row["step"] for row in rows] == [0, 10, 20, 30]
    first = [row["policy"]["score"] for row in run.samples[:3]]
    assert rows[-1]["score"] == first and rows[-1]["length"] == [
        row["policy"]["length"] for row in run.samples[:3]
    ]
    parts = part_multiples([replace(run, heldout=rows)])
    assert parts is not None and [name for name, _ in parts.charts] == ["rude"]
    chart = str(parts.charts[0][1])
    assert chart.count("<circle") == 4  # the reference and three evaluations
    assert "at step 0<" in chart and "at step 30<" in chart and "3 prompts" in parts.meaning
    # Of another policy than the run's own nothing is known at the last step.
    other = replace(run, frontier=(run.frontier or {}) | {"ppo": []})
    assert heldout_rows(other) == run.heldout


def test_parts_share_one_scale(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=4, prompts=8)
    low, high = {"heldout/gold/a": 0.0, "heldout/gold/b": 0.5}, {"heldout/gold/a": 1 / 64}
    rows = [{"step": 1, **low}, {"step": 4, **low, **high}]
    write_lines(folder / "metrics.jsonl", rows)
    parts = part_multiples([read_run(folder)])
    assert parts is not None
    ticks_of = [re.findall(r'text-anchor="end">([^<]*)<', str(chart)) for _, chart in parts.charts]
    assert len(ticks_of) == 2 and ticks_of[0] == ticks_of[1]


def test_phases_lie_inside_ppo_and_stages_fill_the_whole(tmp_path: Path) -> None:
    """Bars of stages and of PPO's phases stood in one list and added up to more than all."""
    folder = write_run(tmp_path / "run", steps=10, prompts=8)
    rows = time_rows(read_run(folder))
    stages = [row for row in rows if not row.inside]
    assert [row.name for row in stages] == ["supervised model", "PPO"]
    assert sum(row.share for row in stages) == pytest.approx(1)
    inside = [row for row in rows if row.inside]
    assert rows.index(inside[0]) == rows.index(stages[1]) + 1
    assert sum(row.share for row in inside) == pytest.approx(stages[1].share)
    (folder / "machine.json").unlink()  # the run is still at it
    rows = time_rows(read_run(folder))
    assert rows[0].name == "PPO" and sum(row.share for row in rows[1:]) == pytest.approx(1)


@pytest.mark.parametrize("count", range(1, 12))
def test_every_row_of_charts_is_full(count: int) -> None:
    widths = {"third": 2, "half": 3, "whole": 6}
    found = [widths[span] for span in spans(count)]
    assert len(found) == count
    left = 0
    for width in found:
        left = (left + width) % 6
        assert left in (0, 2, 4, 3)
    assert left == 0


def test_the_frontier_names_its_points_and_the_head_has_the_greedy_rate(run: Path) -> None:
    page = report_html(read_run(run))
    for words in ("n=16", ">10<", "best of n from 16 samples to each of 30 held-out prompts"):
        assert words in page, words
    head = page[: page.index("<main")]
    assert "wins by gold score, greedy" in head and "reward model&#39;s accuracy" in head


def test_greedy_answers_that_got_worse_are_told_in_the_head(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=2, prompts=8)
    file = folder / "evaluation" / "summary.json"
    summary = json.loads(file.read_text(encoding="utf-8"))
    summary["greedy"]["win_rate"]["gold"] = {"mean": 0.3, "low": 0.2, "high": 0.4}
    write_json(file, summary)
    assert any("greedy answers are worse" in words for words in cautions(read_run(folder)))


# Scores that say right or wrong


def solved_run(folder: Path, gained: int, lost: int, p: float) -> Path:
    write_run(folder, steps=2, prompts=8, gold=False)
    file = folder / "evaluation" / "summary.json"
    summary = json.loads(file.read_text(encoding="utf-8"))
    half = 0.0 if p < 0.05 else 1.0
    change = (gained - lost) / 64
    ends = {"low": change - 0.01 - half, "high": change + 0.01 + half}
    summary["solved"] = {
        "source": "right", "prompts": 64, "gained": gained, "lost": lost, "p": p,
        "reference": {"solved": 20, "mean": 20 / 64}, "policy": {"solved": 20 + gained - lost},
        "change": {"mean": change} | ends,
    }  # fmt: skip
    point = {"k": 16, "reference": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    point |= {"policy": point["reference"], "change": {"mean": 0.0, "low": -0.1, "high": 0.1}}
    summary["pass_at_k"] = {"prompts": 64, "samples": 16, "points": [point]}
    write_json(file, summary)
    return folder


@pytest.mark.parametrize(
    ("gained", "lost", "p", "kind", "lead"),
    [
        (9, 1, 0.021, "better", "Solves more than before: 28 of 64, from 20"),
        (3, 0, 0.25, "unclear", "Solves 23 of 64, from 20: cannot be told apart from before"),
        (1, 9, 0.021, "worse", "Solves less than before: 12 of 64, from 20"),
    ],
)
def test_a_score_that_is_correctness_is_told_as_solved(
    tmp_path: Path, gained: int, lost: int, p: float, kind: str, lead: str
) -> None:
    """ "Training maximised this very score; ... does not say whether the answers are better"."""
    run = read_run(solved_run(tmp_path / "run", gained, lost, p))
    verdict = judge_run(run)
    assert (verdict.kind, verdict.lead) == (kind, lead)
    assert "Training maximised" not in verdict.sentence and "McNemar" in verdict.sentence
    page = report_html(run)
    assert "pass@16" in page and "of which at least one of k answers is right" in page
