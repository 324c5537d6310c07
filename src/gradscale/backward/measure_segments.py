"""Many small tensors counted in one go, each into a row of its own.

A dozen operations for thousands of tensors, where one tensor at a time takes as many operations for
each: a recurrence hands on tensors of a few elements, and what they cost is calls, not arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors  # pyright: ignore[reportPrivateUsage]

from gradscale.backward.measure_counts import with_logarithms
from gradscale.backward.measure_rows import (
    AMAX,
    OCTAVES,
    WIDTH,
    columns_of,
    empty_counts,
    finite_bits,
)
from gradscale.histogram import MIN_OCTAVE, magnitude_bits


class Segments:
    """Tensors side by side, and which element belongs to which.

    Args:
        tensors: of one real floating dtype, dense, on one device, at least one.

    Example:
        >>> segments = Segments([torch.tensor([1.0, 3.0]), torch.tensor([0.0])])
        >>> rows, lowest = segments.counts(ceil=False)
        >>> rows.tolist(), lowest
        ([[1077936128, 0, 0, 1, 1], [0, 1, 0, 0, 0]], 0)
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._flat = _flatten_dense_tensors(tensors)
        self._number = len(tensors)
        lengths = torch.tensor([tensor.numel() for tensor in tensors], device="cpu")
        self._segments = torch.repeat_interleave(
            _begun(lengths, self._flat.device), output_size=self._flat.numel()
        )

    def counts(self, *, ceil: bool) -> tuple[Tensor, int]:
        """A row for each tensor, without the octaves that none reaches, where that is known.

        The host knows at once of its own memory; of an accelerator it would have to wait.

        Returns:
            Shape `(tensors, OCTAVES + octaves)`, and the octave of column `OCTAVES`.
        """
        bits = magnitude_bits(self._flat)
        columns = columns_of(bits, ceil=ceil).to(torch.int64)
        first, end = _reached(columns)
        rows = empty_counts(self._number, bits.device, OCTAVES + end - first)
        # Octaves below the first that is reached have no column, so those above move down; the
        # columns in front of the octaves stay.
        if first > OCTAVES:
            columns = torch.where(columns < OCTAVES, columns, columns - (first - OCTAVES))
        # A row and a column as one number: a single scatter counts every element of every tensor.
        places = self._segments * rows.shape[1] + columns
        rows.view(-1).scatter_add_(0, places, torch.ones_like(places))
        amax = torch.zeros(self._number, dtype=bits.dtype, device=bits.device)
        # As bits: of positive floats the larger has the larger ones, so integers will do.
        rows[:, AMAX] = amax.scatter_reduce_(0, self._segments, finite_bits(bits), "amax")
        return rows, MIN_OCTAVE + first - OCTAVES

    def moments(self) -> Tensor:
        """The sums of `moments_into` for each tensor: shape `(tensors, 4)`, float64."""
        values, logs = with_logarithms(self._flat)
        terms = torch.stack([values, values.square(), logs, logs.square()], 1)
        sums = torch.zeros(self._number, 4, dtype=terms.dtype, device=terms.device)
        return sums.index_add_(0, self._segments, terms)


def _begun(lengths: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    if device.type == "cuda":
        lengths = lengths.pin_memory()
    return lengths.to(device, non_blocking=True)


def _reached(columns: Tensor) -> tuple[int, int]:
    """From the first column of an octave that is reached to behind the last."""
    # To ask an accelerator would wait for it: there all octaves have a column.
    if columns.device.type != "cpu":
        return OCTAVES, WIDTH
    inside = torch.where(columns < OCTAVES, WIDTH, columns)
    first, last = int(inside.min()), int(columns.max())
    return (first, last + 1) if last >= OCTAVES else (OCTAVES, OCTAVES)
