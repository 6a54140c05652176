"""Bad input: exit code 2, one clear message, no traceback, and nothing written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cli import GOLD, run_here, run_script, tiny_sections, write_config
from helpers import (
    THINGS,
    byte_tokenizer,
    given_reward,
    write_chat_data,
    write_jsonl,
    write_plain_data,
)


@dataclass
class Case:
    """A config that works, before something is broken; `words` are command-line overrides."""

    folder: Path
    models: dict[str, str]
    settings: dict[str, Any]
    words: list[str] = field(default_factory=list)
    script: str = "train"

    def section(self, name: str) -> dict[str, Any]:
        """A section to change."""
        found: dict[str, Any] = self.settings.setdefault(name, {})
        return found

    def source(self, kind: str = "model", **settings: Any) -> None:
        """Make one reward source the only one."""
        self.section("reward")["sources"] = [{"kind": kind} | settings]

    def append(self, source: str, line: str) -> None:
        """Add a line to a data file."""
        with Path(self.section("data")[source]).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def gold(self, code: str) -> None:
        """Write a gold scorer and name it."""
        (self.folder / "gold.py").write_text(code, encoding="utf-8")
        self.section("evaluation")["gold"] = "gold.py:score"

    def tree(self) -> dict[str, tuple[int, int]]:
        """Every file with size and time of change, to see that nothing is touched."""
        return {
            str(path.relative_to(self.folder)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in self.folder.rglob("*")
            if "__pycache__" not in path.parts
        }


def chat_case(folder: Path, models: dict[str, str]) -> Case:
    """All stages, from scratch."""
    data = {name: Path(path).name for name, path in write_chat_data(folder).items()}
    return Case(folder, models, tiny_sections() | {"output_dir": "run", "data": data})


def plain_case(folder: Path, models: dict[str, str]) -> Case:
    """PPO and evaluation, from given models."""
    data = {name: Path(path).name for name, path in write_plain_data(folder).items()}
    sections = {name: tiny_sections()[name] for name in ("rollout", "ppo", "evaluation")}
    given = {"policy": {"path": models["policy"]}, "reward": given_reward(models["reward"])}
    return Case(folder, models, sections | given | {"output_dir": "run", "data": data})


Change = Callable[[Case], Any]
CHAT: dict[str, tuple[Change, list[str]]] = {
    "typo in the file": (
        lambda c: c.section("ppo").update(stepps=3),
        ["config.yaml", "ppo.stepps", "Did you mean ppo.steps?"],
    ),
    "typo on the command line": (
        lambda c: c.words.extend(["--ppo.learning_rat", "1"]),
        ["--ppo.learning_rat", "ppo.learning_rate"],
    ),
    "wrong type": (
        lambda c: c.section("ppo").update(steps="many"),
        ["ppo.steps", "'many'", "integer"],
    ),
    "missing data file": (
        lambda c: c.section("data").update(prompts="nowhere.jsonl"),
        ["data.prompts", "nowhere.jsonl"],
    ),
    "no data named": (
        lambda c: c.section("data").update(preferences=None, heldout_prompts=None),
        ["data.preferences: missing", "data.heldout_prompts: missing"],
    ),
    "broken line": (lambda c: c.append("prompts", '{"prompt": '), ["prompts.jsonl:9", "JSON"]),
    "two broken files at once": (
        lambda c: (c.append("prompts", "x"), c.append("demonstrations", "[]")),
        ["prompts.jsonl:9", "demonstrations.jsonl:33"],
    ),
    "missing column": (
        lambda c: c.append("preferences", '{"chosen": "a"}'),
        ["preferences.jsonl:9", "`rejected`", "columns: chosen"],
    ),
    "empty held-out set": (
        lambda c: (c.folder / "heldout.jsonl").write_text("\n"),
        ["heldout.jsonl", "holds no rows", "data.heldout_prompts"],
    ),
    "held-out prompt in training": (
        lambda c: c.append(
            "heldout_prompts",
            json.dumps({"prompt": [{"role": "user", "content": "what colour is the cat?"}]}),
        ),
        ["heldout.jsonl:9", "prompts.jsonl:1", "must not be trained on"],
    ),
    "more minibatches than prompts": (
        lambda c: c.section("ppo").update(minibatches=7),
        ["ppo.minibatches = 7", "rollout.batch_size = 6"],
    ),
    "more prompts asked than there are": (
        lambda c: c.section("rollout").update(batch_size=50),
        ["rollout.batch_size = 50", "8 prompts"],
    ),
    "gold file missing": (
        lambda c: c.section("evaluation").update(gold="no/gold.py:score"),
        ["evaluation.gold", "no/gold.py"],
    ),
    "gold file that cannot be loaded": (
        lambda c: c.gold("raise OSError('no network')"),
        ["evaluation.gold", "gold.py", "OSError: no network"],
    ),
    "gold that raises on every call": (
        lambda c: c.gold("def score(prompts, responses, weight): return []"),
        ["evaluation.gold", "gold.py:score", "needs the column 'weight'", "topic"],
    ),
    "nothing to start from": (
        lambda c: (c.settings.pop("sft"), c.settings.pop("policy")),
        ["policy.path: missing"],
    ),
    "no reward": (
        lambda c: c.settings.pop("reward_model"),
        ["reward.sources[reward_model].path: missing"],
    ),
    "stage without its section": (
        lambda c: (c.settings.pop("sft"), setattr(c, "script", "sft")),
        ["no section `sft`"],
    ),
    "stage before the one it needs": (
        lambda c: setattr(c, "script", "reward_model"),
        ["run/sft", "scripts/sft.py"],
    ),
    "evaluation before PPO": (
        lambda c: setattr(c, "script", "evaluate"),
        ["run/policy", "scripts/ppo.py"],
    ),
    "scratch model without a vocabulary": (
        lambda c: c.section("policy")["scratch"].update(vocabulary_size=100),
        ["policy.scratch", "100"],
    ),
    "scratch model that cannot be built": (
        lambda c: c.section("policy")["scratch"].update(heads=5),
        ["policy.scratch", "hidden_size=32"],
    ),
    "stage batch that cannot be split": (
        lambda c: c.section("sft").update(batch_size=8, micro_batch_size=3),
        ["sft.batch_size = 8", "micro-batches of 3"],
    ),
    "unknown tracker": (
        lambda c: c.section("logging").update(trackers=["tensorbord"]),
        ["logging.trackers", "tensorbord"],
    ),
    "tracker that is not installed": (
        lambda c: c.section("logging").update(trackers=["tensorboard", "aim"]),
        ["logging.trackers", "'aim' is not installed"],
    ),
    "unknown role in a demonstration": (
        lambda c: c.append(
            "demonstrations",
            json.dumps({"messages": [{"role": r, "content": "x"} for r in ("human", "assistant")]}),
        ),
        ["human", "use system, user or assistant"],
    ),
    "output folder is a file": (
        lambda c: (c.folder / "run").write_text("x"),
        ["output_dir", "run"],
    ),
}
PLAIN: dict[str, tuple[Change, list[str]]] = {
    "no such model folder": (
        lambda c: c.section("policy").update(path="./models/none"),
        ["policy.path", "./models/none"],
    ),
    "no such reward folder": (
        lambda c: c.source(path="./models/none"),
        ["reward.sources[reward_model].path", "./models/none"],
    ),
    "folder without a model": (
        lambda c: ((c.folder / "empty").mkdir(), c.section("policy").update(path="empty")),
        ["policy.path", "empty", "config.json"],
    ),
    "no room for a response": (
        lambda c: (
            c.append("prompts", json.dumps({"prompt": "a" * 60})),
            c.section("data").update(long_rows="refuse"),
        ),
        ["data.prompts", "prompts.jsonl:9", "60 tokens", "64 positions", "max_new_tokens = 10"],
    ),
    "more new tokens than positions": (
        lambda c: c.section("rollout").update(max_new_tokens=100),
        ["rollout.max_new_tokens = 100", "64 positions"],
    ),
    "all prompts too long": (
        lambda c: c.section("data").update(max_prompt_tokens=3),
        ["data.max_prompt_tokens = 3", "all 8 prompts"],
    ),
    "fewer prompts than a batch once the long ones are dropped": (
        lambda c: (
            c.section("data").update(max_prompt_tokens=11),
            c.section("rollout").update(batch_size=8),
        ),
        ["rollout.batch_size = 8"],
    ),
    "stop token that is no token": (
        lambda c: c.section("rollout").update(stop_tokens=["<|stop|>"]),
        ["rollout.stop_tokens", "<|stop|>"],
    ),
    "reward model that is none": (
        lambda c: c.source(path=c.models["policy"]),
        ["reward.sources[reward_model].path", "gpt2_policy", "lacks the weights [score.weight]"],
    ),
    "value model with another vocabulary": (
        lambda c: (
            c.section("value").update(model="reward"),
            c.source(path=other_vocabulary(c)),
        ),
        ["value.model", "vocabulary"],
    ),
}


CODE = "def score(prompts, responses, **columns):\n    return [1 / len(r) for r in responses]\n"


def with_reward(case: Case, code: str = CODE, **settings: Any) -> None:
    """A Python reward as the only source."""
    (case.folder / "reward.py").write_text(code, encoding="utf-8")
    case.source("function", **{"path": "reward.py:score"} | settings)


def with_sources(case: Case, *sources: dict[str, Any]) -> None:
    """These sources alone."""
    case.section("reward")["sources"] = list(sources)


LENGTH = {"kind": "function", "path": "reward.py:score"}
MEMBERS = [LENGTH | {"name": "one"}, LENGTH | {"name": "two"}]
REWARDS: dict[str, tuple[Change, list[str]]] = {
    "setting of a source outside of it": (
        lambda c: c.section("reward").update(path="./models/reward"),
        ["reward.path", "It belongs to a source", "reward.sources: [{kind: ..., path: ...}]"],
    ),
    "unknown kind of source": (
        lambda c: c.source("functoin", path="reward.py:score"),
        ["reward.sources.0.kind", "'functoin'", "model, function, http, ensemble"],
    ),
    "source without a kind": (
        lambda c: with_sources(c, {"path": "reward.py:score"}),
        ["reward.sources.0.kind", "none of model"],
    ),
    "typo in a source": (
        lambda c: c.source("function", pth="reward.py:score"),
        ["reward.sources.0.pth", "Did you mean path?", "reward.sources.0.path: missing"],
    ),
    "wrong type in a member": (
        lambda c: c.source("ensemble", members=[LENGTH, LENGTH | {"weight": "much"}]),
        ["1 problem in", "reward.sources.0.members.1.weight", "'much'"],
    ),
    "no source at all": (
        lambda c: with_sources(c),
        ["reward.sources", "needs 1 or more entries"],
    ),
    "reward file missing": (
        lambda c: c.source("function", path="no/reward.py:score"),
        ["reward.sources[function].path", "no such file: no/reward.py"],
    ),
    "reward function missing": (
        lambda c: with_reward(c, "def other(): pass"),
        ["reward.sources[function].path", "reward.py has no function 'score'"],
    ),
    "reward file that ends the program": (
        lambda c: with_reward(c, "raise SystemExit(0)"),
        ["reward.sources[function].path", "reward.py:1: SystemExit: 0"],
    ),
    "reward function that takes other arguments": (
        lambda c: with_reward(c, "def score(texts): return [0.0]"),
        ["reward.sources[function].path", "takes (texts)", "(prompts, responses, **columns)"],
    ),
    "reward function that needs a column": (
        lambda c: with_reward(c, "def score(prompts, responses, answer): return [0.0]"),
        ["needs the column 'answer'", "plain_prompts.jsonl:1"],
    ),
    "reward function that fails on silence": (
        with_reward,
        ["reward.py:2: ZeroDivisionError", "empty response", "plain_prompts.jsonl:1"],
    ),
    "reward function that returns one number": (
        lambda c: with_reward(c, "def score(prompts, responses): return 0.5"),
        ["reward.sources[function].path", "TypeError", "float"],
    ),
    "address that is none": (
        lambda c: c.source("http", url="localhost:8000"),
        ["reward.sources.0.url", "'localhost:8000'", "https?://"],
    ),
    "service that is not there": (
        lambda c: c.source("http", url="http://127.0.0.1:9/"),
        ["reward.sources[http].url", "http://127.0.0.1:9/", "refused", "Start the service"],
    ),
    "two sources of one name": (
        lambda c: with_sources(c, LENGTH, LENGTH),
        ["reward.sources: 2 are called 'function'"],
    ),
    "weights that pay nothing": (
        lambda c: with_reward(c, weight=0, normalization="standardize"),
        ["every weight is 0", "normalization has no effect with weight = 0"],
    ),
    "ensemble of one": (
        lambda c: c.source("ensemble", members=[LENGTH]),
        ["reward.sources.0.members", "needs 2 or more entries"],
    ),
    "weight of a member": (
        lambda c: c.source("ensemble", members=[MEMBERS[0], MEMBERS[1] | {"weight": 2}]),
        ["reward.sources[ensemble].members[two].weight = 2"],
    ),
    "lower bound without its width": (
        lambda c: c.source("ensemble", members=MEMBERS, combine="lower"),
        ["reward.sources[ensemble].k: missing"],
    ),
    "width without a lower bound": (
        lambda c: c.source("ensemble", members=MEMBERS, combine="minimum", k=1),
        ["reward.sources[ensemble].k = 1.0 has no effect with combine = minimum"],
    ),
    "reward model that no source uses": (
        lambda c: c.settings.update(reward_model={}),
        ["reward_model: would train a model that no reward source uses"],
    ),
    "two models that this run would train": (
        lambda c: with_sources(c, {"kind": "model"}, {"kind": "model", "name": "b"}),
        ["two models without a path"],
    ),
    "values from one of two models": (
        lambda c: (
            with_sources(
                c, *({"kind": "model", "name": n, "path": c.models["reward"]} for n in "ab")
            ),
            c.section("value").update(model="reward"),
        ),
        ["value.model = reward with 2 reward sources"],
    ),
    "output that is not there": (
        lambda c: c.source(path=c.models["reward"], label="POSITIVE"),
        ["reward.sources[reward_model].label = 'POSITIVE'", "0: LABEL_0"],
    ),
    "all wrong at once": (
        lambda c: with_sources(
            c, LENGTH | {"path": "a.py:b"}, {"kind": "http", "url": "http://127.0.0.1:9/"}
        ),
        ["no such file: a.py", "http://127.0.0.1:9/ gave no scores"],
    ),
}


def other_vocabulary(case: Case) -> str:
    """The reward model's folder with another tokenizer in it."""
    import shutil

    folder = case.folder / "other_reward"
    shutil.copytree(case.models["reward"], folder)
    byte_tokenizer().save_pretrained(folder)
    return "./other_reward"


