"""Files beside what is examined: used where they can be read, and named where they cannot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gradscale.doctor.finding import Finding
from gradscale.files.json_text import read_json


def json_beside(path: Path) -> tuple[Mapping[str, object], list[Finding]]:
    """What a JSON file beside a checkpoint or a recording holds, and a note if that is unreadable.

    Args:
        path: of the file; one that is not there holds nothing.

    Example:
        >>> json_beside(Path("/dev/null"))[1][0].evidence
        '`/dev/null` cannot be read: it is no regular file, but a device.'
    """
    try:
        # What it says only helps: a damaged one must not hide the checkpoint beside it.
        held = read_json(path)
    except (OSError, ValueError) as error:
        return {}, [not_read(str(error))]
    return held if isinstance(held, dict) else {}, []


def not_read(why: str, where: str = "") -> Finding:
    """The note that a file was passed over.

    Example:
        >>> not_read("b.pt: it is empty.").severity
        'note'
    """
    return Finding(
        "note", "not-read", "A file was not read.", why,
        "Nothing, if it says nothing of the scaler; else put a good one in its place.", where,
    )  # fmt: skip
