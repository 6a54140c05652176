"""Every refusal of settings that contradict one another can be obeyed, wherever they stand."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import rlhf_ppo.config
from rlhf_ppo.command_line import load_config
from rlhf_ppo.config import Config, rules
from rlhf_ppo.errors import UserError

Settings = dict[str, Any]
MODEL = {"kind": "model", "path": "a/b"}
RULE = {"kind": "function", "name": "a", "path": "a.py:b", "correctness": True}
ENSEMBLE = {"kind": "ensemble", "members": [MODEL | {"name": "x"}, MODEL | {"name": "y"}]}


def sources(*entries: Settings) -> Settings:
    return {"reward": {"sources": list(entries)}}


def ensemble(**settings: Any) -> Settings:
    return sources(ENSEMBLE | settings)


# What is refused, and what its message says to do: each by dotted name.
CASES: list[tuple[Settings, Settings]] = [
    ({"kl": {"controller": "target", "beta": 0}}, {"kl.beta": 0.1}),
    ({"kl": {"controller": "adaptive", "horizon": 12}}, {"kl.horizon": 6400}),
    ({"policy": {"path": "a", "dtype": "float16"}}, {"policy.dtype": "float32"}),
    ({"policy": {"path": None, "allow_unmatched": ["x.*"]}}, {"policy.allow_unmatched": []}),
    ({"data": {"system_prompt": " "}}, {"data.system_prompt": None}),
    ({"data": {"columns": {"prompt": "prompt"}}}, {"data.columns": {}}),
    ({"data": {"columns": {"prompt": " "}}}, {"data.columns": {"prompt": "x"}}),
    ({"data": {"columns": {"prompt": "x", "kind": "x"}}}, {"data.columns": {"prompt": "x"}}),
    (
        {"data": {"prompts": "a", "heldout": 5, "heldout_prompts": "b"}},
        {"data.heldout_prompts": None},
    ),
    ({"data": {"prompts": "a", "heldout": 5, "heldout_preferences": "b"}}, {"data.heldout": None}),
    ({"data": {"heldout": 5}}, {"data.heldout": None}),
    ({"data": {"prompts": "a", "heldout": 5, "overlap": "drop"}}, {"data.overlap": None}),
    (
        {"data": {"chosen_as_demonstrations": True}},
        {"data.chosen_as_demonstrations": None},
    ),
    (
        {"reward": {"missing_stop_penalty": 1, "missing_stop_score": -1}},
        {"reward.missing_stop_penalty": None},
    ),
    ({"reward": {"length_free_tokens": 4}}, {"reward.length_free_tokens": None}),
    ({"reward": {"normalization_from": "running"}}, {"reward.normalization_from": None}),
    (sources(MODEL, MODEL), {"reward.sources": [MODEL, MODEL | {"name": "b"}]}),
    (sources(MODEL | {"weight": 0}), {"reward.sources": [MODEL]}),
    (
        sources(MODEL, MODEL | {"name": "b", "weight": 0, "normalization": "standardize"}),
        {"reward.sources": [MODEL, MODEL | {"name": "b", "weight": 0}]},
    ),
    (
        sources(ENSEMBLE | {"members": [MODEL, MODEL | {"name": "y", "weight": 2}]}),
        {"reward.sources": [ENSEMBLE]},
    ),
    (
        sources(RULE, RULE | {"name": "b"}),
        {"reward.sources": [RULE, RULE | {"name": "b", "correctness": False}]},
    ),
    (
        ensemble(members=[RULE, RULE | {"name": "b"}]),
        {"reward.sources": [ENSEMBLE]},
    ),
    (ensemble(combine="lower"), {"reward.sources": [ENSEMBLE | {"combine": "lower", "k": 1}]}),
    (ensemble(combine="minimum", k=1), {"reward.sources": [ENSEMBLE | {"k": None}]}),
    ({"policy": {"path": "a/b", "scratch": {}}}, {"policy.scratch": None}),
    (sources({"kind": "model"}, {"kind": "model", "name": "b"}), {"reward.sources": [MODEL]}),
    (sources(MODEL) | {"reward_model": {}}, {"reward_model": None}),
    (
        sources(MODEL, MODEL | {"name": "b"}) | {"value": {"model": "reward"}},
        {"value.model": "shared"},
    ),
    ({"value": {"model": "adapter"}}, {"value.model": "shared"}),
    ({"reward_model": {"save": "adapter"}}, {"reward_model.save": "merged"}),
    ({"value": {"init": "saved"}}, {"value.init": "new"}),
    (
        {"policy": {"path": "a/b"}, "value": {"init": "saved"}, "advantage": {"kind": "grpo"}}
        | {"rollout": {"samples_per_prompt": 2}},
        {"value.init": "new"},
    ),
    ({"policy": {"quantization": "4bit"}}, {"policy.quantization": None}),
    ({"policy": {"quantization": "4bit"}, "lora": {"rank": 4}}, {"lora.save": "adapter"}),
    (
        {"policy": {"quantization": "4bit"}, "lora": {"save": "adapter"}, "sft": {}},
        {"sft": None, "policy.path": "a/b"},
    ),
    (
        {"policy": {"quantization": "4bit"}, "lora": {"save": "adapter"}}
        | {"value": {"model": "policy"}},
        {"value.model": "shared"},
    ),
    (
        sources({"kind": "function", "path": "a.py:b"})
        | {"lora": {"rank": 4}, "hardware": {"offload": True}},
        {"hardware.offload": False},
    ),
    (
        {"advantage": {"kind": "n_step", "n": 2, "length_alpha": 1}},
        {"advantage.length_alpha": None},
    ),
    ({"advantage": {"kind": "n_step"}}, {"advantage.n": 3}),
    ({"advantage": {"n": 3}}, {"advantage.n": None}),
    ({"advantage": {"scale_groups": False}}, {"advantage.scale_groups": None}),
    (
        {"advantage": {"kind": "grpo", "gamma": 0.9}, "rollout": {"samples_per_prompt": 2}},
        {"advantage.gamma": 1},
    ),
    ({"advantage": {"kind": "rloo"}}, {"rollout.samples_per_prompt": 2}),
    (
        {"advantage": {"kind": "reinforce_pp", "whiten": False}},
        {"advantage.kind": "reward_to_go"},
    ),
    (
        {"advantage": {"kind": "reward_to_go"}, "value": {"model": "policy"}},
        {"value.model": "shared"},
    ),
    ({"ppo": {"penalty_target": 0.1}}, {"ppo.penalty_target": None}),
    ({"ppo": {"objective": "policy_gradient", "epochs": 2}}, {"ppo.objective": "surrogate"}),
    ({"guard": {"action": "rollback"}, "checkpoint": {"every": 0}}, {"checkpoint.every": 1}),
    ({"guard": {"action": "rollback"}, "checkpoint": {"keep": 1}}, {"checkpoint.keep": 2}),
    ({"guard": {"max_rollbacks": 2}}, {"guard.max_rollbacks": None}),
    ({"guard": {"max_kl": 6}, "kl": {"controller": "target"}}, {"guard.max_kl": 40}),
    ({"checkpoint": {"save": "best"}, "evaluation": {"every": 0}}, {"checkpoint.save": "last"}),
    ({"evaluation": {"best_of": 1}}, {"evaluation.best_of": 0}),
    (
        {"evaluation": {"best_of": 0, "best_of_prompts": 32}},
        {"evaluation.best_of_prompts": None},
    ),
]
NAMES = [", ".join(remedy) + f" {number}" for number, (_, remedy) in enumerate(CASES)]


def write(folder: Path, name: str, settings: Settings) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def nested(remedy: Settings) -> Settings:
    made: Settings = {}
    for name, value in remedy.items():
        section, _, last = name.rpartition(".")
        (made.setdefault(section, {}) if section else made)[last] = value
    return made


@pytest.mark.parametrize(("settings", "remedy"), CASES, ids=NAMES)
def test_a_refusal_can_be_obeyed_in_the_file_above_it_and_on_the_command_line(
    tmp_path: Path, settings: Settings, remedy: Settings
) -> None:
    """`--evaluation.best_of 0` answered "best_of_prompts has no effect; remove it", of a file."""
    path = write(tmp_path, "run.yaml", {"output_dir": "x"} | settings)
    with pytest.raises(UserError) as refused:
        load_config(["--config", str(path)], path)
    message = str(refused.value)
    assert "in the settings:" in message
    assert "remove" not in message
    for name, value in remedy.items():
        assert name.rpartition(".")[2] in message
        assert value is not None or "null" in message
    words = [
        word for k, v in remedy.items() for word in (f"--{k}", yaml.safe_dump(v).split("\n...")[0])
    ]
    from_words = load_config(["--config", str(path), *words], path)
    child = write(tmp_path, "child.yaml", {"extends": "run.yaml"} | nested(remedy))
    assert load_config(["--config", str(child)], child) == from_words


def yielded_lines(config: Config, seen: set[int]) -> Iterator[str]:
    """The problems of a config; the lines of `rules.py` that found them go to `seen`."""
    found = rules.contradictions(config)
    for problem in found:
        inner: Any = found
        while inner.gi_yieldfrom is not None:
            inner = inner.gi_yieldfrom
        seen.add(inner.gi_frame.f_lineno)
        yield problem


def test_every_rule_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new rule needs a case above; else nobody would know whether it can be obeyed."""
    seen: set[int] = set()
    monkeypatch.setattr(
        rlhf_ppo.config, "contradictions", lambda config: yielded_lines(config, seen)
    )
    for settings, _ in CASES:
        with pytest.raises(ValueError, match=r"\w"):
            Config.model_validate({"output_dir": "x"} | settings)
    source, first = inspect.getsourcelines(rules)
    lines = [number for number, line in enumerate(source, 1) if line.strip().startswith("yield ")]
    rule_lines = [n for n in lines if not source[n - 1].strip().startswith("yield from")]
    assert first == 0
    # A yield of several lines is at one of them while it waits.
    missing = [
        n
        for n, following in zip(rule_lines, [*rule_lines[1:], len(source)], strict=True)
        if not any(n <= line < following for line in seen)
    ]
    assert [source[n - 1] + source[n] for n in missing] == []
