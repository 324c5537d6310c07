"""The rows of a results' file: which are there, and which can still be measured in time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]


class Key(NamedTuple):
    """What a row is about."""

    task: str
    way: str
    fused: bool
    compiled: bool

    @classmethod
    def of(cls, row: Row) -> Key:
        """That of a row that was measured."""
        return cls(**{name: row[name] for name in cls._fields})


class Rows:
    """A file of JSON lines, a row each, written as it ends.

    Args:
        path: the file. If it is not there it begins with the rows of `before` of this hardware.
        before: where the results of earlier sessions are kept.
        hardware: whose rows these are.

    Raises:
        ValueError: if the file holds rows of other hardware.
    """

    def __init__(self, path: Path, before: Path, hardware: str) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            kept = [row for row in read(before) if row["where"]["hardware"] == hardware]
            path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        elif not path.read_text().endswith("\n"):
            with path.open("a") as file:  # a line that was cut off, as by a kill, ends here
                file.write("\n")
        self.rows = {Key.of(row): row for row in read(path)}
        others = {row["where"]["hardware"] for row in self.rows.values()} - {hardware}
        if others:
            raise ValueError(
                f"`{path}` holds rows of {', '.join(sorted(others))}; this is {hardware}. Pass "
                "another folder with `--output`."
            )

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Those without a row, or with one that failed, in their order."""
        return [key for key in keys if "error" in self.rows.get(key, {"error": None})]

    def add(self, key: Key, figures: Row) -> None:
        """Writes a row at once, so that whoever stops us later keeps it."""
        row = {**key._asdict(), **figures}
        self.rows[key] = row
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[Row]:
    """All rows of a file, the later of two about the same; none if there is no file.

    Lines that were cut off are left out.
    """
    found: dict[Key, Row] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[Key.of(row)] = row
    return list(found.values())


@dataclass
class Budget:
    """Time that may be spent; whether another row fits is judged by the longest so far.

    Attributes:
        seconds: in all, from now.
        first: what a row takes before any was measured.
    """

    seconds: float
    first: float = 60.0
    longest: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self._began)

    def fits_another(self) -> bool:
        """Whether a row as long as the longest, and a quarter of it, would end in time."""
        return 1.25 * (self.longest or self.first) <= self.left

    def took(self, seconds: float) -> None:
        """A row ended."""
        self.longest = max(self.longest, seconds)
