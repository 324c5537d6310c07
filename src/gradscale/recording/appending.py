"""A file that only grows by whole lines, and can be cut back to a step."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


class Appending:
    """Appends JSON objects, each with one write to the operating system.

    So a killed process leaves all lines that it wrote, the last one torn at worst. Only `close`
    forces them to the disk: what a power failure costs is up to the operating system.

    Args:
        path: the file; made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, value: Mapping[str, Any]) -> int:
        """Appends a line, and says how long it is; 0 once writing has failed."""
        line = encoded(value)
        if self._file is None:
            return 0
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes were written")
        except OSError as error:
            with suppress(OSError):
                os.close(self._file)
            self._file = None
            warnings.warn(
                f"`{self.path}` cannot be written any more ({error}): the recording ends here, "
                "training goes on.",
                stacklevel=2,
            )
        return len(line)

    def close(self) -> None:
        """Forces everything to the disk."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
        self._file = None


def encoded(value: Mapping[str, Any]) -> bytes:
    r"""A line of JSON; floats that it does not have become strings.

    Example:
        >>> encoded({"loss": math.nan, "ids": [1, 2]})
        b'{"loss":"nan","ids":[1,2]}\n'
    """
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(finite(value), separators=(",", ":"))
    return text.encode() + b"\n"


def finite(value: Any) -> Any:
    """`value` with floats that are not finite as strings.

    Example:
        >>> finite([1.0, math.inf])
        [1.0, 'inf']
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value


def cut(path: Path, step: int, keep: Callable[[dict[str, Any], int], object]) -> None:
    """Drops the lines of `step` and later, the last line, and one that was torn.

    Args:
        path: a recording.
        step: the first step that is dropped.
        keep: called with every line that stays and its length.
    """
    size = 0
    with path.open("rb") as lines:
        for raw in lines:
            try:
                value = json.loads(raw)
                kind, later = value["kind"], value.get("step", -1) >= step
            except (ValueError, LookupError, TypeError):
                break
            if not raw.endswith(b"\n") or kind == "end" or (kind == "step" and later):
                break
            keep(value, len(raw))
            size += len(raw)
    os.truncate(path, size)
