"""Data as people have it, through the whole run: CSV questions, transcripts in Parquet, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from cli import run_here, tiny_sections, write_config
from helpers import COLOURS, THINGS, read_jsonl

GOLD = """
def score(prompts, responses, answer, completion=None):
    assert all(prompt[0] == {"role": "system", "content": "Be brief."} for prompt in prompts)
    assert all(isinstance(text, str) and text for text in answer)
    return [float(len(response)) for response in responses]
"""


def question(thing: str, owner: str = "the") -> str:
    return f"what colour is {owner} {thing}?"


def write_sources(folder: Path) -> dict[str, str]:
    """Questions with answers, transcripts and `messages`; one row of the questions is broken."""
    rows = [f'"{question(thing)}",{colour}' for thing, colour in zip(THINGS, COLOURS, strict=True)]
    rows += ['"",grey', rows[0]]
    (folder / "train.csv").write_text("question,answer\n" + "\n".join(rows), encoding="utf-8")
    held = [{"question": question(thing, "my"), "answer": "red"} for thing in THINGS]
    (folder / "held.json").write_text(json.dumps(held), encoding="utf-8")
    asked = [f"\n\nHuman: {question(thing)}\n\nAssistant:" for thing in THINGS]
    pairs = [{"chosen": f"{text} it is red.", "rejected": f"{text} no red."} for text in asked]
    datasets.Dataset.from_list(pairs).to_parquet(folder / "pairs.parquet")
    held_pairs = [pairs[0], {"chosen": asked[1] + " it is so." * 40, "rejected": asked[1] + " no."}]
    datasets.Dataset.from_list(held_pairs).to_parquet(folder / "held.parquet")
    shown = [
        [
            {"role": "user", "content": question(thing)},
            {"role": "assistant", "content": f"it is {colour}."},
        ]
        for thing in THINGS
        for colour in COLOURS
    ]
    datasets.Dataset.from_dict({"conversation": shown}).save_to_disk(folder / "shown")
    return {
        "prompts": "train.csv",
        "heldout_prompts": "held.json",
        "preferences": "pairs.parquet",
        "heldout_preferences": "held.parquet",
        "demonstrations": "shown",
    }


def data_lines(output: str) -> list[str]:
    """What was printed of the data: a line for each source, and the findings below it."""
    lines, found = output.split("\n"), []
    for line in lines:
        if line.startswith(("data.", "ptx.")) or (found and line.startswith("  ") and "(" in line):
            found.append(line)
        elif found:
            break
    return found


def test_data_as_people_have_it_goes_through_all_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_sources(tmp_path) | {
        "columns": {"prompt": "question", "messages": "conversation"},
        "system_prompt": "Be brief.",
        "to_chat": "always",
        "bad_rows": "drop",
        "duplicates": "drop",
    }
    (tmp_path / "gold.py").write_text(GOLD, encoding="utf-8")
    settings = tiny_sections() | {"output_dir": "run", "data": data, "logging": {"trackers": []}}
    settings["evaluation"]["gold"] = "gold.py:score"
    # A longer held-out pair stopped the run after training.
    settings["reward"] = {"sources": [{"kind": "model", "max_tokens": 80}]}
    config = write_config(tmp_path / "config.yaml", settings)
    assert run_here("plan", ["--config", config.name], tmp_path, monkeypatch) == 0
    planned = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert run_here("train", ["--config", config.name], tmp_path, monkeypatch) == 0
    shown = capsys.readouterr().out
    # plan.py said not a word about the rows that a run would drop.
    assert data_lines(planned) == data_lines(shown) != []
    assert "data.prompts: 8 of 10 rows used (train.csv)" in shown
    assert "1 dropped (10.0 %): prompt is empty (train.csv:10)" in shown
    assert "1 dropped (10.0 %): repeats an earlier row (train.csv:11)" in shown
    samples = read_jsonl(tmp_path / "run" / "evaluation" / "samples.jsonl")
    assert len(samples) == len(THINGS)
    probes = json.loads((tmp_path / "run" / "reward_model" / "probes.json").read_text("utf-8"))
    assert probes["all"]["pairs"] == 1
    report = json.loads((tmp_path / "run" / "data_report.json").read_text(encoding="utf-8"))
    assert {name: item["used"] for name, item in report.items()} == {
        "data.demonstrations": 64,
        "data.preferences": 8,
        "data.heldout_preferences": 1,
        "data.prompts": 8,
        "data.heldout_prompts": 8,
    }
