"""Progress: lines into files and pipes, each written at once; a bar on a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.training.progress import Teller, duration

PROGRAM = """
import sys
from adapters.training.progress import telling
with telling() as teller:
    for epoch in range(3):
        teller.at("training", (epoch + 0.5) / 3, "loss 1.0")
        teller.reached("training", (epoch + 1) / 3, f"epoch {epoch + 1}/3")
        if epoch == 0 and len(sys.argv) > 1:
            sys.stdin.readline()
print("done")
"""


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_tell_what_is_reached_and_how_long_it_takes() -> None:
    lines, clock = io.StringIO(), Clock()
    teller = Teller(lines, every_s=30, clock=clock)
    teller.at("reading 9 files", 0.5)
    teller.note("8 pictures   of 2\nclasses")
    for epoch in range(1, 5):
        clock.now += 60
        teller.reached("training", epoch / 4, f"epoch {epoch}/4")
    assert lines.getvalue().splitlines() == [
        "8 pictures of 2 classes", "epoch 1/4", "epoch 2/4, 2 min left", "epoch 3/4, 60 s left", "epoch 4/4",
    ]  # fmt: skip


def test_a_long_stage_is_not_silent() -> None:
    lines, clock = io.StringIO(), Clock()
    teller = Teller(lines, every_s=30, clock=clock)
    for percent in range(100):
        teller.at("training", percent / 100, "loss 0.500")
        clock.now += 10
    told = lines.getvalue().splitlines()
    assert told[0] == "training 3%, loss 0.500, 16 min left"
    assert len(told) == 33


def test_a_resumed_stage_counts_its_own_time_only() -> None:
    lines, clock = io.StringIO(), Clock()
    teller = Teller(lines, clock=clock)
    teller.at("training", 0.5)
    clock.now += 10
    teller.reached("training", 0.75, "epoch 3/4")
    assert lines.getvalue() == "epoch 3/4, 10 s left\n"


def test_warnings_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Teller().warn("this\nand that")
    assert capsys.readouterr() == ("", "warning: this and that\n")


def test_names_that_cannot_be_shown_do_not_end_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    lines = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Teller(lines).note("\udcff \x1b[31m Äpfel/ holds no pictures")
    lines.seek(0)
    assert lines.read() == "? ?[31m \\xc4pfel/ holds no pictures\n"
    Teller().warn("\udcff")
    assert capsys.readouterr().err == "warning: ?\n"


class Gone(io.StringIO):
    """A pipe that nobody reads any more."""

    writes = 0

    def write(self, _: str) -> int:
        self.writes += 1
        raise BrokenPipeError


def test_a_log_that_is_gone_ends_no_training() -> None:
    gone = Gone()
    teller = Teller(gone)
    for epoch in range(3):
        teller.reached("training", epoch / 3, "an epoch")
    assert gone.writes == 1


def test_durations() -> None:
    assert [duration(s) for s in (3.2, 89, 600, 3600 * 3 + 300)] == ["3 s", "89 s", "10 min", "3 h 5 min"]


def test_a_pipe_gets_each_line_at_once() -> None:
    command = [sys.executable, "-c", PROGRAM, "wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"epoch 1/3")  # while the program still waits for its input
        rest, errors = process.communicate(b"\n", timeout=60)
    assert re.findall(rb"epoch \d/3", rest) == [b"epoch 2/3", b"epoch 3/3"]
    assert errors == b""


def test_a_file_gets_lines_though_nothing_else_does(tmp_path: Path) -> None:
    for name, streams in (("both", ("stdout", "stderr")), ("out", ("stdout",))):
        with (tmp_path / name).open("wb") as file:
            others = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | dict.fromkeys(streams, file)
            subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60, **others)  # type: ignore[call-overload]
        assert re.findall(r"epoch \d/3", (tmp_path / name).read_text()) == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def on_a_terminal(**streams: int) -> str:
    """What a terminal shows of the program, whose other streams go elsewhere."""
    ours, theirs = pty.openpty()
    given = {"stdin": theirs, "stdout": theirs, "stderr": theirs} | streams
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    shown = b""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, **given) as process:  # type: ignore[call-overload]
        os.close(theirs)
        while select.select([ours], [], [], 60)[0]:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # nobody holds the other end any more
                break
            if not chunk:
                break
            shown += chunk
        process.wait(60)
    os.close(ours)
    return shown.decode()


def test_a_terminal_shows_a_bar_and_no_lines(tmp_path: Path) -> None:
    shown = on_a_terminal()
    assert "━" in shown
    assert "training, loss 1.0" in shown
    assert "epoch 1/3" not in shown
    with (tmp_path / "file").open("wb") as file:  # the bar stays where the person is
        assert "━" in on_a_terminal(stdout=file.fileno())
    assert "epoch 3/3" in (tmp_path / "file").read_text()
    reader, writer = os.pipe()  # whatever reads it may write to the same terminal
    assert "━" not in on_a_terminal(stdout=writer)
    os.close(writer)
    with os.fdopen(reader) as lines:
        assert "epoch 3/3" in lines.read()
