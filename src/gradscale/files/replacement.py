"""A file replaced whole or not at all, and only if it is ours."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from gradscale.files.regular import BINARY, NO_FOLLOW, in_the_way
from gradscale.files.unwritable import Unwritable, writing

MARK = "made by gradscale.report"
"""What every page and figure of ours says of itself in its first or last `ENDS` bytes."""

ENDS = 4096


class NotOurs(FileExistsError):
    """A file that somebody else made is where one of ours would go."""


def replace_file(path: Path, content: bytes) -> None:
    """Writes beside `path`, forces it to the disk, then renames: readers see a whole file.

    What is at `path` is replaced itself: of a link the link, never what it leads to.

    Raises:
        Unwritable: if that fails, or something is there that is no regular file and no link;
            nothing is left behind.
    """
    # Named by chance and made anew, so that no link that lies in wait there is written through.
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.partial")
    with writing(path):
        _refuse_obstacle(path)
        try:
            _write_new(beside, content)
            # The one step that the system does whole or not at all.
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def _refuse_obstacle(path: Path) -> None:
    obstacle = "" if path.is_symlink() else in_the_way(path)
    if obstacle:
        raise Unwritable(path, obstacle)


def _write_new(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW | BINARY
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        # Before the rename: else a crash may leave the new name with nothing in it.
        os.fsync(file.fileno())


def check_ours(path: Path, *, force: bool) -> None:
    """Refuses to replace what gradscale did not make.

    Args:
        path: where something is to be written.
        force: whether the user said that a foreign file, or a link, may be replaced.

    Raises:
        NotOurs: if there is a foreign file or a link, and no `force`.
        Unwritable: if something is there that no `force` replaces: a folder, a pipe, a device.
    """
    with writing(path):
        _refuse_obstacle(path)
    if force or not os.path.lexists(path):
        return
    if path.is_symlink():
        raise NotOurs(
            f"`{path}` is a symbolic link, to `{os.readlink(path)}`, and is not followed. Choose "
            "another place, or replace the link itself with `force=True` (`--force`)."
        )
    with writing(path):
        ours = is_marked(path)
    if not ours:
        raise NotOurs(
            f"`{path}` is there already, and gradscale did not make it. Choose another place, or "
            "replace it with `force=True` (`--force`)."
        )


def is_marked(path: Path) -> bool:
    """Whether a file says at its beginning or end that gradscale made it, or is empty.

    Example:
        >>> import tempfile
        >>> page = Path(tempfile.mkdtemp()) / "page.html"
        >>> size = page.write_text(f'<meta name="generator" content="{MARK}">')
        >>> is_marked(page)
        True
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(ENDS)
        # At either end, because svg and png name their maker first, pdf last.
        file.seek(max(0, size - ENDS))
        return size == 0 or MARK.encode() in head + file.read(ENDS)
