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


@contextmanager
def bad_input(
    kinds: tuple[type[Exception], ...] = (ValueError, OSError), *, resume: str = ""
) -> Generator[None]:
    """Turn the errors that the library raises on wrong values or missing files into `BadInput`.

    Args:
        kinds: which errors.
        resume: the command that goes on once there is room on a disk that was full.
    """
    try:
        yield
    # First: it is an `OSError`, and has a way out of its own.
    except Unwritable as error:
        room = f" Make room, and continue with `{resume}`."
        full = error.errno in _FULL and resume
        raise BadInput(f"{error}{room if full else ''}") from error
    except kinds as error:
        raise BadInput(str(error)) from error
