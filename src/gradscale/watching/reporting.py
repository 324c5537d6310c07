"""From what was seen in some steps to a report."""

from __future__ import annotations

from collections.abc import Sequence

from gradscale.layerwise.function_verdict import FunctionVerdict
from gradscale.watching.flushed_whole import vanished_sights
from gradscale.watching.judging import is_narrow, judge
from gradscale.watching.measuring_step import StepSights
from gradscale.watching.report import WatchReport
from gradscale.watching.rows import Row
from gradscale.watching.sights import together


def report_of(
    seen: Sequence[StepSights],
    format: str | None,
    at: int | None,
    *,
    scaled: bool,
    functions: tuple[FunctionVerdict, ...] = (),
) -> WatchReport:
    """The rows of several steps counted as one.

    Args:
        seen: the steps.
        format: to judge for; None for the one that each tensor has.
        at: as if stored at this exponent.
        scaled: whether there was a scaler.
        functions: what is known of functions that torch did not write.
    """
    sights = together(sight for each in seen for sight in each.sights)
    narrow = is_narrow(sights.values())
    # What is half precision somewhere is judged as it is; all float32, as if it were to be float16.
    chosen = format or (None if narrow else "fp16")
    gradients = [sight for sight in sights.values() if sight.kind != "activation"]
    activations = [sight for sight in sights.values() if sight.kind == "activation"]
    # Before they are sorted: it follows the pass, in which one zero leads to the next.
    gone = vanished_sights(gradients)
    gradients.sort(key=lambda sight: sight.broken or sight.order)
    rows = {
        sight.key: judge(sight, chosen, at, vanished=sight.key in gone, narrow=narrow)
        for sight in (*gradients, *activations)
    }
    return WatchReport(
        in_order=tuple(rows.values()),
        steps=tuple(each.step for each in seen),
        format=chosen,
        scaled=scaled,
        alone=any(each.alone for each in seen),
        first_nonfinite=_first(seen, rows, activations=False),
        first_nonfinite_forward=_first(seen, rows, activations=True),
        functions=functions,
    )


def _first(
    seen: Sequence[StepSights], rows: dict[tuple[str, str], Row], *, activations: bool
) -> Row | None:
    for each in reversed(seen):
        alike = (sight for sight in each.sights if (sight.kind == "activation") == activations)
        broken = [sight for sight in alike if sight.broken is not None]
        if broken:
            # As far up the pass as it was met; what comes later may only follow from it.
            first = min(broken, key=lambda sight: sight.broken or ())
            return rows[first.key]
    return None
