"""The one error of a file that cannot be written: it names the file and the reason."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class Unwritable(OSError):
    """A file that cannot be written.

    Example:
        >>> import errno
        >>> str(Unwritable(Path("runs/mine"), "Read-only file system", errno.EROFS))
        '`runs/mine` cannot be written: Read-only file system.'
    """

    def __init__(self, path: Path, reason: str, errno: int | None = None) -> None:
        super().__init__(errno, reason, str(path))
        self.message = f"`{path}` cannot be written: {reason}."

    def __str__(self) -> str:
        return self.message


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Names `path` in whatever the operating system refuses inside.

    A write to a full disk says neither which file it was nor, through `torch.save`, what happened.

    Raises:
        Unwritable: in place of the `OSError`.
    """
    try:
        yield
    except Unwritable:
        raise
    except OSError as error:
        raise Unwritable(path, error.strerror or str(error), error.errno) from error
