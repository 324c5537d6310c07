"""A stranger's file as a tree of plain values, read in a process that runs nothing of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from gradscale.doctor.inert.tree import rebuild
from gradscale.files.regular import open_regular

MEGABYTES = 384
"""Of memory, beside four times what the file takes on the disk."""

SECONDS = 10
"""Of the processor, beside one for each 32 MB of the file."""

_PATIENCE = 6  # a machine that others use as well gives a process a sixth of its time

# Without its packages' own `__init__`, which import torch: a process starts in 30 ms instead of
# three seconds, and has nothing at hand that a file could ask for.
_PACKAGES = ("gradscale", "gradscale.doctor")
_START = """
import sys, types
for name, folder in zip({names!r}, {folders!r}):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [folder]
from gradscale.doctor.inert.child import answer_standard_input
answer_standard_input()
"""


def read_file(path: Path, *, megabytes: int = MEGABYTES, seconds: int = SECONDS) -> object:
    """What a file holds, as dictionaries, lists, numbers, texts and stand-ins.

    Tensors stay in the file; it is said of each how many of its floats are infinite or NaN.

    Args:
        path: of a checkpoint, or of JSON.
        megabytes: of memory that reading may take, beside what the file takes on the disk.
        seconds: of the processor that it may take, beside what its size asks for.

    Raises:
        ValueError: if it is neither, or damaged, or no regular file, or takes more than that.
        OSError: if it cannot be read.
    """
    with open_regular(path) as file:
        # Larger files may take longer, in proportion; bombs are small.
        size = _size(file)
        answer = _ask(file, megabytes + 4 * size // 2**20, seconds + size // 2**25, size)
    if answer.startswith('"'):
        raise ValueError(json.loads(answer))
    return rebuild(answer)


def _size(file: IO[bytes]) -> int:
    """Bytes on the disk: a sparse file may claim any length."""
    facts = os.fstat(file.fileno())
    # `st_blocks` counts 512 bytes whatever the file system's own block is.
    return min(facts.st_size, getattr(facts, "st_blocks", facts.st_size) * 512)


def _ask(file: IO[bytes], megabytes: int, seconds: int, size: int) -> str:
    here = Path(__file__).parents
    start = _START.format(names=_PACKAGES, folders=(str(here[2]), str(here[1])))
    # Neither the environment, nor installed packages, nor the folder at hand have a say.
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", start]
    try:
        done = subprocess.run(
            [*command, str(megabytes), str(seconds), str(size)],
            stdin=file, capture_output=True, timeout=_PATIENCE * (seconds + 1), check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ValueError(_too_long(seconds)) from None
    if done.returncode == 0:
        return done.stdout.decode()
    # SIGXCPU, or a stack that overflowed, or an allocation that nobody checks for failure.
    if done.returncode == -getattr(signal, "SIGXCPU", 0):
        raise ValueError(_too_long(seconds))
    raise ValueError(
        f"it ended the process that read it, which has {megabytes} MB of memory: it is no pickle "
        "that Python could have written"
    )


def _too_long(seconds: int) -> str:
    return f"reading it takes longer than {seconds} s: no checkpoint does"
