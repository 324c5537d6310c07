"""The folder that a command writes into: new, writable, gone again if it stays empty."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from gradscale.cli.errors import BadInput, bad_input
from gradscale.files.json_text import Json, read_json
from gradscale.training import DamagedRun, Interrupted, StopRequest, damaged, stop_on_signals

V = TypeVar("V")


def new_folder(out: Path | None, name: str, *, resumable: bool = True) -> Path:
    """Where a new run goes: `out`, or a dated folder under ``runs``.

    Args:
        out: what was asked for.
        name: of a folder that was not.
        resumable: whether the command has `--resume`.

    Raises:
        BadInput: if there is something in it already.
    """
    path = out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        # A folder that is there and empty may have been made for this run.
        in_use = any(path.iterdir())
    except OSError:
        # Not there yet, or unreadable, which `make_folder` will say.
        in_use = False
    if in_use:
        resume = f"Continue the run in it with `--resume {path}`, or choose"
        choose = resume if resumable else "Choose"
        raise BadInput(f"`{path}` is not empty. {choose} another `--out`.")
    return path


def make_folder(path: Path) -> None:
    """Make the folder of a run unless it is there.

    Raises:
        BadInput: if nothing can be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(path, os.W_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise BadInput(
            f"`{path}` cannot be written: {reason}. Choose another folder with `--out DIR`."
        )


def begun_with(path: Path, name: str, what: str, value_of: Callable[[Json], V]) -> V:
    """What the run or comparison in a folder was begun with.

    Args:
        path: of the folder.
        name: of the file that says so.
        what: is looked for, in a word.
        value_of: makes it of the file's content.

    Raises:
        BadInput: if there is no such file, or if it cannot be used.
    """
    with bad_input():
        stored = read_json(path / name)
    if stored is None:
        raise BadInput(f"`--resume {path}`: there is no {what} in this folder (no {name}).")
    # What is not there is a wrong path; what is there and wrong is damage.
    with bad_input(), damaged(path / name):
        return value_of(stored)


@contextmanager
def training_in(path: Path, resume: str, errors: Console) -> Generator[StopRequest]:
    """Around runs that write into a folder: a signal stops them, and they say how to go on.

    Args:
        path: of the folder.
        resume: the command that continues.
        errors: where to say so.
    """
    # Only these are the user's to mend; any other error of a training loop is a bug, and shows.
    problems = bad_input((DamagedRun, OSError), resume=resume)
    with stop_on_signals() as stop:
        try:
            with leaving_nothing(path), problems:
                yield stop
        except Interrupted:
            errors.print(f"Stopped. Continue with:\n\n    {resume}\n")
            raise SystemExit(stop.exit_code) from None


@contextmanager
def leaving_nothing(path: Path) -> Generator[None]:
    """If what runs inside fails before it has written anything, the folder goes again.

    Args:
        path: of the folder; whatever is in it stays, but empty folders.
    """
    try:
        yield
    except BadInput:
        # The deepest first; `rmdir` refuses what is not empty.
        for inside in [*sorted(path.rglob("*"), reverse=True), path]:
            with suppress(OSError):
                inside.rmdir()
        raise
