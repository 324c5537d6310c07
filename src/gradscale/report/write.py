"""`write_report`: recordings in, one HTML file out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gradscale.files.replacement import check_ours, replace_file
from gradscale.files.unwritable import writing
from gradscale.recording import Recording, read
from gradscale.report.html import html_of
from gradscale.report.recordings import recordings_at
from gradscale.report.run import Run

Given = str | os.PathLike[str] | Recording
TITLE = "Loss scaling report"


def write_report(
    recordings: Given | Iterable[Given],
    path: str | os.PathLike[str],
    *,
    title: str = TITLE,
    force: bool = False,
) -> Path:
    """Write one HTML file that shows these runs. It opens offline and needs nothing beside it.

    Args:
        recordings: recordings as read, or paths: of a recording, of a folder with one, or of a
            folder of such folders. Several are shown side by side.
        path: the file to write; its folder is made if it is missing.
        title: the heading.
        force: whether to replace a file that is no report of ours, or a link.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: if there is no recording at a path.
        FileExistsError: if something that is no report of ours is at `path`, and no `force`.
        OSError: if it cannot be written; nothing is left behind then.
        ValueError: if a file is no recording, or there is none at all.
        ImportError: if plotly is not installed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> line = '{"step": 0, "loss": 2.3, "scale": 65536.0, "skipped": false}'
        >>> size = (folder / "steps.jsonl").write_text(line)
        >>> write_report(folder, folder / "report.html").name
        'report.html'
    """
    # Before anything is read: reading may take minutes.
    check_ours(Path(path), force=force)
    return write_runs(load_runs(recordings), Path(path), title, force=force)


def write_runs(runs: Sequence[Run], path: Path, title: str, *, force: bool = False) -> Path:
    """The same for runs that are loaded already."""
    if any(path.resolve() == run.recording.path.resolve() for run in runs):
        raise ValueError(f"`{path}` is the recording itself. Choose another place for the report.")
    check_ours(path, force=force)
    page = html_of(runs, title)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, page.encode())
    return path


def load_runs(
    recordings: Given | Iterable[Given],
    on_run: Callable[[str], None] = lambda name: None,
    on_damage: Callable[[str], None] | None = None,
) -> list[Run]:
    """The runs that these recordings and paths stand for.

    Args:
        recordings: as for `write_report`.
        on_run: called with the name of each run before it is read.
        on_damage: called with what is wrong with a run that cannot be read; the others are loaded.

    Raises:
        FileNotFoundError: if there is no recording at a path.
        ValueError: if a file is no recording, and nobody wants to be told or no other can be read;
            or if there is none at all.
    """
    given = [recordings] if isinstance(recordings, str | os.PathLike | Recording) else [*recordings]
    if not given:
        raise ValueError("`write_report([])` needs at least one recording.")
    runs = [Run.of(one) for one in given if isinstance(one, Recording)]
    damage: list[ValueError] = []
    for source in recordings_at(one for one in given if not isinstance(one, Recording)):
        on_run(source.name)
        try:
            runs.append(Run.of(read(source.path), source.name))
        except ValueError as error:
            damage.append(error)
    # Of many runs one that is damaged is no reason to show none.
    if damage and (on_damage is None or not runs):
        raise damage[0]
    for error in damage:
        if on_damage is not None:
            on_damage(str(error))
    return runs
