"""What the page is given: one JSON text, and one block of arrays that it points into."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from gradscale.report.arrays import Arrays, Floats, Reference
from gradscale.report.columns import Column
from gradscale.report.histograms import HistogramSnapshot
from gradscale.report.ranges import ranges_of
from gradscale.report.rows import RowStory
from gradscale.report.run import Run
from gradscale.report.shares import encode_shares
from gradscale.report.summary import summary_of
from gradscale.report.timeline import LIMIT, Timeline, extremes
from gradscale.version import __version__

ALL_POINTS = 480_000
"""Steps drawn of all runs together: four times `LIMIT`, and then each gets its share."""

DETAILS = 300
"""Skipped steps told one by one: the first and the last of very many."""

OCTAVE_STEPS = 16
"""The heat map's magnitudes are told to a sixteenth of an octave."""
NOTHING = -32768
"""The lowest of 16 bits, which no octave comes near."""

LONGEST_TEXT = 1000
"""Characters: names of a module are shorter, and with one of 200,000 a browser draws nothing."""


def payload_of(runs: Sequence[Run], title: str) -> tuple[dict[str, object], Arrays]:
    """Everything that the page shows of these runs."""
    arrays = Arrays()
    # More would not be seen: a screen has a few thousand columns.
    points = min(LIMIT, ALL_POINTS // max(1, len(runs)))
    formats = {row.info.format for run in runs for row in run.rows}
    return {
        "title": title,
        "gradscale": __version__,
        "ranges": ranges_of(formats | {run.recording.header.format for run in runs}),
        "runs": [_run(run, arrays, points) for run in runs],
    }, arrays


def _run(run: Run, arrays: Arrays, points: int) -> dict[str, object]:
    header = run.recording.header
    return {
        "name": run.name,
        "started": header.started,
        "torch": header.torch,
        "gradscale": header.gradscale,
        "measure_every": header.measure_every,
        "policy": None if header.policy is None else dict(header.policy),
        "note": dict(header.note),
        "ended": run.recording.end is not None,
        "torn": run.recording.torn,
        "summary": summary_of(run),
        "timeline": _timeline(run.timeline, arrays, points),
        "skips": _skips(run.timeline, arrays),
        "rows": [_row(row) for row in run.rows],
        "order": run.order,
        "heat": _heat(run.columns, run.order, arrays) if run.columns else None,
        "snapshots": [_snapshot(snapshot, arrays) for snapshot in run.snapshots],
        "network": vars(run.network),
        "plans": [
            {"step": step, "log2_scale": plan.log2_scale, "groups": [g._asdict() for g in plan[1]]}
            for step, plan in run.plans
        ],
    }


def _timeline(line: Timeline, arrays: Arrays, points: int) -> dict[str, object]:
    kept = extremes([line.scale, line.loss, line.amax], points) if len(line.step) else []
    # Apart from the others, and never thinned: few steps measure.
    measured = np.flatnonzero(~np.isnan(line.lost))

    def series(values: Floats) -> Reference | None:
        return None if np.isnan(values).all() else arrays.add(values[kept], "f4")

    return {
        "step": arrays.add(line.step[kept], "u4"),
        "thinned": len(kept) < len(line.step),
        "scale": series(line.scale),
        "loss": series(line.loss),
        "amax": series(line.amax),
        "groups": series(line.groups),
        "lost_step": arrays.add(line.step[measured], "u4"),
        "lost": arrays.add(line.lost[measured], "f4"),
    }


def _skips(line: Timeline, arrays: Arrays) -> dict[str, object]:
    """All skipped steps, and those without some micro-batches; the first and the last by name."""
    names = list(line.reasons)
    codes = {name: code for code, name in enumerate(names)}
    steps, half = line.skipped, DETAILS // 2
    taken = [step for step in line.dropping if not step.skipped]
    told = sorted((*steps, *taken), key=lambda step: step.step)
    if len(told) > DETAILS:
        told = [*told[:half], *told[-half:]]
    return {
        "reasons": names,
        "step": arrays.add([step.step for step in steps], "u4"),
        "reason": arrays.add([codes[step.reason or "unknown"] for step in steps], "u2"),
        "details": [
            {
                "step": step.step,
                "reason": (step.reason or "unknown") if step.skipped else None,
                "dropped": [step.dropped, step.micro_batches] if step.dropped else None,
                "scale": finite_or_none(step.scale),
                "culprits": list(step.culprits),
                "first": None if step.first_nonfinite is None else step.first_nonfinite._asdict(),
            }
            for step in told
        ],
    }


def _row(row: RowStory) -> dict[str, object]:
    info = row.info
    found: dict[str, object] = {
        "name": info.name,
        "kind": info.kind,
        "format": info.format,
        "numel": info.numel,
        "negligible": row.negligible,
        "method": row.method,
        "measured": row.measured,
        "nonfinite": row.nonfinite,
        "share": row.lost_share if row.nonzero else None,
        "worst": row.worst if row.nonzero else None,
        "worst_step": row.worst_step,
        "last": None,
    }
    if row.last is not None:
        step, seen, place = row.last
        fields = ("flushed", "nonzero", "zero", "nonfinite", "amax", "exponent", "lo", "hi")
        values = {name: getattr(seen, name)[place] for name in fields}
        found["last"] = {"step": step.step, **values}
    return found


def _heat(columns: Sequence[Column], order: Sequence[int], arrays: Arrays) -> dict[str, object]:
    """Planes of shape (rows in backward order, columns)."""

    def plane(name: str) -> Floats:
        return np.stack([getattr(column, name) for column in columns], axis=1)[order]

    seen = ~np.isnan(plane("worst"))
    zero, nonzero = plane("zero"), plane("nonzero")
    mean = np.where(seen, plane("flushed") / np.maximum(1, nonzero), np.nan)
    zeros = np.where(seen, zero / np.maximum(1, zero + nonzero), np.nan)
    return {
        "first": arrays.add([column.first for column in columns], "u4"),
        "last": arrays.add([column.last for column in columns], "u4"),
        "mean": arrays.add(encode_shares(mean), "u2"),
        "worst": arrays.add(encode_shares(plane("worst")), "u2"),
        "zero": arrays.add(encode_shares(zeros), "u2"),
        "amax": arrays.add(_steps(plane("amax"), OCTAVE_STEPS), "i2"),
        "off": arrays.add(_steps(plane("off"), 1), "i2"),
        "nonfinite": arrays.add(np.minimum(255, plane("nonfinite")), "u1"),
    }


def _steps(values: Floats, steps: int) -> NDArray[np.int16]:
    """Finite values in steps; `NOTHING` for what is not finite."""
    finite = np.isfinite(values)
    # Clipped short of `NOTHING`.
    rounded = np.round(steps * np.where(finite, values, 0.0)).clip(-32000, 32000)
    return np.where(finite, rounded, NOTHING).astype(np.int16)


def _snapshot(snapshot: HistogramSnapshot, arrays: Arrays) -> dict[str, object]:
    rows = sorted(snapshot.rows)
    found = [snapshot.rows[row] for row in rows]
    counts = [count for it in found for count in it.octaves.counts]
    # JavaScript counts in doubles: exactly up to 2^53, far beyond any tensor.
    wide = "u4" if max(counts, default=0) < 2**32 else "f8"
    return {
        "step": snapshot.step,
        "log2_scale": finite_or_none(snapshot.log2_scale),
        "id": arrays.add(rows, "u4"),
        "measured": arrays.add([it.step for it in found], "u4"),
        "scale": arrays.add([it.log2_scale for it in found], "f8"),
        "exponent": arrays.add([it.exponent for it in found], "i2"),
        "unseen": arrays.add([it.unseen for it in found], "f8"),
        "zero": arrays.add([it.zero for it in found], "f8"),
        "amax": arrays.add([it.amax for it in found], "f8"),
        "guessed": arrays.add([it.guessed for it in found], "u2"),
        "lowest": arrays.add([it.octaves.lowest for it in found], "i2"),
        "length": arrays.add([len(it.octaves.counts) for it in found], "u2"),
        "counts": arrays.add(counts, wide),
    }


def finite_or_none(value: float) -> float | None:
    """A finite number, or None, which JSON has.

    Example:
        >>> finite_or_none(2.0), finite_or_none(math.nan)
        (2.0, None)
    """
    return value if math.isfinite(value) else None


def to_json(value: object) -> str:
    r"""JSON that can stand inside a page: no text in it can end the element that holds it.

    Example:
        >>> print(to_json({"name": "</script>", "loss": math.inf}))
        {"name":"\u003c/script>","loss":null}
    """
    # Strictly: a NaN, which Python would write, stops JavaScript's parser.
    text = json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
    # Escaped as JSON allows: no `</script>` or `<!--` can stand in it.
    return text.replace("<", "\\u003c")


def _plain(value: object) -> object:
    if isinstance(value, float):
        return finite_or_none(value)
    if isinstance(value, dict):
        return {_short(str(name)): _plain(part) for name, part in value.items()}
    if isinstance(value, str):
        return _short(value)
    return [_plain(part) for part in value] if isinstance(value, Iterable) else value


def _short(text: str) -> str:
    """A text with its middle left out if it is too long: names differ at either end."""
    half = LONGEST_TEXT // 2
    return text if len(text) <= LONGEST_TEXT else f"{text[:half]}…{text[-half:]}"
