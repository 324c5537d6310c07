"""An advice as recordings, one a format, and as the page that shows them side by side."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from gradscale.advice import Advice, Verdict
from gradscale.metrics.arrival import Arrival
from gradscale.recording.facts import Facts
from gradscale.recording.log import Log
from gradscale.recording.pending import Pending

SIZE = 50_000_000
"""Bytes after 100,000 steps, as in `gradscale.recording.Recorder`; an advice has three."""

INSTALL = 'For report.html, a page to look at: pip install "gradscale[report]"'


def write_recordings(advice: Advice, path: Path, target: str) -> list[Path]:
    """Writes one folder with a recording for every format that could run.

    Each moment at which the format was tried is a step: at the best single scale, with the lost
    elements as the float32 reference tells them.
    """
    ran = [verdict for verdict in advice.verdicts if verdict.moments]
    for verdict in ran:
        _write_recording(verdict, path / verdict.format, target)
    return [path / verdict.format for verdict in ran]


def _write_recording(verdict: Verdict, folder: Path, target: str) -> None:
    log = Log(folder, SIZE, None)
    log.begin(None, verdict.format, None, {"inspect": target, "verdict": verdict.level})
    for moment in verdict.moments:
        exponent = moment.rows[0].exponent if moment.rows else verdict.log2_scale
        loss = Arrival([torch.tensor(moment.loss)])
        facts = Facts(scale=2.0**exponent)
        rows = sorted(moment.rows, key=lambda row: in_order(row.name))
        log.write(Pending(moment.step, loss, None, facts, rows))
    log.end(len(verdict.moments), None)


def in_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts names with their numbers as numbers.

    Example:
        >>> sorted(["layers.10", "layers.9", "head"], key=in_order)
        ['head', 'layers.9', 'layers.10']
    """
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def write_page(recordings: list[Path], path: Path, title: str) -> Path | None:
    """Writes report.html; None if there is nothing to show or nothing to draw it with."""
    try:
        from gradscale.report import write_report
    except ImportError:
        return None
    return write_report(recordings, path / "report.html", title=title) if recordings else None
