"""A folder in which documented commands can really be given: tiny data, finished runs, a judge."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cli import ENVIRONMENT, ROOT
from documented import PAGES, WITH_CONFIG, named_files, script_of, simple_commands

# Programs are those beside this Python; what is printed is seen at once.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
HERE = {"PATH": PATH, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
TRAINING = ("train", "sft", "reward_model", "ppo")
# What each stage of its own finds in its folder, made by those before it.
BEFORE = {"reward_model": ["sft"], "ppo": ["sft", "reward_model"]}
BEFORE |= {"evaluate": ["sft", "reward_model", "policy"]}
RUNS = ("a", "b", "c", "rloo", "seed201", "mine-1", "other-1", "experiments/rloo-201")
# What makes any run short; a command's own settings come before these.
SHORT = {
    "ppo.steps": "2", "ppo.warmup_steps": "0", "ppo.value_warmup_steps": "0",
    "rollout.batch_size": "4", "rollout.max_new_tokens": "8", "checkpoint.every": "1",
    "evaluation.every": "1", "evaluation.prompts_during_training": "2", "evaluation.best_of": "2",
    "evaluation.best_of_prompts": "2", "evaluation.bootstrap_samples": "100",
    "hardware.mixed_precision": "no",
}  # fmt: skip
# What configs take from the hub or a large model, from here instead.
LOCAL = {
    "configs/lora_7b.yaml": {
        "reward.sources": "[{kind: model, path: judge}]",
        "data.heldout_prompts": "mine/heldout_prompts.jsonl",
        "policy.path": "before",
        "policy.dtype": "float32",
    },
    "my.yaml": {"policy.path": "before", "reward.sources": "[{kind: model}]"},
}
GOLD = "def score(prompts, responses):\n    return [{'score': len(r) / 10} for r in responses]\n"


def make_desk(folder: Path) -> Path:
    """The repository as a reader has it, its data cut short, and what commands speak of."""
    for name in ("scripts", "configs", "docs", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    for file in sorted((ROOT / "data").rglob("*.*")):
        copy = folder / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".py":
            shutil.copy(file, copy)
        elif file.suffix == ".jsonl":
            rows = file.read_text(encoding="utf-8").splitlines(keepends=True)
            copy.write_text("".join(rows[: 12 if "heldout" in file.name else 48]), encoding="utf-8")
    quickstart, mine = folder / "data" / "quickstart", folder / "mine"
    mine.mkdir()
    for name in ("demonstrations", "preferences", "prompts"):
        shutil.copy(quickstart / f"{name}.jsonl", mine)
    for name in ("heldout_preferences", "heldout_prompts"):
        shutil.copy(quickstart / f"{name}.jsonl", mine)
    (mine / "gold.py").write_text(GOLD, encoding="utf-8")
    shutil.copy(mine / "prompts.jsonl", folder / "my_prompts.jsonl")
    shutil.copy(mine / "heldout_prompts.jsonl", folder)
    (folder / "text.jsonl").write_text('{"text": "Please and thank you."}\n' * 8, encoding="utf-8")
    (folder / "questions.txt").write_text("Where is the kettle?\n", encoding="utf-8")
    for page in PAGES:
        for name, text in named_files(page.read_text(encoding="utf-8")).items():
            (folder / name).write_text(text, encoding="utf-8")
    return folder


def fill_desk(desk: Path) -> None:
    """Finished runs and models, made by two documented commands."""
    for command in ("python scripts/train.py", "python scripts/train.py --config my.yaml"):
        if command.endswith("my.yaml"):  # what is its model before
            (desk / "before").symlink_to(desk / "runs" / "quickstart" / "sft")
        give(command, desk)
    for run in RUNS:
        shutil.copytree(desk / "runs" / "quickstart", desk / "runs" / run)
        config = desk / "runs" / run / "config.yaml"
        text = config.read_text(encoding="utf-8").replace("runs/quickstart", f"runs/{run}")
        config.write_text(text, encoding="utf-8")
    for name, model in (("judge", "reward_model"), ("tuned", "policy"), ("my_adapter", "policy")):
        (desk / name).symlink_to(desk / "runs" / "quickstart" / model)


def shortened(
    words: list[str], desk: Path, number: int, judge: str
) -> tuple[list[str], Path | None]:
    """A command that does as much as the documented one, for less; and where it is given.

    What trains does so in a new folder, which holds the stages before it.

    None for the folder: at the desk. An empty command is one that needs what is not here.
    """
    script = script_of(words)
    if script is None:
        here = {"pytest": [*words, "--collect-only"], "ruff": words, "mypy": words}
        return here.get(words[0], []), ROOT
    launcher, path, arguments = script
    name = Path(path).stem
    launcher = [sys.executable] if launcher[0].startswith("python") else launcher
    if name in WITH_CONFIG:
        config = arguments[arguments.index("--config") + 1] if "--config" in arguments else ""
        added = SHORT | LOCAL.get(config, {})
        fresh = name in TRAINING or config == "my.yaml"
        if fresh and name != "plan" and "--resume" not in arguments and number:
            added = added | {"output_dir": f"runs/new{number}"}
            for stage in BEFORE.get(name, []):
                shutil.copytree(desk / "runs" / "mine" / stage, desk / f"runs/new{number}" / stage)
        if "--evaluation.judge.url" in arguments:
            added = added | {"evaluation.judge.url": judge}
        if "--resume" in arguments:  # a run's own settings, which it has been shortened by
            added = {k: v for k, v in added.items() if k not in SHORT or name in TRAINING}
        given = [word for key, value in added.items() for word in (f"--{key}", value)]
        return [*launcher, path, *arguments, *given], None
    more = {
        "benchmark": ["--shape", "XS", "--steps", "1", "--variants", "shared"],
        "reward_server": ["--port", "0"],
        "chat": [
            "--max_new_tokens",
            "4",
            *(["--port", free_port()] if "--web" in arguments else []),
        ],
        "config_docs": ["--check"],
        "make_data": ["--check"],
        "mutants": ["--only", "masked"],
    }
    if "--peer_python" in arguments:
        return [], None  # TRL 1.12.0 in an environment of its own
    at_home = name in ("config_docs", "make_data", "mutants")
    return [*launcher, path, *arguments, *more.get(name, [])], ROOT if at_home else None


def give(text: str, desk: Path, number: int = 0, judge: str = "") -> list[str]:
    """Give each command of a documented line in the desk's folder; returns what was given.

    Raises:
        AssertionError: a command failed, with the end of what it said.
    """
    given = []
    for words in simple_commands(text):
        command, folder = shortened(words, desk, number, judge)
        if not command:
            continue
        # The shell expands patterns and lets a file be read, as it does for a reader.
        line = " ".join(w if "*" in w and "=" not in w else shlex.quote(w) for w in command)
        if " < " in text:
            line += f" < {shlex.quote(text.rpartition(' < ')[2])}"
        given.append(line)
        run_line(line, folder or desk, serves="reward_server" in line or "--web" in line)
    return given


def run_line(line: str, cwd: Path, serves: bool, limit: float = 300) -> None:
    """Run a shell line to its end; one that serves until it says where, then it is ended."""
    with subprocess.Popen(
        ["bash", "-c", f"exec {line}"], cwd=cwd, text=True,
        env=os.environ | ENVIRONMENT | HERE,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        timer = threading.Timer(limit, process.kill)
        timer.start()
        said = ""
        assert process.stdout is not None
        for printed in process.stdout:
            said += printed
            if serves and re.search(r"http://127\.0\.0\.1:\d+", printed):
                process.terminate()
        timer.cancel()
        code = process.wait()
    assert code == 0 or (serves and "http://127.0.0.1" in said), f"{line}\n{said[-3000:]}"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def stand_in_judge() -> Iterator[str]:
    """A chat endpoint that finds everything equal; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = {"choices": [{"message": {"role": "assistant", "content": "[[C]]"}}]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
