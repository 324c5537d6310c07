"""What a recording holds: one value for each kind of line, version 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

VERSION = 1
"""Raised when a line changes its meaning; a new optional entry does not raise it."""

FILE_NAME = "recording.jsonl"
"""What a recording is called inside a folder."""

MOST_CULPRITS = 16
"""Names that a step may hold: where one layer overflows, often all do."""


class Octaves(NamedTuple):
    """A histogram: ``counts[i]`` elements have ``2**(lowest + i) <= |x| < 2**(lowest + i + 1)``."""

    lowest: int
    counts: tuple[int, ...]


class PlanGroup(NamedTuple):
    """Rows that are stored at ``2**exponent`` times their true value."""

    exponent: int
    rows: tuple[int, ...]


class Plan(NamedTuple):
    """Which loss scales were in use: the scale that the plan chose, and its groups."""

    log2_scale: int
    groups: tuple[PlanGroup, ...]


class FirstNonfinite(NamedTuple):
    """The first place that was not finite, in the order of either pass; None where unknown."""

    backward: str | None = None
    forward: str | None = None


class RecordedNetwork(NamedTuple):
    """The network that a plan divides: names, edges between them, and the row at a node."""

    nodes: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    rows: Mapping[int, int]


class RowInfo(NamedTuple):
    """What stays the same of a row, so that steps need only its `id`.

    Attributes:
        id: counts up from 0, in the order of first use.
        name: such as ``layers.0.qkv.weight``.
        kind: ``parameter``, ``module``, ``cast`` or ``activation``.
        format: the format that it is judged for.
        numel: elements when it was first seen.
        order: its place among the rows of a step, in the order in which the pass reached them.
    """

    id: int
    name: str
    kind: str
    format: str
    numel: int
    order: int


@dataclass(frozen=True)
class Header:
    """What run this is.

    Attributes:
        version: of the schema.
        gradscale: the version that wrote it; None in a file that does not say.
        torch: likewise.
        started: UTC, ISO 8601.
        format: what gradients are stored in.
        scaler: its class; None for a run without one.
        policy: ``{"name": …, "config": {…}}``; None for a run without a scaler.
        state: the policy's state before the first step, if it was not the first state.
        layerwise: the planner as text; None without one.
        measure_every: steps between two measurements of rows; None without a watch.
        note: the user's own.
    """

    version: int = VERSION
    gradscale: str | None = None
    torch: str | None = None
    started: str | None = None
    format: str = "fp16"
    scaler: str | None = None
    policy: Mapping[str, object] | None = None
    state: Mapping[str, object] | None = None
    layerwise: str | None = None
    measure_every: int | None = None
    note: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True)
class Seen:
    """What a measuring step saw: lists of one length, one place a row.

    Attributes:
        lost_share: lost elements as a share of the non-zero ones, over all rows of gradients in
            less than float32 that are not negligible; None if there are none.
        method: the weakest of the rows' methods: what `lost_share` rests on.
        id: of the rows, see `RowInfo`.
        flushed: elements lost: not zero before rounding, zero after.
        nonzero: elements that are truly not zero.
        zero: elements that are truly zero.
        nonfinite: infinite or NaN elements.
        amax: log2 of the largest finite magnitude of the unscaled values, rounded up to three
            digits; None if all are zero.
        exponent: it was stored at ``2**exponent`` times its true value.
        lo: the lowest exponent of its window.
        hi: the highest.
        methods: where each row's `flushed` comes from.
        negligible: ids of rows whose true value is zero up to rounding.
        least: elements lost for certain, over the rows that `lost_share` is of; None if `flushed`
            tells.
        most: elements lost if no zero is true; likewise.
    """

    lost_share: float | None
    method: str
    id: tuple[int, ...]
    flushed: tuple[int, ...]
    nonzero: tuple[int, ...]
    zero: tuple[int, ...]
    nonfinite: tuple[int, ...]
    amax: tuple[float | None, ...]
    exponent: tuple[int, ...]
    lo: tuple[int, ...]
    hi: tuple[int, ...]
    methods: tuple[str, ...]
    negligible: frozenset[int] = frozenset()
    least: int | None = None
    most: int | None = None


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        step: its index, from 0.
        scale: the loss scale that it was taken at; NaN if the run had no scaler.
        skipped: whether an optimizer did not step.
        reason: why; None if it was not skipped, or if nobody could say.
        loss: what was noted, unscaled.
        amax: the largest finite magnitude of the unscaled parameter gradients, float32.
        exponents: the histogram of the unscaled parameter gradients.
        overflow: whether the policy was shown an overflow.
        asked: whether the policy chose the next scale; False after `update(new_scale)`.
        groups: how many loss scales were in use.
        optimizers: with several optimizers, whether each skipped.
        dropped: micro-batches that were left out, because they overflowed or their loss was not
            finite; the step was taken on the others, if there were any.
        micro_batches: how many there were, where some were left out; 0 where none was.
        culprits: parameters whose gradients were not finite; the first `MOST_CULPRITS` of them.
        culprits_left_out: how many more there were.
        first_nonfinite: where the first value that is not finite was, if the step measured.
        seen: on measuring steps that were kept.
        octaves: histograms by row id, of the unscaled values; on fewer steps than `seen`.
        plan: where it changed.
    """

    step: int
    scale: float
    skipped: bool = False
    reason: str | None = None
    loss: float | None = None
    amax: float | None = None
    exponents: Octaves | None = None
    overflow: bool = False
    asked: bool = True
    groups: int | None = None
    optimizers: tuple[bool, ...] = ()
    dropped: int = 0
    micro_batches: int = 0
    culprits: tuple[str, ...] = ()
    culprits_left_out: int = 0
    first_nonfinite: FirstNonfinite | None = None
    seen: Seen | None = None
    octaves: Mapping[int, Octaves] = field(default_factory=dict[int, Octaves])
    plan: Plan | None = None
