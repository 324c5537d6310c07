"""The live display: what fits, what is counted, and plain text where it is asked for."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from gradscale.cli.display import Display
from gradscale.training import StepRecord

LABEL = "fp16, last-maximum, loss/16384, seed 2"


def terminal(width: int) -> Console:
    return Console(
        force_terminal=True, width=width, file=io.StringIO(), color_system=None, markup=False
    )


def drawn(display: Display, width: int) -> list[str]:
    screen = Console(width=width, record=True, file=io.StringIO())
    screen.print(display.progress.get_renderable())
    return screen.export_text().splitlines()


def test_steps_and_times_fit_into_eighty_columns():
    with Display(terminal(80), 32400) as display:
        display.begin("another run", 600)
        display.skip(600)
        on_step = display.begin(LABEL, 600)
        for step in range(123):
            on_step(StepRecord(step, 1.2345, 2.0**16, step < 8, None))
        lines = drawn(display, 80)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "…" not in text
    assert "723/32400" in text and "123/600" in text and text.count("0:00:0") >= 2
    assert LABEL in text and "loss 1.234  scale 2^16  skipped 8" in text


def test_a_long_label_wraps_and_nothing_else_does():
    with Display(terminal(60), 32400) as display:
        display.begin("fp16, openseq2seq-backoff, loss/16384, seed 12", 600)
        text = "\n".join(drawn(display, 60))
    assert "0/600" in text and "0/32400" in text and "…" not in text


def test_steps_of_an_earlier_session_count_as_done_but_not_for_the_speed():
    with Display(terminal(80), 30) as display:
        display.begin("first", 10)
        display.skip(10)
        on_step = display.begin("second", 10)
        display.skip(4)
        everything, current = display.progress.tasks
        assert (everything.completed, current.completed) == (14, 4)
        assert everything.speed is None and current.speed is None
        on_step(StepRecord(4, 1.0, 1.0, False, None))
        assert (everything.completed, current.completed) == (15, 5)


def on_a_terminal(*arguments: str, **environment: str) -> bytes:
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    program = [sys.executable, "-m", "gradscale.cli.main", *arguments]
    variables = {**os.environ, "TERM": "xterm-256color", **environment}
    process = subprocess.Popen(program, stdout=child, stderr=child, stdin=child, env=variables)
    os.close(child)
    output = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:
            break
        if not part:
            break
        output += part
    os.close(parent)
    assert process.wait(timeout=60) == 0
    return output


def test_no_color_writes_no_escape_sequence_to_a_terminal(tmp_path):
    tiny = ("compare", "--device", "cpu", "--steps", "2", "--batch-size", "4", "--threads", "1")
    few = ("--policy", "none", "--seeds", "1", "--loss-divisor", "1")
    output = on_a_terminal(*tiny, *few, "--no-color", "--out", str(tmp_path / "run"))
    assert b"ordinary loss" in output and b"\x1b" not in output
    resumed = ("compare", "--resume", str(tmp_path / "run"))
    assert b"\x1b" not in on_a_terminal(*resumed, NO_COLOR="1")
    assert b"\x1b" in on_a_terminal(*resumed, NO_COLOR="")
