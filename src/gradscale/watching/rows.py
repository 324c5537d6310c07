"""One place of a network and what was seen there, judged for one format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from gradscale.backward.measurements import Counts
from gradscale.files.json_text import JsonObject
from gradscale.formats import FloatFormat
from gradscale.plans.window import Window, flush_octave

RowKind = Literal["parameter", "module", "cast", "activation"]
Method = Literal["counted", "reference", "probe", "extrapolated"]


@dataclass(frozen=True)
class Row:
    """What one parameter's gradient, module, cast or activation held, and what a format loses.

    Attributes:
        name: ``"layers.0.qkv.weight"``, ``"layers.0.qkv"``, ``"cast after head"``,
            ``"layers.0.act (output)"``.
        kind: ``"parameter"``, ``"module"``, ``"cast"`` or ``"activation"``.
        format: the name of the format that is judged; `FloatFormat.of` knows it.
        counts: what was seen, unscaled.
        exponent: it is stored at ``2**exponent`` times the true value, rounded up; 0 for
            activations.
        flushed: elements lost: not zero before they were rounded to the format, zero after.
        method: where `flushed` comes from. ``"counted"``: seen before the rounding, exact.
            ``"reference"``, ``"probe"``: from another backward pass of the same batch.
            ``"extrapolated"``: estimated from the octaves that were left.
        window: the exponents at which nothing overflows and little is lost.
        negligible: the true value is zero up to rounding; set apart, never an alarm.
        unsure: zeros that were seen, of which nobody knows whether they are true: something may
            have flushed them before. 0 where nothing could.

    Example:
        >>> seen = Counts(amax=1.0, zero=2, lowest=-26, octaves=(3, *[0] * 25, 5))
        >>> row = Row("head.weight", "parameter", "fp16", seen, 0, 3, "counted", Window(2, 11, 13))
        >>> row.numel, row.nonzero, row.lost_share, row.needs
        (10, 8, 0.375, 2)
    """

    name: str
    kind: RowKind
    format: str
    counts: Counts
    exponent: int
    flushed: int
    method: Method
    window: Window
    negligible: bool = False
    unsure: int = 0

    @property
    def numel(self) -> int:
        """How many elements were counted, over all passes and ranks."""
        return self.counts.numel

    @property
    def nonzero(self) -> int:
        """How many elements are truly not zero: those seen, and those lost before anybody could."""
        return self.counts.nonzero + self._unseen

    @cached_property
    def _unseen(self) -> int:
        if self.method == "counted":
            return 0
        # Of those lost, some were seen: at a wider place, below the format's end. Others are zeros.
        seen = self._octaves_below(flush_octave(self._format))
        return max(0, min(self.flushed - seen, self.counts.zero))

    @property
    def lost_share(self) -> float:
        """`flushed` as a share of `nonzero`."""
        return self.flushed / max(1, self.nonzero)

    @property
    def least(self) -> int:
        """How many elements are lost for certain: those that were seen before they were flushed.

        By a reference or a probe, as many as that found.
        """
        return self.flushed - (self._unseen if self.method == "extrapolated" else 0)

    @property
    def most(self) -> int:
        """How many would be lost if no zero were true; `flushed`, where it is known which are."""
        return max(self.flushed, self.flushed - self._unseen + self.unsure)

    @property
    def zero_share(self) -> float:
        """The share of elements that are truly zero, as behind a ReLU."""
        return (self.counts.zero - self._unseen) / max(1, self.numel)

    @property
    def subnormal_share(self) -> float:
        """The share of `nonzero` that the format keeps with less than its full precision."""
        kept = self._octaves_below(self._format.min_exponent)
        lost = self._octaves_below(flush_octave(self._format))
        return (kept - lost) / max(1, self.nonzero)

    @property
    def typical(self) -> float:
        """``2**`` the mean of ``log2 |x|`` over what was seen, 0 if all was zero.

        Exact if the counts have moments; else an octave's elements stand in its middle, and the
        result is right to within half an octave.
        """
        total = self.counts.nonzero
        if not total:
            return 0.0
        if self.counts.moments is not None:
            return math.exp(self.counts.moments[2] / total)
        octaves = enumerate(self.counts.octaves, self.counts.lowest)
        return 2.0 ** (sum(octave * count for octave, count in octaves) / total + 0.5)

    @property
    def headroom(self) -> float:
        """Octaves between the largest finite gradient, as stored, and the format's largest number.

        Negative for a tensor that the format cannot hold at this exponent; infinite for zeros.
        """
        # Whatever is zero fits anywhere.
        if self.counts.amax == 0:
            return math.inf
        return math.log2(self._format.max) - math.log2(self.counts.amax) - self.exponent

    @property
    def needs(self) -> int:
        """The exponent of the window that is nearest to the one it has."""
        return max(self.window.lo, min(self.exponent, self.window.hi))

    @property
    def overflows(self) -> bool:
        """Whether something is not finite, or would not be in this format."""
        return self.counts.nonfinite > 0 or self.headroom < 0

    @property
    def _format(self) -> FloatFormat:
        return FloatFormat.of(self.format)

    def _octaves_below(self, octave: int) -> int:
        """How many elements were seen below an octave of the stored values."""
        return sum(self.counts.octaves[: max(0, octave - self.exponent - self.counts.lowest)])

    def with_truth(self, flushed: int, method: Method) -> Row:
        """The same row with another, better founded number of lost elements.

        Example:
            >>> half = Row("w", "parameter", "fp16", Counts(1.0, 8, 0, 0, (2,)), 0, 0,
            ...            "extrapolated", Window())
            >>> half.with_truth(6, "reference").lost_share
            0.75
        """
        unsure = 0 if method == "reference" else self.unsure
        return replace(self, flushed=flushed, method=method, unsure=unsure)

    def to_dict(self) -> JsonObject:
        """Plain numbers, strings and lists, for JSON; `from_dict` is the inverse."""
        state = asdict(self)
        # As JSON would have them: what is written equals what comes back.
        state["counts"]["octaves"] = list(self.counts.octaves)
        if self.counts.moments is not None:
            state["counts"]["moments"] = list(self.counts.moments)
        return state

    @staticmethod
    def from_dict(state: Mapping[str, Any]) -> Row:
        """A row from what `to_dict` returned.

        Example:
            >>> row = Row("w", "cast", "e5m2", Counts(), 16, 0, "counted", Window())
            >>> Row.from_dict(row.to_dict()) == row
            True
        """
        fields = dict(state)
        counts = dict(fields["counts"])
        counts["octaves"] = tuple(counts["octaves"])
        if counts["moments"] is not None:
            counts["moments"] = tuple(counts["moments"])
        fields["counts"] = Counts(**counts)
        fields["window"] = Window(**fields["window"])
        return Row(**fields)
