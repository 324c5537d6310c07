"""Regular files alone: read, or appended to, without waiting for the other end of a pipe."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from gradscale.files.unwritable import Unwritable, writing

# Windows has none of the three, and nothing that they guard against at the end of a plain path.
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)
BINARY = getattr(os, "O_BINARY", 0)

LARGEST_SIDE_FILE = 2**24
"""Bytes of settings or of a trainer's state beside what is read."""

_KINDS = (
    (stat.S_ISDIR, "it is a folder"),
    (stat.S_ISLNK, "it is a symbolic link, which is not followed"),
    (stat.S_ISFIFO, "it is a pipe"),
)


def obstacle_in(mode: int) -> str:
    """What is in the way of writing to a file of this mode; nothing if it is a regular one.

    Example:
        >>> obstacle_in(stat.S_IFIFO), obstacle_in(stat.S_IFREG), obstacle_in(stat.S_IFCHR)
        ('it is a pipe', '', 'it is a device')
    """
    if stat.S_ISREG(mode):
        return ""
    return next((words for test, words in _KINDS if test(mode)), "it is a device")


def in_the_way(path: Path) -> str:
    """What is at `path` that is no regular file, in words; nothing if it is one, or not there."""
    try:
        return obstacle_in(path.lstat().st_mode)
    except FileNotFoundError:
        return ""


def open_to_append(path: Path) -> int:
    """A descriptor of a regular file that only grows; it is made if it is missing.

    Raises:
        Unwritable: if it is a link, a pipe, a device or a folder, or cannot be opened.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_FOLLOW | NO_WAIT | BINARY
    with writing(path):
        obstacle = in_the_way(path)
        if obstacle:
            raise Unwritable(path, obstacle)
        descriptor = os.open(path, flags, 0o666)
        # Looked at again: between the two somebody may have put something else there.
        obstacle = obstacle_in(os.fstat(descriptor).st_mode)
        if obstacle:
            os.close(descriptor)
            raise Unwritable(path, obstacle)
    return descriptor


def open_regular(path: Path, most: int | None = None) -> BinaryIO:
    """A file opened for reading, neither a pipe nor a device, and no longer than `most` bytes.

    A pipe without a writer would block for ever, a link to an endless device fill the memory. What
    was opened is asked, not the path, under which another file may lie a moment later.

    Args:
        path: of the file; links are followed, as nothing is written.
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
        ValueError: it is no regular file, but a device
    """
    # A pipe without a writer then opens at once, and is refused below; else `open` would wait.
    flags = os.O_RDONLY | NO_WAIT | BINARY
    file = open(path, "rb", opener=lambda name, _: os.open(name, flags))
    facts = os.fstat(file.fileno())
    obstacle = obstacle_in(facts.st_mode).replace("it is", "it is no regular file, but")
    if not obstacle and most is not None and facts.st_size > most:
        obstacle = f"it has {facts.st_size:,} bytes, and no more than {most:,} are read"
    if obstacle:
        file.close()
        raise ValueError(obstacle)
    return file


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
    # No more than `most` even if it has grown since it was measured.
    with open_regular(path, most) as file:
        return file.read(most).decode()
