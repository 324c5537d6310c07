"""The quick form of `count_into` for tensors in host memory: a histogram of exponent fields.

Where a value is infinite or NaN, or below float32's normal range, the plain form counts instead:
both are rare, and asking costs nothing where the host computes anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor

AT_LEAST = 1024
"""Below it the plain form is as fast."""

_MANTISSA_BITS = 23
_MANTISSA = 0x7FFFFF
_MAGNITUDE = 0x7FFFFFFF
_INF_BITS = 0x7F800000
_FIELDS = 256
# The octave of 2^-126, the smallest normal number, is bin 23 of a histogram that begins at 2^-149.
_FIRST_NORMAL = 23


def count_on_cpu(
    row: Tensor, flat: Tensor, *, amax: int, zero: int, octaves: int, ceil: bool
) -> bool:
    """Adds what `flat` holds to `row`; False, and nothing done, if the plain form must do it.

    Args:
        row: shape `(WIDTH,)`, int64; changed in place.
        flat: shape `(numel,)`, a real dtype that float32 holds exactly.
        amax: the column of the largest magnitude.
        zero: the column of zeros.
        octaves: the first column of octaves.
        ceil: an octave is ``(2**k, 2**(k + 1)]``, not ``[2**k, 2**(k + 1))``.
    """
    bits = flat.to(torch.float32, copy=flat.dtype == torch.float32).view(torch.int32)
    bits &= _MAGNITUDE
    largest = bits.max()
    if int(largest) >= _INF_BITS:
        return False
    if not ceil:
        zeros = bits.numel() - torch.count_nonzero(bits)
        fields = torch.bincount(bits.bitwise_right_shift_(_MANTISSA_BITS), minlength=_FIELDS)
        low, normal = fields[0] - zeros, fields[1:-1]
    else:
        # Rounded up, all but powers of two move one field on, and nothing but zeros stays in 0.
        bits += _MANTISSA
        fields = torch.bincount(bits.bitwise_right_shift_(_MANTISSA_BITS), minlength=_FIELDS)
        zeros, low, normal = fields[0], fields[1], fields[2:]
    if int(low):
        return False
    row[zero] += zeros
    row[octaves + _FIRST_NORMAL :] += normal
    row[amax] = torch.maximum(row[amax], largest)
    return True
