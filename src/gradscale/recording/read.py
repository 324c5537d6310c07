"""Reads a recording, whole or as far as a killed run got."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradscale.recording.parse import header_of, rows_of, step_of, structure_of
from gradscale.recording.schema import FILE_NAME, Header, RowInfo, Step, Structure

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
    structures: tuple[Structure, ...] = field(default=(), repr=False)
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
    file = find(path)
    header, rows, steps, structures = Header(), list[RowInfo](), list[Step](), list[Structure]()
    end: dict[str, Any] | None = None
    torn = False
    for line in _objects(file):
        if line is None:
            torn = True
            continue
        number, value = line
        try:
            kind = value.get("kind", "step")
            if number == 1 and file.name != TRAIN_FILE and kind != "run" and "kind" in value:
                raise ValueError("it does not begin with a line of kind 'run'")
            if kind == "run":
                header = header_of(value)
            elif kind == "rows":
                rows += rows_of(value)
            elif kind == "structure":
                structures.append(structure_of(value))
            elif kind == "step":
                steps.append(step_of(value))
            elif kind == "end":
                end = value
        except _SYMPTOMS as error:
            raise ValueError(_damage(file, number, error)) from error
    return Recording(file, header, tuple(rows), tuple(steps), tuple(structures), end, torn)


def find(path: str | Path) -> Path:
    """The file that `read` reads for this path.

    Raises:
        FileNotFoundError: if there is none.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> size = (folder / "recording.jsonl").write_text("")
        >>> find(folder).name
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


def _objects(file: Path) -> Iterator[tuple[int, dict[str, Any]] | None]:
    """Numbered lines; None for a last one that was cut off."""
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            whole = raw.endswith(b"\n")
            try:
                value = json.loads(raw)
                if not isinstance(value, dict):
                    raise ValueError("it is no object")
            except ValueError as error:
                if not whole:
                    yield None
                    return
                raise ValueError(_damage(file, number, error)) from error
            yield number, value


def _damage(file: Path, number: int, error: Exception) -> str:
    reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    return f"`{file}`, line {number}, is no line of a recording: {reason}."
