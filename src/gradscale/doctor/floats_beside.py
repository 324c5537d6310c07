"""Weights, running statistics and moments beside a scaler, as far as they are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from gradscale.doctor.finding import Finding
from gradscale.doctor.inert.bad_floats import EXPONENTS
from gradscale.doctor.inert.tree import SavedArray
from gradscale.doctor.number_text import counted

NAMED = 5
"""Tensors that a finding names."""

_STATISTICS = ("running_mean", "running_var")


class _Kind(NamedTuple):
    code: str
    what: str
    way_out: str


_WEIGHTS = _Kind(
    "bad-weights",
    "Weights are infinite or NaN.",
    "Go back to a checkpoint from before: no later step can mend them.",
)
_RUNNING = _Kind(
    "bad-statistics",
    "Running statistics are infinite or NaN: training goes on, evaluation is not finite.",
    "Reset them (`module.reset_running_stats()`) and train some steps, or take those of an "
    "earlier checkpoint; a bad batch reached the forward pass of a step that was skipped.",
)
_MOMENTS = _Kind(
    "bad-moments",
    "The optimizer's state is infinite or NaN: its next step writes that into the weights.",
    "Go back to a checkpoint from before, or load the weights alone and begin a new optimizer.",
)


def bad_floats(arrays: Iterable[tuple[str, SavedArray]], place: str) -> list[Finding]:
    """What is wrong with the floats of a checkpoint, each tensor by its name.

    Args:
        arrays: from `search`.
        place: of the file, where there are several.
    """
    found: dict[_Kind, list[tuple[str, SavedArray]]] = {}
    unread = 0
    for where, array in arrays:
        unread += array.nonfinite is None and array.dtype in EXPONENTS
        # A single infinity is the best loss before there was any.
        best = array.shape == () and array.value is not None and math.isinf(array.value)
        if array.nonfinite and not best:
            found.setdefault(_kind(where), []).append((where, array))
    findings = [_finding(kind, bad, place) for kind, bad in found.items()]
    return findings + ([_unread(unread, place)] if unread else [])


def _kind(where: str) -> _Kind:
    # First: what an optimizer keeps of a norm's weight has no such name.
    if any(name in where for name in _STATISTICS):
        return _RUNNING
    return _MOMENTS if "optim" in where.lower() else _WEIGHTS


def _finding(kind: _Kind, bad: list[tuple[str, SavedArray]], place: str) -> Finding:
    named = "; ".join(
        f"{array.nonfinite:,} of {math.prod(array.shape):,} elements of {where}"
        for where, array in bad[:NAMED]
    )
    more = f"; and {counted(len(bad) - NAMED, 'tensor')} more" if len(bad) > NAMED else ""
    return Finding("error", kind.code, kind.what, f"{named}{more}.", kind.way_out, place)


def _unread(count: int, place: str) -> Finding:
    return Finding(
        "note", "floats-unread", f"{counted(count, 'tensor')} could not be looked through.",
        "They are views, damaged, or larger together than what is looked at in one file.",
        "`torch.isfinite(tensor).all()` says it of each.", place,
    )  # fmt: skip
