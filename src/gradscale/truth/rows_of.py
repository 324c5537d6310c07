"""Rows out of gradients: what a pass held, and which elements were lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gradscale.backward.cancellation import mostly
from gradscale.backward.measure_counts import count_into
from gradscale.backward.measure_rows import empty_counts
from gradscale.backward.measurements import Counts, unscaled_counts
from gradscale.emulation.direction_formats import carrier
from gradscale.exponents import ceil_exponent
from gradscale.formats import FloatFormat
from gradscale.plans.window import window_of
from gradscale.truth.gradients import Gradients
from gradscale.watching.rows import Method, Row, RowKind


class Pair(NamedTuple):
    """One tensor of a pass, and whatever says what became of its elements.

    Attributes:
        held: as stored.
        other: the same gradient from another pass, or None.
        zeros: elements that are zero up to rounding, or None.
        product: whether a product reads it in the product's own format.
        parameter: whether it is a parameter's gradient.
    """

    held: Tensor
    other: Tensor | None = None
    zeros: Tensor | None = None
    product: bool = False
    parameter: bool = False

    def read(self, format: FloatFormat) -> Tensor:
        """What is read of it: a product rounds its gradient to its own format first."""
        return format.round(self.held) if self.product else self.held

    def storage(self, format: FloatFormat) -> FloatFormat:
        """The format that it was stored in: the carrier's, if all its values are of that.

        Under autocast the gradient of a float32 parameter is computed in half precision.
        """
        own, narrow = FloatFormat.of(_real(self.held.dtype)), carrier(format)
        fits = own.fits_into(narrow)
        return own if fits or not torch.equal(narrow.round(self.held), self.held) else narrow


class Found(NamedTuple):
    """What became of a tensor's elements.

    Attributes:
        flushed: how many were lost.
        counts: what the window is computed from, unscaled.
    """

    flushed: int
    counts: Counts


Judge = Callable[[Pair, FloatFormat, Counts], Found]


@dataclass(frozen=True)
class RowTensors:
    """The tensors of one row: a parameter's gradient, or all outputs of a module."""

    name: str
    kind: RowKind
    pairs: tuple[Pair, ...]


def places(
    stored: Gradients, other: Gradients | None, zeros: dict[str, Tensor]
) -> list[RowTensors]:
    """Parameters and modules of a pass, in order; what only one of two passes has is left out."""
    there = Gradients() if other is None else other
    found: list[RowTensors] = []
    for name, held in stored.parameters.items():
        if other is None or name in there.parameters:
            pair = Pair(held, there.parameters.get(name), zeros.get(name), parameter=True)
            found.append(RowTensors(name, "parameter", (pair,)))
    # All calls of a module are one row: that is what it loses.
    by_module: dict[str, list[Pair]] = {}
    for output, held in stored.modules.items():
        if other is None or output in there.modules:
            pair = Pair(held, there.modules.get(output), product=output in stored.products)
            by_module.setdefault(output.module, []).append(pair)
    return [*found, *(RowTensors(name, "module", tuple(by_module[name])) for name in by_module)]


def row_of(
    place: RowTensors, format: FloatFormat, scale: float, method: Method, judge: Judge
) -> Row:
    """The row of a place.

    Args:
        place: one of `places`.
        format: what backward products read their gradient in; the rest is stored in it, too, unless
            it is narrower than 16 bits: then in float16.
        scale: of the pass.
        method: what to say about the numbers.
        judge: how many elements of a tensor are lost.
    """
    narrow = any(pair.product for pair in place.pairs)
    shown = format if narrow else place.pairs[0].storage(format)
    seen, true, flushed = Counts(), Counts(), 0
    for pair in place.pairs:
        counts = counts_of(pair.held, scale)
        found = judge(pair, format, counts)
        seen, true, flushed = seen + counts, true + found.counts, flushed + found.flushed
    # Only parameters have sums that cancel; a module's outputs have none.
    zeros = [pair.zeros for pair in place.pairs if pair.zeros is not None]
    negligible = bool(zeros) and all(bool(mostly(each)) for each in zeros)
    # Rounded up: at a scale between two powers nothing is called safe that overflows.
    exponent, window = ceil_exponent(scale), window_of(true, shown)
    return Row(
        name=place.name,
        kind=place.kind,
        format=shown.name,
        counts=seen,
        exponent=exponent,
        flushed=flushed,
        method=method,
        window=window,
        negligible=negligible,
        unsure=0 if method == "reference" else seen.zero,
    )


def counts_of(tensor: Tensor, scale: float) -> Counts:
    """What a tensor holds, unscaled. Reads the host."""
    rows = empty_counts(1, tensor.device)
    count_into(rows[0], tensor)
    return unscaled_counts(rows.cpu(), [(scale, 0)])[0]


def _real(dtype: torch.dtype) -> torch.dtype:
    return {torch.complex32: torch.float16, torch.float64: torch.float32}.get(
        dtype, torch.float32 if dtype.is_complex else dtype
    )
