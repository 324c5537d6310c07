"""One writer: a lock on an open file or folder that dies with the process that holds it."""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path

from gradscale.files.unwritable import writing

try:
    import fcntl
except ImportError:  # Windows: a file that is open for writing has no such lock there
    fcntl = None

_HELD: weakref.WeakSet[WriterLock] = weakref.WeakSet()
# A file system without locks, as some network mounts are, is written to all the same.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}


class Locked(BlockingIOError):
    """Somebody else writes there."""


class WriterLock:
    """Holds a descriptor, locked, until `release` or the end of this process.

    The kernel drops the lock with the last copy of the descriptor, so a killed process leaves
    nothing behind. A forked child gets a copy, and closes it at once: it is no writer, and must not
    keep the lock alive. A second lock on the same file is refused within one process, too.

    Args:
        descriptor: of the file or folder; closed by `release`.
        refusal: what to say if somebody else has it.

    Raises:
        Locked: with `refusal`; the descriptor is closed.
    """

    def __init__(self, descriptor: int, refusal: str) -> None:
        self._descriptor: int | None = descriptor
        self._process = os.getpid()
        try:
            self._take(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            raise Locked(refusal) from None
        self._close = weakref.finalize(self, os.close, descriptor)
        _HELD.add(self)

    def _take(self, descriptor: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise

    @staticmethod
    def on_folder(path: Path, refusal: str) -> WriterLock | None:
        """The lock of a whole folder; None where folders cannot be locked.

        Raises:
            Locked: if another process writes into it.
        """
        if fcntl is None:
            return None
        with writing(path):
            descriptor = os.open(path, os.O_RDONLY)
        return WriterLock(descriptor, refusal)

    @property
    def descriptor(self) -> int | None:
        """The open file; None once it is released, and in a forked child."""
        return self._descriptor

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child's copy, which does not write."""
        return os.getpid() != self._process

    def release(self) -> None:
        """Closes the file, and lets the next writer in. A second call does nothing."""
        self._descriptor = None
        self._close()


def _drop_inherited() -> None:
    # Closing a copy leaves the parent's lock in place; unlocking it would not.
    for lock in tuple(_HELD):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_inherited)
