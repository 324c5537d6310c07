"""Reads a recording, whole or as far as a killed run got."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from gradscale.entries import Absent, Entries
from gradscale.files.json_text import JsonObject
from gradscale.files.regular import open_regular
from gradscale.recording.parse import header_of, recorded_network, row_infos, step_of
from gradscale.recording.schema import FILE_NAME, Header, RecordedNetwork, RowInfo, Step

TRAIN_FILE = "steps.jsonl"

LARGEST_RECORDING = 2**28
"""Bytes: five times what a `Recorder` writes in 100,000 steps unless it is told otherwise."""

LONGEST_LINE = 2**23
"""Bytes: of a measuring step with histograms of ten thousand rows, and more."""


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
    end: Mapping[str, object] | None = None
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
        self.end: Mapping[str, object] | None = None

    def take(self, number: int, line: JsonObject) -> None:
        try:
            kind = line.get("kind", "step" if self.file.name == TRAIN_FILE else None)
            if self.header is None and kind != "run":
                raise ValueError("a recording begins with a line of kind 'run'")
            self._take(kind, Entries(line, "line"))
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(_damage(self.file, number, error)) from error
        except RecursionError:
            raise ValueError(_damage(self.file, number, _TOO_DEEP)) from None

    def _take(self, kind: object, line: Entries) -> None:
        if kind == "run":
            self.header = header_of(line)
        elif kind == "rows":
            self.rows += self._next_rows(row_infos(line))
        elif kind == "structure":
            network = recorded_network(line)
            self._check_rows(network.rows.values())
            self.structures.append(network)
        elif kind == "step":
            self.steps.append(self._known(step_of(line)))
        elif kind == "end":
            self.end = dict(line.held)
        # Other kinds are of a later minor version, and say nothing that must be known.

    def _next_rows(self, rows: tuple[RowInfo, ...]) -> tuple[RowInfo, ...]:
        if [row.id for row in rows] != list(range(len(self.rows), len(self.rows) + len(rows))):
            raise ValueError(f"the ids of its rows do not count up from {len(self.rows)}")
        return rows

    def _known(self, step: Step) -> Step:
        if step.seen is not None:
            self._check_rows((*step.seen.id, *step.seen.negligible))
        self._check_rows(step.octaves)
        for group in () if step.plan is None else step.plan.groups:
            self._check_rows(group.rows)
        return step

    def _check_rows(self, ids: Iterable[int]) -> None:
        # Ids count up, so the highest tells.
        highest = max(ids, default=-1)
        if highest >= len(self.rows):
            raise ValueError(f"it is about row {highest}, and no line has introduced one")

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
        if file.exists():  # what is no regular file is refused when it is opened
            return file
    if given.is_dir():
        raise FileNotFoundError(
            f"`{given}` holds no recording: neither {FILE_NAME} nor {TRAIN_FILE}. Record one with "
            "`gradscale.Recorder` or `gradscale train --record`."
        )
    raise FileNotFoundError(f"`{given}` does not exist. Pass a recording, or a folder with one.")


def _objects(file: Path) -> Iterator[tuple[int, JsonObject | None]]:
    """Numbered lines; None for a last one that was cut off."""
    with _opened(file) as lines:
        for number, raw in enumerate(iter(lambda: lines.readline(LONGEST_LINE), b""), 1):
            # Read in bounded pieces: a file without an end of line would fill the memory.
            if len(raw) == LONGEST_LINE:
                long = ValueError(f"it is longer than {LONGEST_LINE:,} bytes")
                raise ValueError(_damage(file, number, long))
            try:
                value = _object(raw)
            except ValueError as error:
                # A line that ends is whole: then it is damaged, not torn.
                if raw.endswith(b"\n"):
                    raise ValueError(_damage(file, number, error)) from error
                value = None
            yield number, value


def _opened(file: Path) -> BinaryIO:
    try:
        return open_regular(file, LARGEST_RECORDING)
    except ValueError as error:
        raise ValueError(f"`{file}` is no recording that can be read: {error}.") from None


def _object(raw: bytes) -> JsonObject:
    try:
        value = json.loads(raw)
    except RecursionError:
        raise _TOO_DEEP from None
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    return value


_TOO_DEEP = ValueError("it is nested too deeply")


def _damage(file: Path, number: int, error: Exception) -> str:
    reason = f"it lacks {error.key!r}" if isinstance(error, Absent) else str(error).rstrip(".")
    return f"`{file}`, line {number}, is no line of a recording: {reason}."
