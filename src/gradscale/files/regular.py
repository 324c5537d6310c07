"""Files opened without following a link and without waiting for the other end of a pipe."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from gradscale.files.unwritable import Unwritable, writing

# Windows has none of the three, and nothing that they guard against at the end of a plain path.
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)
BINARY = getattr(os, "O_BINARY", 0)

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
