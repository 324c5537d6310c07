"""A file that only grows by whole lines, and can be cut back to a step."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradscale.files.json_text import json_line
from gradscale.files.regular import open_to_append
from gradscale.files.unwritable import writing
from gradscale.files.writer_lock import WriterLock

Line = dict[str, Any]
"""A line of JSON that was written earlier: whatever its kind has."""


class Appending:
    """Appends JSON objects, each with one write to the operating system.

    So a killed process leaves all lines that it wrote, the last one torn at worst. Only `force` and
    `close` bring them to the disk: what a power failure costs is up to the operating system.

    Args:
        path: the file; made if it is missing.

    Raises:
        Locked: if it is being written already.
        Unwritable: if it is no regular file, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        descriptor = open_to_append(path)
        self._lock = WriterLock(
            descriptor,
            f"`Recorder({str(path)!r})`: another recorder is writing there, in this process or in "
            "another. Close it first (`recorder.close()`), or choose another path.",
        )
        self._told = False

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._open).st_size

    @property
    def _open(self) -> int:
        descriptor = self._lock.descriptor
        if descriptor is None:
            raise ValueError(f"`{self.path}` is closed.")
        return descriptor

    def write(self, value: Mapping[str, object]) -> int:
        """Appends a line, and says how long it is; 0 once writing has failed."""
        if self._lock.descriptor is None:
            self._tell_child()
            return 0
        # In one write and past Python's buffers: what is written does not end with this process.
        line, written = json_line(value), 0
        try:
            written = os.write(self._lock.descriptor, line)
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes were written")
        except OSError as error:
            # What was written of it would be taken for a line of its own by whoever appends next.
            with suppress(OSError):
                os.ftruncate(self._open, self.size - written)
            self._lock.release()
            warnings.warn(
                f"`{self.path}` cannot be written any more ({error}): the recording ends here, "
                "training goes on.",
                stacklevel=2,
            )
        return len(line)

    def _tell_child(self) -> None:
        if self._lock.inherited and not self._told:
            self._told = True
            warnings.warn(
                f"`{self.path}` is recorded by the process that this one was forked from: what "
                "happens here is not recorded. Make a `Recorder` of its own, with another path.",
                stacklevel=2,
            )

    def cut(self, step: int, keep: Callable[[Line, int], object]) -> None:
        """Drops the lines of `step` and later, the last line, and one that was torn.

        Args:
            step: the first step that is dropped.
            keep: called with every line that stays and its length.

        Raises:
            ValueError: if the file is no recording, or damaged before its last line.
        """
        size = 0
        with self.path.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                value = _line_of(raw)
                if value is None or (number == 1 and value["kind"] != "run"):
                    self._check_torn(number, raw, last=not lines.read(1))
                # A line without its end is cut off even if it can be read: more would follow it.
                if value is None or not raw.endswith(b"\n") or _ends_at(step, value):
                    break
                keep(value, len(raw))
                size += len(raw)
        with writing(self.path):
            os.ftruncate(self._open, size)

    def _check_torn(self, number: int, raw: bytes, *, last: bool) -> None:
        """A torn line is dropped only where a killed recorder can have left it: at the end."""
        begun = number > 1 or _BEGINNING.startswith(raw[: len(_BEGINNING)])
        if not (last and begun):
            raise ValueError(
                f"`{self.path}`, line {number}, is no line of a recording, so nothing of it is "
                "dropped. Move the file away, or choose another path."
            )

    def force(self) -> None:
        """Brings everything to the disk."""
        if self._lock.descriptor is not None:
            with writing(self.path):
                os.fsync(self._lock.descriptor)

    def close(self) -> None:
        """Brings everything to the disk, and lets other writers in."""
        try:
            self.force()
        finally:
            self._lock.release()


# Of every recording: what a torn first line must agree with as far as it goes.
_BEGINNING = b'{"kind":"run",'


def _line_of(raw: bytes) -> Line | None:
    """The object on a line of a recording; None if it is none."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("kind"), str) else None


def _ends_at(step: int, line: Line) -> bool:
    """Whether a recording that goes on at `step` ends in front of this line."""
    # The last line goes, too: the recording does not end there any more.
    return line["kind"] == "end" or (line["kind"] == "step" and line.get("step", -1) >= step)
