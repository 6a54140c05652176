"""YAML as people write it: one message for what is wrong, and `null` takes anything away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import make_config

from rlhf_ppo.command_line import load_config
from rlhf_ppo.config import Config
from rlhf_ppo.config.reading import parse_yaml, read_yaml, to_yaml
from rlhf_ppo.errors import UserError

BASE = """output_dir: x
data: {columns: {prompt: question, completion: answer}, system_prompt: Be kind.}
evaluation: {best_of: 4, best_of_prompts: 9, models: {old: a/b}}
ppo: {steps: 7, max_grad_norm: 2}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(BASE, encoding="utf-8")
    return path


def load(file: Path, *words: str) -> Config:
    return load_config(["--config", str(file), *words], file)


def below(file: Path, text: str) -> Config:
    """A file that extends the first one."""
    child = file.with_name("child.yaml")
    child.write_text(f"extends: run.yaml\n{text}\n", encoding="utf-8")
    return load(child)


def message(file: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        load(file, *words)
    lines = str(caught.value).split("\n")
    assert max(map(len, lines)) <= 300 and len(str(caught.value)) <= 4000
    return str(caught.value)


@pytest.mark.parametrize(
    ("section", "setting", "text", "value"),
    [
        ("data", "columns", "{}", {}),
        ("data", "columns", "null", {}),
        ("data", "columns", "{prompt: query}", {"prompt": "query"}),
        ("data", "system_prompt", "null", None),
        ("evaluation", "models", "{}", {}),
        ("evaluation", "models", "null", {}),
        ("evaluation", "models", "{new: c/d}", {"new": "c/d"}),
        ("evaluation", "best_of_prompts", "null", 64),
        ("ppo", "steps", "null", 100),
        ("ppo", "max_grad_norm", "null", None),
        ("rollout", "temperature", "null", 1.0),
    ],
)
def test_a_setting_is_cleared_or_replaced_whole(
    file: Path, section: str, setting: str, text: str, value: Any
) -> None:
    """`--data.columns '{}'` kept the file's columns, and nothing could take them away."""
    for config in (
        load(file, f"--{section}.{setting}", text),
        below(file, f"{section}: {{{setting}: {text}}}"),
    ):
        assert getattr(getattr(config, section), setting) == value
        assert config.data.system_prompt == (None if setting == "system_prompt" else "Be kind.")


def test_options_of_a_judge_are_replaced_whole(file: Path) -> None:
    judge = "evaluation: {judge: {url: http://x, model: m, options: {top_p: 0.5, seed: 1}}}"
    middle = file.with_name("middle.yaml")
    middle.write_text(f"extends: run.yaml\n{judge}\n", encoding="utf-8")
    for text, wanted in (
        ("{}", {}),
        ("null", {"temperature": 0, "max_tokens": 1024}),
        ("{temperature: 1e-1}", {"temperature": 0.1}),
    ):
        found = load(middle, "--evaluation.judge.options", text).evaluation.judge
        assert found is not None and found.options == wanted


def test_null_takes_away_a_section_and_what_a_source_has(file: Path) -> None:
    assert load(file, "--evaluation", "null").evaluation == make_config().evaluation
    sources = "[{kind: http, url: 'http://x', timeout: null, weight: null}]"
    (source,) = load(file, "--reward.sources", sources).reward.sources
    assert (source.weight, source.timeout) == (1.0, 30.0)  # type: ignore[union-attr]


def test_a_section_is_opened_by_an_empty_mapping(file: Path) -> None:
    assert load(file, "--sft", "{}").sft is not None
    assert load(file, "--lora", "{rank: 3}", "--lora.save", "adapter").lora is not None


@pytest.mark.parametrize("text", ["ppo: {steps: }", "ppo:", "data: {columns: }", "seed:"])
def test_a_value_that_was_forgotten_is_no_null(file: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"has no value; give one, or null for the default"):
        below(file, text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.5E+3", 1500.0),
        (".5", 0.5),
        ("-7", -7),
        ("no", "no"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2026-11-21", "2026-11-21"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("true", True),
        ("~", None),
        ("[1e-5, no]", [1e-5, "no"]),
    ],
)
def test_words_and_numbers_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    """PyYAML reads 1e-5 as text, 1:30 as 90, 010 as 8, `no` as false (YAML 1.2.2, 10.3.2)."""
    assert parse_yaml(text) == value and type(parse_yaml(text)) is type(value)


UNREADABLE = {
    "a date that is none": "2026-99-99",
    "binary digits of nothing": "0b_",
    "a tag that does not fit": "!!int x",
    "a time that is none": "!!timestamp x",
    "a mapping that is none": "!!map [1]",
    "a tag of Python": "!!python/object:os.system x",
    "5000 digits": "9" * 5000,
    "400 digits": "9" * 400,
    "deep": "[" * 50_000,
    "octal": "010",
    "sixties": "1:30",
    "a word": "no",
    "an open list": "[1",
    "an alias of nothing": "*x",
    "itself": "&a [*a]",
    "two documents": "1\n--- 2",
    "a key twice": "{a: 1, a: 2}",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_number_is_one_message(file: Path, name: str) -> None:
    """Some were a ValueError, an AttributeError or a RecursionError of PyYAML, with a traceback."""
    text = UNREADABLE[name]
    assert "1 problem in" in message(file, "--seed", text) and "seed" in message(
        file, "--seed", text
    )
    file.write_text(f"output_dir: x\nseed: {text}\n", encoding="utf-8")
    assert str(file) in message(file)


def test_a_key_that_stands_twice_is_refused_with_its_line(file: Path) -> None:
    """The last one won, so that half of a file's settings could be without effect."""
    file.write_text("output_dir: x\nppo: {steps: 1}\nppo: {epochs: 1}\n", encoding="utf-8")
    assert "'ppo' stands twice" in message(file) and "line" in message(file)


@pytest.mark.parametrize(
    ("setting", "value", "part"),
    [
        ("ppo.adam_beta2", "1", "less than 1"),
        ("sft.adam_beta2", "1.0", "less than 1"),
        ("ppo.clip_range", "1e308", "1000000000"),
        ("value.clip_range", "1e12", "1000000000"),
        ("ppo.learning_rate", "1e-300", "single precision"),
        ("ppo.adam_epsilon", "1e-44", "single precision"),
        ("seed", "9" * 400, "about 401 digits"),
        ("seed", "4294967296", "4294967295"),
        ("rollout.batch_size", "1" + "0" * 30, "2147483647"),
        ("hardware.cpu_threads", "1000000", "4096"),
        ("reward.sources", "[{kind: http, url: 'http://[::1/'}]", "Invalid IPv6 URL"),
        ("reward.sources", "[{kind: http, url: 'http://x:99999/'}]", "out of range"),
        ("reward.sources", "[{kind: http, url: 'http://x', timeout: 1e30}]", "1000000000"),
        ("reward.sources", "[{kind: function, path: 'a.py:f', weight: -1e300}]", "-1000000000"),
        ("output_dir", "a\0b", "zero byte"),
        ("output_dir", "runs/" + "x" * 300, "255 bytes"),
        ("policy.path", "y" * 25_000, "255 bytes"),
        ("data.heldout", "0", "greater than 0"),
        ("data.heldout", "1.0", "a share below 1"),
        ("data.heldout", "true", "a share below 1"),
        ("data.heldout", "5%", "a share below 1"),
    ],
)
def test_values_that_libraries_fail_on_are_out_of_bounds(
    file: Path, setting: str, value: str, part: str
) -> None:
    found = message(file, f"--{setting}", value)
    assert setting in found and part in found


def test_a_config_is_written_so_that_any_yaml_reads_it_back(tmp_path: Path) -> None:
    words = ["1e5", "no", "010", "1:30", "2026-11-21", "null", "0x1F", "1_0", ".5", "a: b", "é"]
    config = make_config(
        rollout={"stop_tokens": words},
        ppo={"learning_rate": 1e-5},
        hardware={"mixed_precision": "no"},
    )
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert Config.model_validate(read_yaml(path)) == config
    assert Config.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))) == config
