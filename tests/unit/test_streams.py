"""What a person sees cannot end a run: letters, control characters, readers that have gone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli import ROOT
from rich.table import Table
from rich.text import Text

from rlhf_ppo import console as console_module
from rlhf_ppo.console import _SafeConsole, _wrapped, dialogue, sample_text, say
from rlhf_ppo.streams import TolerantStream, visible

SAY = """
from rlhf_ppo.console import say
from rlhf_ppo.errors import UserError
from rlhf_ppo.script import run_script
from rich.table import Table
from rlhf_ppo.console import console

def main(words):
    say("sample \\u4f60\\u597d \\u05e9\\u05dc\\u05d5\\u05dd \\ud800 [bold] \\x1b[31mred")
    table = Table()
    table.add_column("\\u4f60")
    console.print(table)
    print("plain \\u4f60")
    for _ in range(3000):
        say("a line that fills the pipe until nobody reads it any more")
    if "bad" in words:
        raise UserError("row 3: '\\u4f60 \\x1b[2J'")
    open("end", "w").write("the run went on")

run_script(main)
"""


def command(folder: Path, *words: str) -> list[str]:
    (folder / "say.py").write_text(SAY, encoding="utf-8")
    return [sys.executable, str(folder / "say.py"), *words]


def environment(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **more}


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "cp437", "ascii:strict"])
def test_a_sample_that_an_encoding_lacks_is_shown_with_other_signs(
    encoding: str, tmp_path: Path
) -> None:
    """The story: PYTHONIOENCODING=cp1252 and a Chinese prompt ended a run, no policy was saved."""
    found = subprocess.run(
        command(tmp_path),
        cwd=tmp_path,
        env=environment(PYTHONIOENCODING=encoding),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, b"")
    assert b"sample ?? ???? ? [bold] \\x1b[31mred" in found.stdout
    assert b"plain ?" in found.stdout and (tmp_path / "end").is_file()


def test_an_error_is_shown_in_any_encoding_and_moves_no_cursor(tmp_path: Path) -> None:
    found = subprocess.run(
        command(tmp_path, "bad"),
        cwd=tmp_path,
        env=environment(PYTHONIOENCODING="ascii"),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 2
    assert found.stderr == b"\nerror: row 3: '\\u4f60 \\x1b[2J'\n"


@pytest.mark.parametrize("where", ["| head -n 1", "> /dev/full", ">&-", "2>&- >&-"])
def test_a_run_goes_on_when_nobody_reads(where: str, tmp_path: Path) -> None:
    if "full" in where and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    words = " ".join(f"'{word}'" for word in command(tmp_path))
    found = subprocess.run(
        ["/bin/sh", "-c", f"{{ {words}; echo $? > code; }} {where}"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (tmp_path / "code").read_text(encoding="utf-8") == "0\n", found.stderr
    assert (tmp_path / "end").read_text(encoding="utf-8") == "the run went on", found.stderr
    assert b"Traceback" not in found.stderr and b"Exception ignored" not in found.stderr


def test_a_lost_reader_is_reported_once_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    out = TolerantStream(Gone())
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(console_module, "_lost_told", [])
    say("lost")
    for _ in range(2):
        console_module.report_lost_output()
    err = capsys.readouterr().err
    assert err.count("the run goes on") == 1 and "Broken pipe" in err
    assert out.write("later") == 5, "written to nowhere"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("one\r\ntwo\rthree", "one\ntwo\\x0dthree"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("שלום سلام\u200f", "שלום سلام\u200f"),  # right to left, but nothing that lasts
        ("half \udc80", "half \ufffd"),
        ("\x85 \x9b31m", "\\x85 \\x9b31m"),  # the escape sequences of one byte
        ("👩\u200d🔬 é", "👩\u200d🔬 é"),
    ],
)
def test_what_would_move_the_cursor_is_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_control_characters_are_spelled_out_in_tables_too() -> None:
    screen = _SafeConsole(file=io.StringIO(), force_terminal=True, color_system=None, width=60)
    table = Table()
    table.add_row(Text("\x1b[31m, the color of anger"))
    screen.print(table)
    assert "\x1b" not in screen.file.getvalue()  # type: ignore[attr-defined]
    assert "\\x1b[31m, the color" in screen.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", ["0", "1", "3", "20", "40"])
def test_a_narrow_terminal_gets_all_words(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 is what a pseudo-terminal says that was given no size."""
    file, size = io.StringIO(), {"COLUMNS": width}
    screen = _SafeConsole(
        file=file, force_terminal=True, color_system=None, soft_wrap=True, _environ=size
    )
    monkeypatch.setattr(console_module, "console", screen)
    say("  sample | where is the teapot and 你好你好你好 unbreakable" + "e" * 60)
    words = "".join(file.getvalue().split())
    assert words == "sample|whereistheteapotand你好你好你好unbreakable" + "e" * 60


def test_lines_break_between_words_and_a_path_stays_whole() -> None:
    path = "runs/" + "long/" * 10 + "report.html"
    rows = _wrapped(f"  written to {path} and shown there", 40)
    assert rows == ["  written to", f"    {path}", "    and shown there"]
    assert _wrapped("你好 " * 12, 40) == ["你好 " * 7 + "你好", "  " + "你好 " * 3 + "你好"]


def test_a_prompt_of_several_turns_is_shown_with_its_roles() -> None:
    turns = [
        {"role": "user", "content": "Where is the drum?"},
        {"role": "assistant", "content": "In the hall."},
        {"role": "user", "content": "And the saw?"},
    ]
    assert dialogue("plain") == "plain" and dialogue(turns[:1]) == "Where is the drum?"
    assert sample_text(turns, "There.\nToo.", 0.5).split("\n") == [
        "  sample | user: Where is the drum?",
        "         | assistant: In the hall.",
        "         | user: And the saw?",
        "         > There.",
        "           Too.   (score 0.50)",
    ]


def test_the_end_of_a_long_prompt_begins_with_a_whole_word() -> None:
    shown = sample_text("beginning " + "word " * 200 + "end", "yes", 1.0).split("\n")[0]
    assert shown.startswith("  sample | ... word word") and shown.endswith("word end")
