"""The folder that a command writes into: new, writable, gone again if it stays empty."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from gradscale.cli.errors import BadInput


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
        for inside in sorted(path.rglob("*"), reverse=True):
            _remove_empty(inside)
        _remove_empty(path)
        raise


def _remove_empty(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()
