"""Files that somebody else may have written, opened only if they are files."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

LARGEST_SIDE_FILE = 2**24
"""Bytes of settings or of a trainer's state beside what is read."""


def open_regular(path: Path, most: int | None = None) -> BinaryIO:
    """A file opened for reading, neither a pipe nor a device, and no longer than `most` bytes.

    A pipe without a writer would block for ever, a link to an endless device fill the memory. What
    was opened is asked, not the path, under which another file may lie a moment later.

    Args:
        path: of the file; links are followed.
        most: bytes that it may have.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is no regular file, or longer than that.

    Example:
        >>> with open_regular(Path(__file__)) as file:
        ...     len(file.read(16))
        16
        >>> open_regular(Path("/dev/null"))
        Traceback (most recent call last):
            ...
        ValueError: it is no regular file, but a pipe, a device, a socket or a folder
    """
    # Without O_NONBLOCK the call itself waits for the writer of a pipe; neither is on Windows.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = open(path, "rb", opener=lambda name, _: os.open(name, flags))
    facts = os.fstat(file.fileno())
    regular = stat.S_ISREG(facts.st_mode)
    if regular and (most is None or facts.st_size <= most):
        return file
    file.close()
    if not regular:
        raise ValueError("it is no regular file, but a pipe, a device, a socket or a folder")
    raise ValueError(f"it has {facts.st_size:,} bytes, and no more than {most:,} are read")


def read_regular(path: Path, most: int) -> str:
    """The text of a small file.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no regular file, longer than that, or not UTF-8.

    Example:
        >>> len(read_regular(Path(__file__), 2**20)) > 1000
        True
    """
    with open_regular(path, most) as file:
        return file.read(most).decode()
