"""How much of the gradients a pass lost, and how that is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from gradscale.files.json_text import JsonObject
from gradscale.formats import FloatFormat
from gradscale.metrics.lost_count import LostBetween, count_lost, lost_between, may_lose
from gradscale.truth.gradients import Gradients
from gradscale.truth.judges import by_octaves, by_probe, by_truth
from gradscale.truth.nonfinite import Scales, scale_to_run_at
from gradscale.truth.one_pass import Loss, one_pass
from gradscale.truth.probe import probe
from gradscale.truth.reference import Precision, reference
from gradscale.truth.rows_of import Judge, RowTensors, places, row_of
from gradscale.watching.rows import Row

HOW = {
    "reference": "compared with a pass of the same batch at higher precision",
    "probe": "a lower bound, from a pass of the same batch at a higher scale",
    "extrapolated": "an estimate, from the octaves that were left",
}
Way = Literal["reference", "probe", "extrapolated"]


@dataclass(frozen=True)
class Lost:
    """What one backward pass lost.

    Attributes:
        rows: parameters and modules, the one with the most lost elements first.
        method: how it is known: ``"reference"``, ``"probe"`` or ``"extrapolated"``.
        format: what products read their gradient in.
        scale: the loss scale of the pass.
    """

    rows: tuple[Row, ...]
    method: Way
    format: str
    scale: float

    @property
    def flushed(self) -> int:
        """How many elements were lost; see `may_lose` for the rows that count."""
        return count_lost(self.rows).flushed

    @property
    def nonzero(self) -> int:
        """How many elements are truly not zero."""
        return count_lost(self.rows).nonzero

    @property
    def lost_share(self) -> float:
        """`flushed / nonzero`; 0 if nothing was there to lose."""
        return count_lost(self.rows).lost_share or 0.0

    @property
    def lost_between(self) -> LostBetween:
        """The shares between which the truth lies; with a reference both are `lost_share`."""
        return lost_between(self.rows)

    @property
    def nonfinite(self) -> int:
        """How many elements overflowed or are NaN."""
        return sum(row.counts.nonfinite for row in self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"`lost[{name!r}]`: no such module or parameter had a gradient.")

    def __str__(self) -> str:
        lines = [
            f"{self.lost_share:.3%} of {self.nonzero:,} gradient elements lost in {self.format} at "
            f"scale {self.scale:g} ({HOW[self.method]})"
        ]
        lines += [
            f"  {row.name}: {row.lost_share:.2%} of {row.nonzero:,} ({row.kind})"
            for row in self.rows
            if row.flushed and may_lose(row)
        ][:10]
        return "\n".join(lines)

    def to_dict(self) -> JsonObject:
        """Plain numbers, strings and lists, for JSON."""
        return {
            "lost_share": self.lost_share,
            "lost_between": list(self.lost_between),
            "flushed": self.flushed,
            "nonzero": self.nonzero,
            "nonfinite": self.nonfinite,
            "method": self.method,
            "format": self.format,
            "scale": self.scale,
            "rows": [row.to_dict() for row in self.rows],
        }


def measure_lost(
    model: nn.Module,
    loss: Loss,
    *,
    scale: float | Scales = 1.0,
    format: FloatFormat | torch.dtype | str | None = None,
    method: Way = "reference",
    precision: Precision = "fp32",
    octaves: int | None = None,
) -> Lost:
    """How much the backward pass of `scale * loss(model)` loses; runs it, and leaves no trace.

    | method | what runs | what the number is |
    |---|---|---|
    | ``"reference"`` | the pass, and one at higher precision | the truth |
    | ``"probe"`` | the pass, and one at a higher scale | a lower bound |
    | ``"extrapolated"`` | the pass | an estimate from the exponent histogram |

    Args:
        model: any module; left as it was, with its gradients, buffers and random numbers.
        loss: of the model, a scalar, under the autocast or emulation that training uses.
        scale: the loss scale of the training step in question: a number, or the scaler.
        format: what backward products read their gradient in; None for the one that they do read it
            in, emulated or real, and for float16 in a pass that is all float32.
        method: see above.
        precision: of the reference.
        octaves: by how much the probe's scale is higher; None: as far as nothing overflows.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> model = nn.Linear(4, 1)
        >>> def loss(model):
        ...     with torch.autocast("cpu", torch.float16):
        ...         return model(torch.ones(2, 4)).float().mean() * 1e-8
        >>> [measure_lost(model, loss, scale=scale).lost_share for scale in (1.0, 2.0**20)]
        [1.0, 0.0]
    """
    scale = scale_to_run_at(scale)
    if not scale > 0:
        raise ValueError(f"`measure_lost(scale={scale})` must be above 0.")
    if method not in HOW:
        raise ValueError(f"`measure_lost(method={method!r})` must be one of {', '.join(HOW)}.")
    narrow = None if format is None else FloatFormat.of(format)
    if method == "reference":
        # First the truth: it draws the random numbers that the pass below will draw.
        true = reference(model, loss, precision=precision, draw_alike=True)
        stored = one_pass(model, loss, scale, draw_alike=True)
        return compared(true, stored, narrow)
    # Without a reference the pass itself has to tell which gradients are zero up to rounding.
    stored = one_pass(model, loss, scale, cancelled=True, draw_alike=True)
    # After the pass: what products read in is known from it.
    narrow = narrow or stored.format
    if method == "probe":
        higher = probe(model, loss, stored, narrow, octaves)
        pairs, judge = places(stored, higher, stored.zeros), by_probe(higher.scale)
    else:
        pairs, judge = places(stored, None, stored.zeros), by_octaves(stored, narrow)
    return _lost(pairs, narrow, scale, method, judge)


def compared(true: Gradients, stored: Gradients, format: FloatFormat | None = None) -> Lost:
    """What `stored` lost of `true`: not zero there, zero here.

    Args:
        true: from `reference`.
        stored: the half-precision pass's, at whatever scale.
        format: what products read their gradient in; None for what `stored` says of itself.

    Example:
        >>> true = Gradients(parameters={"w": torch.tensor([1.0, 1e-9, 0.0])})
        >>> half = Gradients(parameters={"w": torch.tensor([1.0, 0.0, 0.0])})
        >>> compared(true, half, FloatFormat.of("fp16")).lost_share
        0.5
    """
    format = format or stored.format
    pairs = places(stored, true, true.zeros)
    return _lost(pairs, format, stored.scale, "reference", by_truth)


def _lost(
    places: list[RowTensors], format: FloatFormat, scale: float, method: Way, judge: Judge
) -> Lost:
    rows = [row_of(place, format, scale, method, judge) for place in places]
    # Noise last, however much of it was lost: whoever reads the first rows looks for a cause.
    rows.sort(key=lambda row: (row.negligible, -row.flushed))
    return Lost(tuple(rows), method, format.name, scale)
