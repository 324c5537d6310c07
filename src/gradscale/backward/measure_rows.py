"""Rows of counts, one for each tensor, and the plain way to fill one.

A row is int64, so that many tensors fill one matrix that reaches the host in a single copy:

    row[AMAX]        float32 bits of the largest finite magnitude, which order as it does
    row[ZERO]        how many elements are zero
    row[NONFINITE]   how many are infinite or NaN
    row[OCTAVES:]    how many lie in each octave (`gradscale.histogram`)

The other counts follow: non-zero is the sum of the octaves, and because bins are whole octaves the
subnormals of a format are the sum of the bins below its smallest normal number.

An octave is ``[2**k, 2**(k + 1))``, or on request ``(2**k, 2**(k + 1)]``. A format flushes what is
at most half its smallest subnormal, a power of two, so the latter tells exactly what would be lost
of a tensor that has lost nothing yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradscale.histogram import EXPONENT_BINS, magnitude_bits, octave_bins
from gradscale.ranks import reduce_max_, reduce_sum_

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

AMAX, ZERO, NONFINITE, OCTAVES = 0, 1, 2, 3
WIDTH = OCTAVES + EXPONENT_BINS
INF_BITS = 0x7F800000

FIELDS = 256
"""Exponents of float32: the first is of zero and subnormals, the last of what is not finite."""

FIRST_NORMAL = OCTAVES + 23
"""The column of field 1, the smallest normal numbers: octaves begin at 2^-149, these at 2^-126."""


def empty_counts(rows: int, device: torch.device | str = "cpu", width: int = WIDTH) -> Tensor:
    """A matrix of `rows` rows that have counted nothing yet: shape `(rows, width)`, int64."""
    return torch.zeros(rows, width, dtype=torch.int64, device=device)


def reduce_rows_(
    rows: Tensor, groups: Iterable[ProcessGroup], beside: Sequence[Tensor] = ()
) -> None:
    """Merges what all ranks have counted, in place: the largest magnitudes, and sums of the rest.

    Args:
        rows: shape `(n, columns)`, contiguous, the same places on all ranks.
        groups: the process groups.
        beside: what else is to be summed, such as moments.
    """
    groups, amax = list(groups), rows[:, AMAX].clone()
    reduce_max_([amax], groups)
    reduce_sum_([rows, *beside], groups)
    rows[:, AMAX] = amax


def count_by_torch(row: Tensor, flat: Tensor, *, ceil: bool = False) -> None:
    """Adds what a tensor holds to a row, in plain torch: slow, obvious, and the same everywhere.

    Args:
        row: shape `(WIDTH,)`, int64; changed in place.
        flat: shape `(numel,)`, not empty, real numbers.
        ceil: powers of two count in the octave below them; see the module.
    """
    bits = magnitude_bits(flat)
    columns = columns_of(bits, ceil=ceil).to(torch.int64)
    row.scatter_add_(0, columns, torch.ones_like(columns))
    row[AMAX].copy_(torch.maximum(row[AMAX], finite_bits(bits).max()))


def columns_of(bits: Tensor, *, ceil: bool) -> Tensor:
    """The column in which each magnitude counts, given its float32 bits; the same shape, int32."""
    # The smallest float32 is a power of two without an octave below it, and stays.
    octaves = octave_bins((bits - 1).clamp(min=1) if ceil else bits)
    columns = torch.where(bits >= INF_BITS, NONFINITE, octaves + OCTAVES)
    return torch.where(bits == 0, ZERO, columns)


def finite_bits(bits: Tensor) -> Tensor:
    """The bits of the finite magnitudes, 0 in place of the others."""
    return torch.where(bits >= INF_BITS, 0, bits)
