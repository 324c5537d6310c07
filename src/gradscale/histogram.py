"""Gradient magnitudes counted by octave: the histogram, and what it says of a format."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.formats import FloatFormat

MIN_OCTAVE = -149
"""Base-2 exponent of the first bin: the smallest subnormal of float32."""

EXPONENT_BINS = 277
"""One bin an octave, up to 2^127."""

_MANTISSA_BITS = 23
_BIAS = 127
_SIGN = 0x7FFFFFFF
_INF_BITS = 0x7F800000


def count_exponents(tensor: Tensor) -> Tensor:
    """How many elements of `tensor` lie in each octave; zeros, infinities and NaN are left out.

    Bin `i` counts the elements with ``2**(i - 149) <= |x| < 2**(i - 148)``.

    Args:
        tensor: any shape, any real floating dtype. float64 is rounded to float32 first: what that
            makes zero is left out, what it makes infinite counts in the topmost octave.

    Returns:
        Shape `(EXPONENT_BINS,)`, int64, on the tensor's device.

    Example:
        >>> counts = count_exponents(torch.tensor([1.0, 1.5, 2.0**-30, 0.0]))
        >>> int(counts[0 - MIN_OCTAVE]), int(counts[-30 - MIN_OCTAVE]), int(counts.sum())
        (2, 1, 3)
    """
    bits = magnitude_bits(tensor)
    bins = octave_bins(bits)
    counted = (bits != 0) & (bits < _INF_BITS)
    # What is left out goes to a bin of its own, which is cut off.
    bins = torch.where(counted, bins, EXPONENT_BINS).to(torch.int64)
    counts = torch.zeros(EXPONENT_BINS + 1, dtype=torch.int64, device=bins.device)
    # `bincount` would read the host for its size, and `histc` counts in floats.
    return counts.scatter_add_(0, bins, torch.ones_like(bins))[:EXPONENT_BINS]


def magnitude_bits(tensor: Tensor) -> Tensor:
    """The float32 bit patterns of `|x|`: integers that order as the magnitudes do.

    Args:
        tensor: any shape, any real floating dtype. A finite float64 beyond float32 becomes the
            largest float32, so that it still counts as finite.

    Returns:
        Shape `(numel,)`, int32; 0 for zero, 0x7F800000 for infinity, more for NaN.

    Example:
        >>> [hex(bits) for bits in magnitude_bits(torch.tensor([-1.0, 0.0, float("inf")])).tolist()]
        ['0x3f800000', '0x0', '0x7f800000']
    """
    flat = tensor.detach().reshape(-1)
    bits = flat.to(torch.float32).view(torch.int32) & _SIGN
    if flat.dtype == torch.float64:
        too_large = (bits == _INF_BITS) & torch.isfinite(flat)
        bits = torch.where(too_large, _INF_BITS - 1, bits)
    return bits


def octave_bins(bits: Tensor) -> Tensor:
    """The bin of each magnitude, given its float32 bits; meaningless for zero, inf and NaN.

    Args:
        bits: any shape, int32, from `magnitude_bits`.

    Returns:
        The same shape, int32.

    Example:
        >>> octave_bins(magnitude_bits(torch.tensor([1.0, -6.0]))) + MIN_OCTAVE
        tensor([0, 2], dtype=torch.int32)
    """
    normal = (bits >> _MANTISSA_BITS) - _BIAS - MIN_OCTAVE
    # A subnormal is `bits * 2^-149`, and as a number of its own `bits` is below 2^24, hence exact.
    leading = (bits.to(torch.float32).view(torch.int32) >> _MANTISSA_BITS) - _BIAS
    return torch.where(bits >> _MANTISSA_BITS > 0, normal, leading)


def flushed_fraction(exponents: Tensor, format: FloatFormat, log2_scale: int = 0) -> Tensor:
    """The fraction of non-zero elements that `format` rounds to zero at this scale.

    An element is flushed if, once scaled, it is at most half the smallest subnormal:

        flushed(x)  <=>  |x| * 2**log2_scale <= format.flush_threshold

    Octaves are counted whole, so only elements exactly on the bound are miscounted: as kept.

    Args:
        exponents: counts per octave of unscaled gradients, shape `(*groups, EXPONENT_BINS)`.
        format: where the gradients would be stored.
        log2_scale: the scale's base-2 exponent.

    Returns:
        Shape `groups`, float32, each in [0, 1]; zero for a group without non-zero elements.

    Example:
        >>> grads = torch.tensor([1.0, 2.0**-30])
        >>> flushed_fraction(count_exponents(grads), FloatFormat.of(torch.float16))
        tensor(0.5000)
    """
    first_kept = format.min_exponent - format.mantissa_bits - 1 - log2_scale
    return _share(exponents, slice(0, max(0, first_kept - MIN_OCTAVE)))


def subnormal_fraction(exponents: Tensor, format: FloatFormat, log2_scale: int = 0) -> Tensor:
    """The fraction of non-zero elements that survive in `format` with less than full precision.

    An element just below the smallest normal number, which rounds up to it, counts as subnormal.

    Args:
        exponents: counts per octave of unscaled gradients, shape `(*groups, EXPONENT_BINS)`.
        format: where the gradients would be stored.
        log2_scale: the scale's base-2 exponent.

    Returns:
        Shape `groups`, float32, each in [0, 1].

    Example:
        >>> grads = torch.tensor([1.0, 2.0**-20])
        >>> subnormal_fraction(count_exponents(grads), FloatFormat.of(torch.float16))
        tensor(0.5000)
    """
    low = format.min_exponent - format.mantissa_bits - 1 - log2_scale - MIN_OCTAVE
    high = format.min_exponent - log2_scale - MIN_OCTAVE
    return _share(exponents, slice(max(0, low), max(0, high)))


def overflowed_fraction(exponents: Tensor, format: FloatFormat, log2_scale: int = 0) -> Tensor:
    """A lower bound on the fraction of non-zero elements beyond the format's range at this scale.

    The octave in which the format ends is *not* counted, so what lies in it above `format.max` is
    missed: float16 ends at 65 520, not at 65 536; e4m3 at 464, not at 512. Leave an octave of
    headroom.

    Args:
        exponents: counts per octave of unscaled gradients, shape `(*groups, EXPONENT_BINS)`.
        format: where the gradients would be stored.
        log2_scale: the scale's base-2 exponent.

    Returns:
        Shape `groups`, float32, each in [0, 1].

    Example:
        >>> grads = torch.tensor([1.0, 2.0**16])
        >>> overflowed_fraction(count_exponents(grads), FloatFormat.of(torch.float16))
        tensor(0.5000)
    """
    return _share(exponents, slice(max(0, format.max_exponent + 1 - log2_scale - MIN_OCTAVE), None))


def _share(exponents: Tensor, part: slice) -> Tensor:
    total = exponents.sum(-1)
    return exponents[..., part].sum(-1).to(torch.float32) / total.clamp(min=1).to(torch.float32)
