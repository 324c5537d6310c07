"""A run in a few numbers: for `--json`, for the tiles of the page, and for the tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from gradscale.recording import Seen
from gradscale.report.counting import best_scale, fate, summed
from gradscale.report.histograms import latest, rounded_up
from gradscale.report.ranges import ranges_of
from gradscale.report.rows import RowStory
from gradscale.report.run import Run
from gradscale.report.timeline import Timeline

WORST = 5
T = TypeVar("T")


def summary_of(run: Run) -> dict[str, Any]:
    """What a run comes down to, as plain values; None for what was not recorded.

    Returns:
        ``steps``, ``skipped``, ``reasons``, the micro-batches ``dropped``, the ``scale`` (log2,
        first, last, lowest, highest), the last ``loss``, the ``lost`` share with its method, the
        ``worst`` rows, the number of ``groups``, and ``best``: the single scale that would lose
        least, by the last histograms.
    """
    line, steps = run.timeline, run.recording.steps
    return {
        "name": run.name,
        "format": run.recording.header.format,
        "policy": _policy(run),
        "layerwise": run.recording.header.layerwise,
        "steps": len(steps),
        "first_step": steps[0].step if steps else None,
        "last_step": steps[-1].step if steps else None,
        "skipped": len(line.skipped),
        "reasons": line.reasons,
        "dropped": _dropped(line),
        "log2_scale": _spread(line.scale.tolist()),
        "loss": _last(_known(line.loss.tolist())),
        "lost": _lost(run),
        "worst": _worst(run),
        "groups": _last([int(n) for n in _known(line.groups.tolist())]),
        "best": best_of(run),
        "missing": run.missing,
    }


def _dropped(line: Timeline) -> dict[str, int] | None:
    """Micro-batches that were left out, and in how many steps; None if none was."""
    batches = sum(step.dropped for step in line.dropping)
    return {"micro_batches": batches, "steps": len(line.dropping)} if batches else None


def _policy(run: Run) -> str | None:
    policy = run.recording.header.policy
    return None if policy is None else str(policy.get("name"))


def _known(values: list[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _last(values: list[T]) -> T | None:
    return values[-1] if values else None


def _spread(values: list[float]) -> dict[str, float] | None:
    known = _known(values)
    if not known:
        return None
    return {"first": known[0], "last": known[-1], "lowest": min(known), "highest": max(known)}


def _lost(run: Run) -> dict[str, object] | None:
    """Over the run, at its worst measured step and at its last one."""
    measured = [(step.step, step.seen) for step in run.recording.steps if step.seen is not None]
    shares = [(at, seen.lost_share) for at, seen in measured if seen.lost_share is not None]
    counted = [row for row in run.rows if row.counts]
    if not counted:
        return None
    # Over rows, not over steps: a step that measured few rows counts for less.
    flushed, nonzero = sum(row.flushed for row in counted), sum(row.nonzero for row in counted)
    worst = max(shares, key=lambda pair: pair[1], default=None)
    return {
        "share": flushed / nonzero if nonzero else None,
        "between": _between([seen for _, seen in measured], counted, nonzero - flushed),
        "last": _last([share for _, share in shares]),
        "worst": None if worst is None else {"step": worst[0], "share": worst[1]},
        "method": measured[-1][1].method,
        "measured_steps": len(measured),
    }


def _between(seen: Sequence[Seen], counted: Sequence[RowStory], kept: int) -> list[float] | None:
    """The least and the largest share that fits what was measured; None if it is known."""
    if all(it.least is None or it.most is None for it in seen):
        return None
    # A step without bounds knows what it lost: it adds the same to both.
    counting = {row.info.id for row in counted}
    least = most = 0
    for it in seen:
        if it.least is None or it.most is None:
            known = sum(n for id, n in zip(it.id, it.flushed, strict=True) if id in counting)
            least, most = least + known, most + known
        else:
            least, most = least + it.least, most + it.most
    return [lost / max(1, kept + lost) for lost in (least, most)]


def _worst(run: Run) -> list[dict[str, object]]:
    losing = [row for row in run.rows if row.alarming and row.flushed]
    # Of equal shares the one that the backward pass comes to first.
    losing.sort(key=lambda row: (-row.lost_share, row.info.order))
    return [
        {"row": row.info.name, "kind": row.info.kind, "share": row.lost_share}
        for row in losing[:WORST]
    ]


def best_of(run: Run) -> dict[str, object] | None:
    """The one loss scale at which the latest histograms lose least, and what that is.

    Every row keeps its distance to the loss scale, as under the plan in use. Activations do not
    follow the scale and are left out, as are rows that are zero in truth.
    """
    if not run.snapshots or math.isnan(run.snapshots[-1].log2_scale):
        return None
    spans = ranges_of({row.info.format for row in run.rows})
    stored = [
        (histogram, spans[run.rows[row].info.format])
        for row, histogram in sorted(latest(run.snapshots).items())
        if run.rows[row].counts and run.rows[row].info.format in spans
    ]
    recorded = rounded_up(run.snapshots[-1].log2_scale)
    best = best_scale(stored, recorded)
    if best is None:
        return None
    # Both by the same histograms: what was measured is no match for what is predicted.
    now, then = (
        summed(fate(it, span, it.offset + s) for it, span in stored) for s in (recorded, best)
    )
    return {
        "log2_scale": best,
        "lost": then.lost,
        "share": then.share,
        "recorded": {"log2_scale": recorded, "lost": now.lost, "share": now.share},
    }
