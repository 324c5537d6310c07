"""Bad input ends with a message and exit code 2, never with a traceback."""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import contextmanager

import click

from gradscale.cli.printable import printable
from gradscale.files.unwritable import Unwritable

# The disk, the quota, or the largest file that the system allows.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BadInput(click.ClickException):
    """Something that the user can put right."""

    exit_code = 2

    def format_message(self) -> str:
        """The message, which may quote what a file holds, fit for a terminal."""
        return printable(self.message)


def room_for(command: str) -> str:
    """The way out of a full disk.

    Example:
        >>> room_for("gradscale train --resume runs/mine")
        'Make room, and continue with `gradscale train --resume runs/mine`.'
    """
    return f"Make room, and continue with `{command}`."


@contextmanager
def bad_input(
    kinds: tuple[type[Exception], ...] = (ValueError, OSError), *, when_full: str = ""
) -> Generator[None]:
    """Turn the errors that the library raises on wrong values or missing files into `BadInput`.

    Args:
        kinds: which errors.
        when_full: what to do if the disk is full.
    """
    try:
        yield
    except Unwritable as error:
        full = error.errno in _FULL and when_full
        raise BadInput(f"{error} {when_full}" if full else str(error)) from error
    except kinds as error:
        raise BadInput(str(error)) from error