def check_refused(
    case: Case,
    parts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run, and see one message that holds all parts, and the folder as it was."""
    config = write_config(case.folder / "config.yaml", case.settings)
    before = case.tree()
    code = run_here(case.script, ["--config", config.name, *case.words], case.folder, monkeypatch)
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("error:") == 1 and "Traceback" not in error
    for part in parts:
        assert part in error
    assert case.tree() == before


@pytest.mark.parametrize(("change", "parts"), CHAT.values(), ids=CHAT.keys())
def test_a_run_from_scratch_is_refused(
    change: Change,
    parts: list[str],
    tmp_path: Path,
    gpt2_models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    case = chat_case(tmp_path, gpt2_models)
    change(case)
    check_refused(case, parts, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("change", "parts"), (PLAIN | REWARDS).values(), ids=(PLAIN | REWARDS).keys()
)
def test_a_run_from_given_models_is_refused(
    change: Change,
    parts: list[str],
    tmp_path: Path,
    gpt2_models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    case = plain_case(tmp_path, gpt2_models)
    change(case)
    check_refused(case, parts, monkeypatch, capsys)


@pytest.mark.parametrize("script", ["train", "ppo"])
def test_the_results_of_another_run_are_not_touched(
    script: str,
    tmp_path: Path,
    gpt2_models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = plain_case(tmp_path, gpt2_models)
    (tmp_path / "run" / "policy").mkdir(parents=True)
    (tmp_path / "run" / "policy" / "precious.txt").write_text("x", encoding="utf-8")
    case.script = script
    check_refused(case, ["is not empty", "--resume true", "Nothing"], monkeypatch, capsys)


def test_a_policy_without_a_stamp_is_not_overwritten_on_resume(
    tmp_path: Path,
    gpt2_models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = plain_case(tmp_path, gpt2_models)
    (tmp_path / "run" / "policy").mkdir(parents=True)
    (tmp_path / "run" / "policy" / "precious.txt").write_text("x", encoding="utf-8")
    case.words = ["--resume", "true"]
    check_refused(case, ["run/policy"], monkeypatch, capsys)


def test_the_unbroken_cases_are_not_refused(
    tmp_path: Path, gpt2_models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the tables above would show nothing."""
    for name, make in (("chat", chat_case), ("plain", plain_case)):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        case = make(folder, gpt2_models)
        if name == "chat":
            case.gold(GOLD)
        config = write_config(folder / "config.yaml", case.settings)
        assert run_here("train", ["--config", config.name], folder, monkeypatch) == 0
        assert (folder / "run" / "evaluation" / "summary.json").is_file()


def test_a_mistake_seen_from_a_real_shell(tmp_path: Path) -> None:
    settings = {"output_dir": "run", "ppo": {"steps": 0}, "rollout": {"temprature": 1}}
    config = write_config(tmp_path / "config.yaml", settings)
    found = run_script("train", config, "--kl.beta", "-1", expected_code=2)
    assert found.stdout == ""
    assert "Traceback" not in found.stderr
    for part in ("3 problems", "ppo.steps", "rollout.temperature?", "kl.beta (command line)"):
        assert part in found.stderr
    assert not (tmp_path / "run").exists()


def test_each_process_of_many_refuses_and_nothing_is_written(
    tmp_path: Path, gpt2_models: dict[str, str]
) -> None:
    case = plain_case(tmp_path, gpt2_models)
    case.section("ppo")["minibatches"] = 6  # of 6 prompts: one response for two processes
    config = write_config(tmp_path / "config.yaml", case.settings)
    error = run_script("train", config, processes=2, expected_code=1).stderr
    # torchrun ends the second process when the first refuses, perhaps in the middle of a line.
    assert re.search(r"a minibatch has 1 responses", error), error
    assert not (tmp_path / "run").exists()


def test_a_reward_that_is_not_a_number_stops_the_run_by_name(
    tmp_path: Path,
    gpt2_models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(gpt2_models["reward"], broken)
    weights = load_file(broken / "model.safetensors")
    weights["score.weight"][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    case = plain_case(tmp_path, gpt2_models)
    case.source(path="./broken")
    config = write_config(tmp_path / "config.yaml", case.settings)
    assert run_here("train", ["--config", config.name], tmp_path, monkeypatch) == 2
    error = capsys.readouterr().err
    assert "reward.sources" in error and "the score is nan" in error and "Traceback" not in error


def test_data_of_the_helpers_is_what_the_tables_count_on(tmp_path: Path) -> None:
    data = write_chat_data(tmp_path)
    assert len(Path(data["prompts"]).read_text(encoding="utf-8").splitlines()) == len(THINGS) == 8
    assert write_jsonl(tmp_path / "x.jsonl", [{}]).endswith("x.jsonl")
