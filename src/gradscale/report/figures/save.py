"""`save_figures`: all figures of these runs, as files for a paper."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradscale.files.replacement import MARK, check_ours, replace_file
from gradscale.files.unwritable import Unwritable, writing
from gradscale.report.figures.heat import heat_figure
from gradscale.report.figures.histogram import histogram_figure
from gradscale.report.figures.plan import plan_figure
from gradscale.report.figures.style import settings
from gradscale.report.figures.timeline import timeline_figure
from gradscale.report.run import Run
from gradscale.report.write import Given, load_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: dict[str, Callable[[Run], Figure]] = {
    "heat": heat_figure,
    "histograms": histogram_figure,
    "plan": plan_figure,
    "scale": lambda run: timeline_figure([run]),
}
"""The figures of a single run, by name."""

FORMATS = ("png", "svg", "pdf")
RESOLUTION = 200  # dots an inch, of png
_METADATA = {
    "png": {"Software": MARK},
    "svg": {"Creator": MARK, "Date": None},
    "pdf": {"Creator": MARK, "CreationDate": None},
}


def draw_figure(recording: Given, name: str) -> Figure:
    """One figure of a recording, to be changed further or saved.

    Args:
        recording: as read, or the path of one.
        name: ``heat``, ``histograms``, ``plan`` or ``scale``.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: if there is no such figure.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> line = '{"step": 0, "loss": 2.3, "scale": 65536.0, "skipped": false}'
        >>> size = (folder / "steps.jsonl").write_text(line)
        >>> len(draw_figure(folder, "scale").axes)
        2
    """
    if name not in FIGURES:
        raise ValueError(
            f"`draw_figure(recording, {name!r})` must name one of {', '.join(FIGURES)}."
        )
    return FIGURES[name](load_runs(recording)[0])


def save_figures(
    recordings: Given | Iterable[Given],
    folder: str | os.PathLike[str],
    formats: Sequence[str] = ("png", "svg"),
    *,
    force: bool = False,
) -> list[Path]:
    """Save the figures of each run; the scales of several runs also in one figure.

    Args:
        recordings: as for `write_report`.
        folder: where to; made if it is missing.
        formats: any of ``png``, ``svg`` and ``pdf``.
        force: whether to replace files that are no figures of ours, or links.

    Returns:
        The files: ``heat.png``, ``histograms.png`` …; with several runs in a folder for each.

    Raises:
        FileExistsError: if something that is no figure of ours is in the way, and no `force`.
        OSError: if one cannot be written; nothing of it is left behind then.
        ValueError: if a format is not one of them, or a file is no recording.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> line = '{"step": 0, "loss": 2.3, "scale": 65536.0, "skipped": false}'
        >>> size = (folder / "steps.jsonl").write_text(line)
        >>> [path.name for path in save_figures(folder, folder, ["svg"])]
        ['scale.svg']
    """
    wrong = [name for name in formats if name not in FORMATS]
    if wrong:
        raise ValueError(f"`save_figures(formats={wrong})` must be of {', '.join(FORMATS)}.")
    return save_runs(load_runs(recordings), Path(folder), formats, force=force)


def save_runs(
    runs: Sequence[Run],
    folder: Path,
    formats: Sequence[str] = ("png", "svg"),
    on_figure: Callable[[str], None] = lambda name: None,
    *,
    force: bool = False,
) -> list[Path]:
    """The same for runs that are loaded already; figures with nothing to show are left out."""
    saved: list[Path] = []
    for run in runs:
        # A folder each only where names would collide.
        place = folder / run.name if len(runs) > 1 else folder
        for name in figures_of(run):
            on_figure(f"{run.name}: {name}")
            saved += _save(FIGURES[name](run), folder, place / name, formats, force=force)
    if len(runs) > 1:
        on_figure("scales of all runs")
        figure = timeline_figure(runs)
        saved += _save(figure, folder, folder / "scales", formats, force=force)
    return saved


def figures_of(run: Run) -> list[str]:
    """The figures that have something to show of this run."""
    there = {
        "heat": any(row.alarming for row in run.rows),
        "histograms": bool(run.snapshots),
        "plan": bool(run.network.names),
        "scale": bool(len(run.timeline.step)),
    }
    return [name for name in FIGURES if there[name]]


def _save(
    figure: Figure, folder: Path, path: Path, formats: Sequence[str], *, force: bool
) -> list[Path]:
    files = [path.with_name(f"{path.name}.{name}") for name in formats]
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    # A run's name comes from a recording's path, and a link there may lead anywhere.
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise Unwritable(path.parent, f"a symbolic link leads out of `{folder}`")
    for file, name in zip(files, formats, strict=True):
        check_ours(file, force=force)
        replace_file(file, _drawn(figure, name))
    return files


def _drawn(figure: Figure, format: str) -> bytes:
    """The file, without a date in it: equal runs give equal files."""
    content = io.BytesIO()
    # matplotlib asks for its settings again as it writes, not only as it draws.
    with settings():
        figure.savefig(content, format=format, dpi=RESOLUTION, metadata=_METADATA[format])
    return content.getvalue()
