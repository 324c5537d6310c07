"""Reads a recording, whole or as far as a killed run got."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradscale.recording.parse import header_of, row_infos, step_of, structure_of
from gradscale.recording.schema import FILE_NAME, Header, RecordedNetwork, RowInfo, Step

TRAIN_FILE = "steps.jsonl"
_SYMPTOMS = (LookupError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class Recording:
    """A run as it was recorded.

    Attributes:
        path: the file.
        header: what run it is.
        rows: what was measured; ``rows[i].id == i``.
        steps: in order; steps that were not recorded are missing.
        structures: the networks, one for each shape of the graph.
        end: the last line of a run that was closed; None if it was killed, or still runs.
        torn: whether the last line was cut off, and left out.
    """

    path: Path
    header: Header
    rows: tuple[RowInfo, ...] = ()
    steps: tuple[Step, ...] = field(default=(), repr=False)
    structures: tuple[RecordedNetwork, ...] = field(default=(), repr=False)
    end: dict[str, Any] | None = None
    torn: bool = False

    @property
    def measured(self) -> tuple[Step, ...]:
        """The steps that say what the rows held."""
        return tuple(step for step in self.steps if step.seen is not None)


def read(path: str | Path) -> Recording:
    """Reads a recording, or the ``steps.jsonl`` of a `gradscale train` folder.

    Args:
        path: the file, or a folder that contains one. A torn last line is left out.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no recording, or damaged before its last line.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "steps.jsonl"
        >>> size = file.write_text('{"step": 0, "loss": 2.3, "scale": 65536.0, "skipped": false}')
        >>> read(file).steps[0].scale
        65536.0
    """
    file = recording_file(path)
    contents = _Contents(file)
    for number, line in _objects(file):
        if line is None:
            contents.torn = True
        else:
            contents.take(number, line)
    return contents.recording()


class _Contents:
    """A recording that is being read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.torn = False
        self.header: Header | None = Header() if file.name == TRAIN_FILE else None
        self.rows: list[RowInfo] = []
        self.steps: list[Step] = []
        self.structures: list[RecordedNetwork] = []
        self.end: dict[str, Any] | None = None

    def take(self, number: int, line: dict[str, Any]) -> None:
        try:
            kind = line.get("kind", "step" if self.file.name == TRAIN_FILE else None)
            if self.header is None and kind != "run":
                raise ValueError("a recording begins with a line of kind 'run'")
            self._take(kind, line)
        except _SYMPTOMS as error:
            raise ValueError(_damage(self.file, number, error)) from error

    def _take(self, kind: Any, line: dict[str, Any]) -> None:
        if kind == "run":
            self.header = header_of(line)
        elif kind == "rows":
            self.rows += row_infos(line)
        elif kind == "structure":
            self.structures.append(structure_of(line))
        elif kind == "step":
            self.steps.append(step_of(line))
        elif kind == "end":
            self.end = line
        # Other kinds are of a later minor version, and say nothing that must be known.

    def recording(self) -> Recording:
        if self.header is None:
            raise ValueError(f"`{self.file}` is empty: nothing was recorded.")
        rows, steps, structures = tuple(self.rows), tuple(self.steps), tuple(self.structures)
        return Recording(self.file, self.header, rows, steps, structures, self.end, self.torn)


def recording_file(path: str | Path) -> Path:
    """The file that `read` reads for this path.

    Raises:
        FileNotFoundError: if there is none.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> size = (folder / "recording.jsonl").write_text("")
        >>> recording_file(folder).name
        'recording.jsonl'
    """
    given = Path(path)
    inside = [given / FILE_NAME, given / TRAIN_FILE] if given.is_dir() else [given]
    for file in inside:
        if file.is_file():
            return file
    if given.is_dir():
        raise FileNotFoundError(
            f"`{given}` holds no recording: neither {FILE_NAME} nor {TRAIN_FILE}. Record one with "
            "`gradscale.Recorder` or `gradscale train --record`."
        )
    raise FileNotFoundError(f"`{given}` does not exist. Pass a recording, or a folder with one.")


def _objects(file: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Numbered lines; None for a last one that was cut off."""
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            try:
                value = json.loads(raw)
                if not isinstance(value, dict):
                    raise ValueError("it is no object")
            except ValueError as error:
                if raw.endswith(b"\n"):
                    raise ValueError(_damage(file, number, error)) from error
                value = None
            yield number, value


def _damage(file: Path, number: int, error: Exception) -> str:
    reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    return f"`{file}`, line {number}, is no line of a recording: {reason}."
