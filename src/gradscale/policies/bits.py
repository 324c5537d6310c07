"""Exact base-2 exponents and powers of two, read and written through the bits of float32."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SCALE = 2.0**-126
"""The smallest normal float32: no scale is ever below it, so that none is flushed to zero."""

MAX_FLOAT32 = torch.finfo(torch.float32).max

_MANTISSA_BITS = 23
_MANTISSA_MASK = 2**_MANTISSA_BITS - 1
_BIAS = 127


def floor_log2(values: Tensor) -> Tensor:
    """The largest integer `e` with ``2**e <= value``, exactly.

    Args:
        values: any shape, float32, positive and normal.

    Returns:
        The same shape, int32.

    Example:
        >>> floor_log2(torch.tensor([1.0, 1.5, 65504.0]))
        tensor([ 0,  0, 15], dtype=torch.int32)
    """
    # Of a positive normal number the sign is 0: the shift leaves the field of the exponent.
    return (values.view(torch.int32) >> _MANTISSA_BITS) - _BIAS


def ceil_log2(values: Tensor) -> Tensor:
    """The smallest integer `e` with ``value <= 2**e``, exactly.

    Args:
        values: any shape, float32, positive and normal.

    Returns:
        The same shape, int32.

    Example:
        >>> ceil_log2(torch.tensor([1.0, 1.5, 65504.0]))
        tensor([ 0,  1, 16], dtype=torch.int32)
    """
    # A mantissa of ones carries into the exponent unless the value is a power of two.
    return ((values.view(torch.int32) + _MANTISSA_MASK) >> _MANTISSA_BITS) - _BIAS


def power_of_two(exponents: Tensor) -> Tensor:
    """``2**exponent``, exactly: `exp2` of an integer need not be on every device.

    Args:
        exponents: any shape, int32, each in [-126, 127].

    Returns:
        The same shape, float32.

    Example:
        >>> power_of_two(torch.tensor([-2, 16], dtype=torch.int32))
        tensor([2.5000e-01, 6.5536e+04])
    """
    return ((exponents + _BIAS) << _MANTISSA_BITS).view(torch.float32)
