"""Talking to models as a person does: on a pseudo-terminal, through a pipe, on a web page."""

from __future__ import annotations

import io
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pexpect
import pytest
import torch
from cli import ENVIRONMENT, ROOT, run_here, write_config
from helpers import byte_tokenizer
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlhf_ppo.chat.conversation import BrokenOffError, Conversation, Pieces
from rlhf_ppo.chat.models import Settings, find_models, load_model
from rlhf_ppo.chat.terminal import Chat
from rlhf_ppo.data.template import encode_prompt
from rlhf_ppo.errors import UserError

CPU = torch.device("cpu")


def write_model(folder: Path, seed: int, positions: int = 4096) -> None:
    """A model that babbles in bytes and hardly ever stops."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=positions,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.top_k = 1  # what a folder says of sampling is not what training did
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its reference and its policy."""
    folder: Path = tmp_path_factory.mktemp("chat") / "run"
    write_model(folder / "sft", 1)
    write_model(folder / "policy", 2)
    settings = {
        "output_dir": "runs/moved_since",
        "policy": {"scratch": {}},
        "sft": {},
        "reward_model": {},
        "rollout": {"max_new_tokens": 20, "temperature": 0.7},
        "data": {"system_prompt": "Be brief."},
    }
    write_config(folder / "config.yaml", settings)
    return folder


@pytest.fixture
def conversation(run: Path) -> Conversation:
    (_, policy), _ = find_models([str(run)])
    return Conversation(load_model(policy, CPU))


def quiet(piece: str) -> None:
    """Nobody listens."""


def test_a_run_folder_stands_for_its_reference_and_policy_wherever_it_lies(run: Path) -> None:
    found, settings = find_models([str(run)])
    assert [(model.name, Path(model.path)) for model in found] == [
        ("reference", run / "sft"),
        ("policy", run / "policy"),
    ]
    assert settings == Settings(temperature=0.7, system="Be brief.", max_new_tokens=20)


def test_models_with_one_name_are_told_apart(run: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "policy", 3)
    found, _ = find_models([str(run / "policy"), str(tmp_path / "policy"), str(run)])
    assert len({model.name for model in found}) == 4


def test_nothing_but_the_temperature_shapes_the_answers(conversation: Conversation) -> None:
    """The story: a folder's top-k, or Transformers' own of 50, made another policy of it."""
    seen: list[Any] = []
    generate = conversation.model.lm.generate
    conversation.model.lm.generate = lambda **words: seen.append(words) or generate(**words)
    one, two = (
        conversation.answer("hello", Settings(seed=seed, max_new_tokens=30), quiet)
        for seed in (1, 2)
    )
    assert one != two, "top_k = 1 of the folder would have made them equal"
    config = conversation.model.lm.generation_config
    assert (config.top_k, config.top_p) == (0, 1.0)
    assert config.eos_token_id == list(conversation.model.stop_ids)


def test_the_pieces_are_the_answer_and_the_seed_decides(conversation: Conversation) -> None:
    pieces: list[str] = []
    settings = Settings(max_new_tokens=30)
    first = conversation.answer("hello", settings, pieces.append)
    assert "".join(pieces) == first and len(pieces) > 1
    conversation.reset()
    assert conversation.answer("hello", settings, quiet) == first
    greedy = Settings(temperature=0, max_new_tokens=30)
    conversation.reset()
    one = conversation.answer("hello", greedy, quiet)
    conversation.reset()
    assert conversation.answer("hello", Settings(0, 9, None, 30), quiet) == one


def test_a_letter_of_several_bytes_comes_whole(conversation: Conversation) -> None:
    tokenizer = conversation.model.tokenizer
    pieces: list[str] = []
    streamer = Pieces(tokenizer, pieces.append)
    streamer.put(torch.tensor([[1, 2, 3]]))  # the prompt is not repeated
    ids = tokenizer("né€", add_special_tokens=False)["input_ids"]
    assert len(ids) > 3
    for token in ids:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert pieces == ["n", "é", "€"]


def test_a_model_hears_what_was_said_to_it_and_by_it(conversation: Conversation) -> None:
    prompts: list[str] = []
    generate = conversation.model.lm.generate

    def hear(**words: Any) -> Any:
        prompts.append(conversation.model.tokenizer.decode(words["input_ids"][0]))
        return generate(**words)

    conversation.model.lm.generate = hear
    settings = Settings(system="Be brief.", max_new_tokens=5)
    answer = conversation.answer("first", settings, quiet)
    conversation.answer("second", settings, quiet)
    for words in ("Be brief.", "first", answer, "second"):
        assert words in prompts[1]
    conversation.reset()
    conversation.answer("third", settings, quiet)
    assert "first" not in prompts[2]


