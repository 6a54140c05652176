"""Bad, long, repeated and held-out rows: refused or dropped as configured, always told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import make_config, write_chat_data, write_jsonl
from transformers import BertConfig

from rlhf_ppo.config import DataConfig
from rlhf_ppo.data.lengths import LengthLimit
from rlhf_ppo.data.prompts import Prompt, read_prompts, settle_overlap
from rlhf_ppo.data.report import DataReport, TooLong
from rlhf_ppo.data.sources import check_columns
from rlhf_ppo.errors import UserError
from rlhf_ppo.inputs import check_inputs, read_inputs
from rlhf_ppo.models.limits import Limits
from rlhf_ppo.models.scratch import train_tokenizer
from rlhf_ppo.stamps import make_stamps

STAGES = ("sft", "reward_model", "ppo", "evaluation")
SCRATCH = {"vocabulary_size": 300, "hidden_size": 32, "layers": 1, "heads": 2}


def read(
    folder: Path, lines: list[str], report: DataReport | None = None, **settings: Any
) -> list[Prompt]:
    path = folder / "a.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    report = DataReport() if report is None else report
    return read_prompts(str(path), "data.prompts", DataConfig(**settings), report)


def test_bad_rows_are_dropped_counted_by_reason_and_placed(tmp_path: Path) -> None:
    report = DataReport()
    lines = ['{"prompt": "a"}', '{"prompt": ""}', "{", '{"prompt": "b"}', '{"prompt": "  "}']
    found = read(tmp_path, lines, report, bad_rows="drop")
    assert [(prompt.text, prompt.row) for prompt in found] == [("a", 0), ("b", 3)]
    path = tmp_path / "a.jsonl"
    assert report.lines() == [
        f"data.prompts: 2 of 5 rows used ({path})",
        f"  2 dropped (40.0 %): prompt is empty ({path}:2, 5)",
        "    such as {'prompt': ''}",
        f"  1 dropped (20.0 %): not valid JSON ({path}:3)",
        "    such as '{' (Expecting property name enclosed in double quotes)",
    ]


HH = "\n\nHuman: what {}?\n\nAssistant:"


def hh_rows(count: int) -> list[dict[str, str]]:
    """Transcripts as HH-RLHF has them; of every fifth pair the chosen answer is empty."""
    return [
        {
            "chosen": HH.format(number) + (" yes" if number % 5 else " "),
            "rejected": HH.format(number) + " no",
        }
        for number in range(count)
    ]


def hh_config(folder: Path, **data: Any) -> Any:
    source = write_jsonl(folder / "hh.jsonl", hh_rows(20))
    sections = {"policy": {"scratch": SCRATCH}, "sft": {}, "reward_model": {}}
    names = ("demonstrations", "preferences", "prompts")
    rules = {"heldout": 3, "chosen_as_demonstrations": True}
    return make_config(data=dict.fromkeys(names, source) | rules | data, **sections)


def test_what_is_wrong_with_one_file_is_listed_once_with_an_excerpt(tmp_path: Path) -> None:
    """Each setting that reads the file had its own list of the same rows, without the rows."""
    report = read_inputs(hh_config(tmp_path, bad_rows="drop"), STAGES).report
    path = tmp_path / "hh.jsonl"
    places = f"({path}:1, 6, 11, 16)"
    said = "  4 dropped (20.0 %): the answer of chosen is empty"
    lines = [line for line in report.lines() if "is empty" in line]
    assert lines == [
        f"{said} {places}",
        f"{said} (as in data.demonstrations)",
        f"{said} (as in data.demonstrations)",
    ]
    (excerpt,) = [line for line in report.lines() if line.startswith("    such as")]
    assert "Human: what 0?" in excerpt and "rejected" in excerpt and len(excerpt) < 300
    report.write(tmp_path)
    found = json.loads((tmp_path / "data_report.json").read_text(encoding="utf-8"))
    assert all(len(found[name]["findings"][0]["places"]) == 4 for name in ("data.preferences",))


def test_a_refusal_of_one_file_names_every_setting_that_reads_it(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_inputs(hh_config(tmp_path), STAGES)
    message = str(caught.value)
    assert message.count("4 bad row(s)") == 1 and message.count("hh.jsonl:6:") == 1
    assert message.endswith("(data.demonstrations, data.preferences, data.prompts)")
    assert "'rejected': " in message  # the row, shortened


def test_a_small_share_is_no_zero() -> None:
    report = DataReport()
    report.add_source("data.prompts", "a", 5000, [])
    report.add("data.prompts", "odd", ["a:7"], dropped=True)
    assert report.lines() == [
        "data.prompts: 4999 of 5000 rows used (a)",
        "  1 dropped (less than 0.1 %): odd (a:7)",
    ]


def test_when_every_row_is_bad_nothing_is_dropped_in_silence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="That is every row"):
        read(tmp_path, ['{"prompt": ""}', "{"], bad_rows="drop")


@pytest.mark.parametrize(("duplicates", "texts"), [("keep", "aba"), ("drop", "ab")])
def test_repeated_prompts_are_told_and_kept_or_dropped(
    tmp_path: Path, duplicates: str, texts: str
) -> None:
    report = DataReport()
    lines = [json.dumps({"prompt": text}) for text in ("a", "b", "a ")]
    found = read(tmp_path, lines, report, duplicates=duplicates)
    assert [str(prompt.text).strip() for prompt in found] == list(texts)
    (finding,) = report.sources["data.prompts"].findings
    assert finding.dropped == (duplicates == "drop")
    assert finding.places == (f"{tmp_path / 'a.jsonl'}:3",)


def test_repeated_prompts_are_refused_with_both_places(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, ['{"prompt": "a"}', '{"prompt": "a"}'], duplicates="refuse")
    path = tmp_path / "a.jsonl"
    assert f"{path}:2: repeats {path}:1" in str(caught.value)
    assert "data.duplicates" in str(caught.value)


def both(folder: Path, train: Any, heldout: Any, **settings: Any) -> list[Prompt]:
    """Read a training and a held-out prompt and settle their overlap."""
    rules, report = DataConfig(**settings), DataReport()
    found = []
    for name, prompt in (("prompts", train), ("heldout_prompts", heldout)):
        other = {"prompt": [{"role": "user", "content": f"not of {name}"}]}
        source = write_jsonl(folder / f"{name}.jsonl", [other, prompt])
        found.append(read_prompts(source, f"data.{name}", rules, report))
    return settle_overlap(found[0], found[1], rules, report)


USER = {"role": "user", "content": "what?"}
SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize(
    ("train", "heldout", "settings"),
    [
        ("what?", "what?", {}),
        ("what?", [USER], {}),
        ([USER], "what?\n", {"to_chat": "always"}),
        ("\n\nHuman: what?\n\nAssistant:", [USER], {}),
        ("\n\nHuman: what?\n\nAssistant:", [USER], {"to_chat": "never"}),
        ([SYSTEM, USER], [USER], {"system_prompt": "Be kind."}),
        ([USER | {"name": None}], [USER], {}),
    ],
)
def test_the_same_prompt_is_found_in_any_form(
    tmp_path: Path, train: Any, heldout: Any, settings: dict[str, Any]
) -> None:
    with pytest.raises(UserError) as caught:
        both(tmp_path, {"prompt": train}, {"prompt": heldout}, **settings)
    for part in ("/heldout_prompts.jsonl:2", "/prompts.jsonl:2", "must not be trained on"):
        assert part in str(caught.value)
    kept = both(tmp_path, {"prompt": train}, {"prompt": heldout}, overlap="drop", **settings)
    assert [prompt.row for prompt in kept] == [0]


def test_another_system_prompt_makes_another_prompt(tmp_path: Path) -> None:
    rows = {"prompt": [SYSTEM, USER]}, {"prompt": [USER]}
    assert len(both(tmp_path, *rows)) == 2


def test_a_column_that_no_source_has_is_a_slip(tmp_path: Path) -> None:
    rules, report = DataConfig(columns={"prompt": "query", "kind": "type"}), DataReport()
    read(tmp_path, ['{"prompt": "a", "id": 1}'], report, columns=rules.columns)
    (problem,) = check_columns(rules, report)  # `kind` belongs to preferences: not read here
    assert "data.columns.prompt = 'query'" in problem and "id, prompt" in problem


def test_long_rows_are_refused_with_place_and_length() -> None:
    report, limits = DataReport(), Limits("policy.path", None, None, None)
    limit = LengthLimit("sft.max_tokens", 9, limits)
    with pytest.raises(UserError) as caught:
        report.add_long("data.prompts", [TooLong("x:3", 40)], limit, [40, 5], refuse=True)
    assert "x:3: 40 tokens, more than sft.max_tokens = 9" in str(caught.value)


def full_config(folder: Path, **data: Any) -> Any:
    sections = {"policy": {"scratch": SCRATCH}, "sft": {}, "reward_model": {}}
    return make_config(data=write_chat_data(folder) | data, **sections)


def test_pairs_are_measured_for_a_reward_model_whose_tokenizer_has_no_chat_template(
    tmp_path: Path,
) -> None:
    """An encoder as reward_model.init_from ended the run with a traceback in its preflight."""
    tokenizer = train_tokenizer(["what it is and so on"] * 8, 300)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "encoder")
    BertConfig(vocab_size=300).save_pretrained(tmp_path / "encoder")
    config = full_config(tmp_path)
    reward_model = config.reward_model.model_copy(update={"init_from": str(tmp_path / "encoder")})
    config = config.model_copy(update={"reward_model": reward_model})
    inputs = read_inputs(config, STAGES)
    check_inputs(config, STAGES, inputs)
    assert inputs.report.sources["data.preferences"].used == 8


def test_the_report_holds_every_source_and_every_place(tmp_path: Path) -> None:
    config = full_config(tmp_path)
    long = {"prompt": [{"role": "user", "content": "why " * 900}]}
    with (tmp_path / "prompts.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(long) + "\n")
    answer = [{"role": "assistant", "content": "it is so. " * 400}]
    with (tmp_path / "demonstrations.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"messages": [USER, *answer]}) + "\n")
    inputs = read_inputs(config, STAGES)
    checked = check_inputs(config, STAGES, inputs)
    assert checked.sizes == {"data.prompts": 8, "data.heldout_prompts": 8}
    inputs.report.write(tmp_path)
    found = json.loads((tmp_path / "data_report.json").read_text(encoding="utf-8"))
    assert {name: (item["rows"], item["used"]) for name, item in found.items()} == {
        "data.demonstrations": (33, 32),
        "data.preferences": (8, 8),
        "data.heldout_preferences": (4, 4),
        "data.prompts": (9, 8),
        "data.heldout_prompts": (8, 8),
    }
    assert found["data.demonstrations"]["findings"] == [
        {
            "reason": "longer than the 256 positions of policy.scratch",
            "rows": 1,
            "dropped": True,
            "places": [f"{tmp_path / 'demonstrations.jsonl'}:33"],
            "advice": "median 16, 100 % of the rows fit in 1607, more than the model has "
            "positions for",
        }
    ]
    (told,) = found["data.heldout_preferences"]["findings"]
    assert told["rows"] == 4 and "its prompt is in data.preferences" in told["reason"]


def test_held_out_prompts_that_an_earlier_stage_saw_are_told(tmp_path: Path) -> None:
    data = write_chat_data(tmp_path)
    config = full_config(tmp_path, prompts=data["heldout_prompts"], heldout_prompts=data["prompts"])
    (demonstrated, compared) = (
        read_inputs(config, STAGES).report.sources["data.heldout_prompts"].findings
    )
    assert "data.demonstrations" in demonstrated.reason and len(demonstrated.places) == 8
    assert "data.preferences" in compared.reason and not compared.dropped


def test_a_stage_alone_adds_to_the_report_of_the_others(tmp_path: Path) -> None:
    for setting in ("data.prompts", "data.preferences"):
        report = DataReport()
        report.add_source(setting, "a.jsonl", 3, [])
        report.write(tmp_path)
    found = json.loads((tmp_path / "data_report.json").read_text(encoding="utf-8"))
    assert list(found) == ["data.prompts", "data.preferences"]


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({"system_prompt": "Be kind."}, {"sft", "reward_model", "ppo", "evaluation"}),
        ({"duplicates": "drop"}, {"sft", "reward_model", "ppo", "evaluation"}),
        ({"overlap": "drop"}, {"ppo", "evaluation"}),
        ({"bad_rows": "drop", "long_rows": "refuse"}, set()),
    ],
)
def test_how_data_is_read_touches_the_stages_that_read_it(
    tmp_path: Path, change: dict[str, Any], touched: set[str]
) -> None:
    before = make_stamps(full_config(tmp_path))
    after = make_stamps(full_config(tmp_path, **change))
    assert {stage for stage in before if before[stage] != after[stage]} == touched
