"""An advice as recordings, one a format, and as the page that shows them side by side."""

from __future__ import annotations

from pathlib import Path

import torch

from gradscale.advice import Advice, Moment, Verdict
from gradscale.advice.verdict_sentences import headline
from gradscale.host_copies import HostCopies
from gradscale.recording.facts import Facts
from gradscale.recording.log import Log
from gradscale.recording.pending import Pending
from gradscale.watching.rows import Row

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
    # Not a `Recorder`, which follows a scaler: these steps were run by the advice.
    log = Log(folder, SIZE, None)
    log.begin(None, verdict.format, None, note_of(verdict, target))
    for moment in verdict.moments:
        exponent = moment.rows[0].exponent if moment.rows else verdict.log2_scale
        loss = HostCopies([torch.tensor(moment.loss)])
        facts = Facts(scale=2.0**exponent)
        log.write(Pending(moment.step, loss, None, facts, backward_order(moment)))
    log.end(len(verdict.moments), None)


def note_of(verdict: Verdict, target: str) -> dict[str, object]:
    """What the page says of a format: the verdict, and the line to write."""
    lines = [f"{verdict.format} is {headline(verdict)}."]
    ran = verdict.level in ("safe", "risky")
    if ran:
        lines.append(f"Write: `{verdict.code}`")
    exponents = {"default": verdict.log2_default, "one scale": verdict.log2_scale}
    advice = {"lines": lines, "log2_scale": exponents.get(verdict.scaling) if ran else None}
    return {"inspect": target, "verdict": verdict.level, "advice": advice}


def backward_order(moment: Moment) -> list[Row]:
    """The rows from the loss to the input, a module before its parameters.

    What belongs to no module that was seen, as a parameter that is used outside of one, comes last.
    """
    # Modules by the order of the pass; a parameter beside the module that owns it.
    place = {name: index for index, name in enumerate(moment.order)}

    def key(row: Row) -> tuple[int, bool, str]:
        owner = row.name if row.kind == "module" else row.name.rpartition(".")[0]
        return place.get(owner, len(place)), row.kind != "module", row.name

    return sorted(moment.rows, key=key)


def write_page(recordings: list[Path], path: Path, title: str) -> Path | None:
    """Writes report.html; None if there is nothing to show or nothing to draw it with."""
    try:
        from gradscale.report import write_report
    except ImportError:
        return None
    return write_report(recordings, path / "report.html", title=title) if recordings else None