def test_an_answer_that_is_broken_off_stays_as_far_as_it_came(conversation: Conversation) -> None:
    heard: list[str] = []

    def enough(piece: str) -> None:
        heard.append(piece)
        if len(heard) == 3:
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        conversation.answer("hello", Settings(max_new_tokens=500), enough)
    assert conversation.history[-1] == {"role": "assistant", "content": "".join(heard)}


def test_a_conversation_without_room_is_refused_and_can_begin_anew(tmp_path: Path) -> None:
    write_model(tmp_path / "small", 1, positions=48)
    (named,), _ = find_models([str(tmp_path / "small")])
    small = Conversation(load_model(named, CPU))
    with pytest.raises(UserError, match=r"48 tokens.*reset"):
        small.answer("x" * 60, Settings(), quiet)
    assert small.history == []
    small.answer("x", Settings(), quiet)


def test_a_model_without_a_template_goes_on_with_the_words_alone(tmp_path: Path) -> None:
    write_model(tmp_path / "plain", 1)
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    (named,), _ = find_models([str(tmp_path / "plain")])
    plain = Conversation(load_model(named, CPU))
    assert not plain.model.chats
    seen: list[Any] = []
    generate = plain.model.lm.generate
    plain.model.lm.generate = lambda **words: seen.append(words["input_ids"]) or generate(**words)
    plain.answer("abc", Settings(system="unheard", max_new_tokens=3), quiet)
    assert plain.model.tokenizer.decode(seen[0][0]) == "abc"


def test_an_adapter_folder_speaks_as_base_and_adapter_together(run: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(run / "sft")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    found, _ = find_models([str(tmp_path / "adapter"), str(run / "sft")])
    alone, bare = (Conversation(load_model(named, CPU)) for named in found)
    greedy = Settings(temperature=0, max_new_tokens=20)
    answer = alone.answer("hello", greedy, quiet)
    ids = encode_prompt(alone.model.tokenizer, [{"role": "user", "content": "hello"}])
    expected = adapted.eval().generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)
    words = alone.model.tokenizer.decode(expected[0, len(ids) :], skip_special_tokens=True)
    assert answer == words != bare.answer("hello", greedy, quiet)


