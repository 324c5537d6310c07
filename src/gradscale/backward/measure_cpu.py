"""The quick forms of `count_into` for large tensors in host memory.

A format of 8 or 16 bits has so few bit patterns that it is quickest to count how often each occurs,
and then to look up what each means: the columns are `count_by_torch`'s own, so every value counts
as it does there. Patterns of one octave differ in their mantissas; counting those apart is no
slower than counting exponents (0.64 against 0.69 ns an element), because two increments in a row
then seldom wait for one another's memory.

float32 has too many patterns. There the exponent fields are counted; where a value is infinite or
NaN, or below the normal range, the plain form counts instead: both are rare, and asking costs
nothing where the host computes anyway.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from gradscale.backward.measure_rows import (
    AMAX,
    FIELDS,
    FIRST_NORMAL,
    INF_BITS,
    ZERO,
    columns_of,
    finite_bits,
)
from gradscale.histogram import magnitude_bits

AT_LEAST = 512
"""Below it the plain form is as fast."""

_MANTISSA_BITS = 23
_MANTISSA = 0x7FFFFF
_MAGNITUDE = 0x7FFFFFFF


def count_on_cpu(row: Tensor, flat: Tensor, *, ceil: bool) -> bool:
    """Adds what `flat` holds to `row`; False, and nothing done, if the plain form must do it.

    Args:
        row: shape `(WIDTH,)`, int64; changed in place.
        flat: shape `(numel,)`, not empty, a real dtype that float32 holds exactly.
        ceil: an octave is ``(2**k, 2**(k + 1)]``, not ``[2**k, 2**(k + 1))``.
    """
    if flat.dtype.itemsize > 2:
        return _count_fields(row, flat, ceil=ceil)
    _count_patterns(row, flat, ceil=ceil)
    return True


class _Meaning(NamedTuple):
    """For each bit pattern of a format the column in which it counts, and its finite bits."""

    columns: Tensor
    magnitudes: list[int]


@cache
def _meaning(dtype: torch.dtype, ceil: bool) -> _Meaning:
    wide = dtype.itemsize == 2
    # Without a sign a pattern of 16 bits is no negative number, as `bincount` wants it.
    patterns = torch.arange(1 << 15, dtype=torch.int16, device="cpu") if wide else _BYTES
    bits = magnitude_bits(patterns.view(dtype))
    return _Meaning(columns_of(bits, ceil=ceil), finite_bits(bits).tolist())


_BYTES = torch.arange(1 << 8, dtype=torch.uint8, device="cpu")


def _count_patterns(row: Tensor, flat: Tensor, *, ceil: bool) -> None:
    wide = flat.dtype.itemsize == 2
    patterns = flat.view(torch.int16) & 0x7FFF if wide else flat.view(torch.uint8)
    counts = torch.bincount(patterns)
    columns, magnitudes = _meaning(flat.dtype, ceil)
    # `bincount` ends at the largest pattern that occurs.
    row.index_add_(0, columns[: len(counts)], counts)
    # The last pattern is the largest magnitude, unless patterns are signed or not finite.
    largest = magnitudes[len(counts) - 1]
    if not (wide and largest):
        met = counts.nonzero().view(-1).tolist()
        largest = max(magnitudes[pattern] for pattern in met)
    row[AMAX] = max(int(row[AMAX]), largest)


def _count_fields(row: Tensor, flat: Tensor, *, ceil: bool) -> bool:
    bits = flat.view(torch.int32) & _MAGNITUDE
    largest = bits.max()
    if int(largest) >= INF_BITS:
        return False
    if not ceil:
        zeros = bits.numel() - torch.count_nonzero(bits)
        fields = torch.bincount(bits.bitwise_right_shift_(_MANTISSA_BITS), minlength=FIELDS)
        # Field 0 holds zeros, and what lies below the normal range.
        low, normal = fields[0] - zeros, fields[1:-1]
    else:
        # Rounded up, all but powers of two move one field on, and nothing but zeros stays in 0.
        bits += _MANTISSA
        fields = torch.bincount(bits.bitwise_right_shift_(_MANTISSA_BITS), minlength=FIELDS)
        zeros, low, normal = fields[0], fields[1], fields[2:]
    if int(low):
        return False
    row[ZERO] += zeros
    row[FIRST_NORMAL:] += normal
    row[AMAX] = torch.maximum(row[AMAX], largest)
    return True
