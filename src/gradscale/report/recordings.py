"""Which recordings a path stands for, and what to call them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from gradscale.recording.read import TRAIN_FILE, recording_file
from gradscale.recording.schema import FILE_NAME


class NamedRecording(NamedTuple):
    """One recording: where it is, and its name beside others."""

    path: Path
    name: str


def recordings_at(paths: Iterable[str | os.PathLike[str]]) -> list[NamedRecording]:
    """All recordings at these paths, each once, in order.

    Args:
        paths: recordings, folders with one, or folders of such folders, as `gradscale compare`
            writes them.

    Raises:
        FileNotFoundError: if one of them is not there, or has no recording below it.
    """
    found: dict[Path, NamedRecording] = {}
    for given in map(Path, paths):
        for path, name in _below(given):
            # By the file itself: a folder and a file in it, or a link, are one recording.
            found.setdefault(recording_file(path).resolve(), NamedRecording(path, name))
    return _told_apart(list(found.values()))


def _below(given: Path) -> list[tuple[Path, str]]:
    try:
        file = recording_file(given)
    except FileNotFoundError:
        inside = _folders(given) if given.is_dir() else []
        if not inside:
            raise
        return [(folder, str(folder.relative_to(given))) for folder in inside]
    own = file.parent if file.name in (FILE_NAME, TRAIN_FILE) else file.with_suffix("")
    return [(given, own.resolve().name)]


def _folders(given: Path) -> list[Path]:
    """Folders with a recording, however deep, numbers in their names in order."""
    names = {path.parent for name in (FILE_NAME, TRAIN_FILE) for path in given.rglob(name)}
    return sorted(names, key=lambda path: [_natural(part) for part in path.parts])


def _natural(text: str) -> tuple[tuple[bool, float, str], ...]:
    """Sorts ``seed-10`` behind ``seed-9``."""
    parts = re.findall(r"\d+|\D+", text)
    # Numbers before texts, and by size.
    return tuple((not p.isdigit(), float(p) if p.isdigit() else 0.0, p) for p in parts)


def _told_apart(sources: list[NamedRecording]) -> list[NamedRecording]:
    """Equal names get the folder above, and a number if that does not help."""
    names = [source.name for source in sources]
    above = {s: f"{s.path.resolve().parent.name}/{s.name}" for s in sources}
    named = [s._replace(name=above[s]) if names.count(s.name) > 1 else s for s in sources]
    if len({source.name for source in named}) == len(named):
        return named
    return [s._replace(name=f"{s.name} ({i})") for i, s in enumerate(named, 1)]