def test_a_narrow_terminal_shows_one_below_the_other(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = find_models([str(run)])
    models = [load_model(named, CPU) for named in found]
    shown = {}
    for width in (40, 100):
        screen = Console(force_terminal=True, width=width, file=io.StringIO(), color_system=None)
        monkeypatch.setattr("rlhf_ppo.chat.terminal.console", screen)
        lines = iter(["hello", "/quit"])
        monkeypatch.setattr("builtins.input", lambda _, lines=lines: next(lines))
        Chat(models, Settings(max_new_tokens=5)).talk()
        shown[width] = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "reference: " in shown[40] and "policy: " in shown[40] and "│" not in shown[40]
    assert re.search("reference +┃ *policy", shown[100])


def test_the_page_needs_its_extra(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rlhf_ppo.chat.session.find_spec", lambda name: None)
    assert run_here("chat", [str(run), "--web"], run, monkeypatch) == 2
    assert "pip install 'rlhf_ppo[web]'" in capsys.readouterr().err


BAD = {
    "no such folder": (["/nowhere/at/all"], "/nowhere/at/all"),
    "temperature": (["--temperature", "hot"], "'hot' is not a number"),
    "negative temperature": (["--temperature", "-1"], "temperature"),
    "seed": (["--seed", "1.5"], "'1.5' is not a whole number"),
    "length": (["--max_new_tokens", "0"], "must be 1 or more"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_message(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = BAD[name]
    path = [] if words[0].startswith("/") else [str(run)]
    assert run_here("chat", [*path, *words], run, monkeypatch) == 2
    assert message in capsys.readouterr().err


def test_lines_from_a_pipe_are_prompts_each_on_its_own(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "hello\n/temperature 0\n/temperature hot\n/nothing\nhello\n\nhello\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert run_here("chat", [str(run)], run, monkeypatch) == 0
    out = capsys.readouterr().out
    assert out.count("reference: ") == out.count("policy: ") == 3
    assert "'hot' is not a number" in out and "/nothing is no command" in out
    drawn, *greedy = [part.split("policy: ")[1] for part in out.split("> hello")[1:]]
    assert greedy[0].strip() == greedy[1].strip(), "no history in between"
    assert drawn.strip()[:20] != greedy[0].strip()[:20]


@pytest.fixture
def terminal(run: Path) -> Iterator[Any]:
    """scripts/chat.py on a pseudo-terminal of 100 columns, with long answers."""
    child = pexpect.spawn(
        sys.executable,
        [str(ROOT / "scripts" / "chat.py"), str(run), "--max_new_tokens", "3000"],
        env={"PATH": "/usr/bin:/bin", "TERM": "xterm", "PYTHONPATH": str(ROOT)} | ENVIRONMENT,
        dimensions=(40, 100),
        timeout=60,
        encoding="utf-8",
        codec_errors="replace",
    )
    yield child
    child.close(force=True)


def test_on_a_terminal_answers_stream_break_off_and_the_end_is_clean(terminal: Any) -> None:
    terminal.expect("reference: .*policy: .*temperature 0.7, seed 1")
    terminal.expect("> ")
    terminal.sendline("/temperature 0")  # greedy babble goes round in circles and never stops
    terminal.expect("greedy, seed 1")
    terminal.sendline("hello")
    terminal.expect("reference.*policy")  # side by side
    for _ in range(3):  # it grows, long before all 3000 tokens are there
        terminal.expect(r"│")
    terminal.sendintr()
    terminal.expect("broken off")
    terminal.expect("> ")
    terminal.sendintr()
    terminal.expect("Ctrl-D ends")
    terminal.sendline("/reset")
    terminal.expect("forgotten")
    terminal.sendline("/quit")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


@pytest.fixture
def page(run: Path) -> Iterator[tuple[str, Any]]:
    """Address of the web page, and the process that serves it."""
    pytest.importorskip("nicegui", reason="the page is an extra: pip install 'rlhf_ppo[web]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(run), "--web", "--port", str(port), "--max_new_tokens", "40"]
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "chat.py"), *words],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)} | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    address = f"http://127.0.0.1:{port}/"
    for _ in range(300):
        try:
            urllib.request.urlopen(address, timeout=5)
            break
        except OSError:
            assert server.poll() is None, server.communicate()[0]
            time.sleep(0.2)
    yield address, server
    server.kill()
    server.communicate()


def test_on_the_page_both_columns_answer_and_no_other_host_is_asked(page: Any) -> None:
    address, server = page
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser_path = shutil.which("chromium")
    if browser_path is None:
        pytest.skip("no chromium on this machine")
    asked: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("websocket", lambda stream: asked.append(stream.url))
        tab.goto(address)
        for turn in (1, 2):
            tab.get_by_label("Say something").fill(f"hello {turn}")
            tab.get_by_label("Say something").press("Enter")
            tab.get_by_role("button", name="Send").wait_for()
            answers = tab.locator(".answer")
            sync_api.expect(answers).to_have_count(2 * turn)
            tab.wait_for_function(
                "n => [...document.querySelectorAll('.answer')].filter("
                "a => a.innerText.split('\\n').slice(1).join('').trim()).length == n",
                arg=2 * turn,
            )
            sync_api.expect(tab.get_by_role("button", name="Send")).to_be_enabled()
        assert tab.get_by_text("hello 1").count() == 1, "what was said stands above both answers"
        tab.get_by_role("button", name="New conversation").click()
        sync_api.expect(answers).to_have_count(0)
        for scheme, dark in (("dark", True), ("light", False)):
            tab.emulate_media(color_scheme=scheme)
            paper = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
            tab.wait_for_function(f"{paper}[0] < 128 == {str(dark).lower()}")
        tab.set_viewport_size({"width": 360, "height": 640})
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        box = tab.locator(".composer").bounding_box()
        assert box["y"] + box["height"] == pytest.approx(640, abs=1), "the composer stays below"
        assert not tab.get_by_label("System prompt").is_visible(), "folded away"
        browser.close()
    assert asked and all(url.split("/")[2] == address.split("/")[2] for url in asked), asked
    server.send_signal(signal.SIGINT)
    assert server.wait(20) == 0


def test_a_port_in_use_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nicegui", reason="the page is an extra: pip install 'rlhf_ppo[web]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert run_here("chat", [str(run), "--web", "--port", port], run, monkeypatch) == 2
    assert f"--port {port}" in capsys.readouterr().err
