"""Gradient magnitudes counted by octave: the histogram, and what it says of a format."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.formats import FloatFormat

MIN_OCTAVE = -149
"""Base-2 exponent of the first bin: the smallest subnormal of float32."""

EXPONENT_BINS = 277
"""One bin an octave, up to 2^127."""


def count_exponents(tensor: Tensor) -> Tensor:
    """How many elements of `tensor` lie in each octave; zeros, infinities and NaN are left out.

    Bin `i` counts the elements with ``2**(i - 149) <= |x| < 2**(i - 148)``.

    Args:
        tensor: any shape, any floating dtype (float64 is rounded to float32 first).

    Returns:
        Shape `(EXPONENT_BINS,)`, int64, on the tensor's device.

    Example:
        >>> counts = count_exponents(torch.tensor([1.0, 1.5, 2.0**-30, 0.0]))
        >>> int(counts[0 - MIN_OCTAVE]), int(counts[-30 - MIN_OCTAVE]), int(counts.sum())
        (2, 1, 3)
    """
    single = tensor.detach().to(torch.float32).reshape(-1)
    counted = (single != 0) & torch.isfinite(single)
    # frexp gives 0 for zero, inf and NaN: they go to a bin of their own, which is cut off.
    octave = torch.frexp(single).exponent.to(torch.int64) - 1 - MIN_OCTAVE
    bins = torch.where(counted, octave, EXPONENT_BINS)
    counts = torch.zeros(EXPONENT_BINS + 1, dtype=torch.int64, device=single.device)
    return counts.scatter_add_(0, bins, torch.ones_like(bins))[:EXPONENT_BINS]


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

    Args:
        exponents: counts per octave of unscaled gradients, shape `(*groups, EXPONENT_BINS)`.
        format: where the gradients would be stored.
        log2_scale: the scale's base-2 exponent.

    Returns:
        Shape `groups`, float32, each in [0, 1].
    """
    low = format.min_exponent - format.mantissa_bits - 1 - log2_scale - MIN_OCTAVE
    high = format.min_exponent - log2_scale - MIN_OCTAVE
    return _share(exponents, slice(max(0, low), max(0, high)))


def overflowed_fraction(exponents: Tensor, format: FloatFormat, log2_scale: int = 0) -> Tensor:
    """An upper bound on the fraction of non-zero elements above the format's range at this scale.

    The top octave is half-open (float16 ends at 65 520, not at 65 536), so all of the octave in which the format ends
    is *not* counted: a value between 65 520 and 65 536 is missed. Leave an octave of headroom.

    Args:
        exponents: counts per octave of unscaled gradients, shape `(*groups, EXPONENT_BINS)`.
        format: where the gradients would be stored.
        log2_scale: the scale's base-2 exponent.

    Returns:
        Shape `groups`, float32, each in [0, 1].
    """
    return _share(exponents, slice(max(0, format.max_exponent + 1 - log2_scale - MIN_OCTAVE), None))


def _share(exponents: Tensor, part: slice) -> Tensor:
    total = exponents.sum(-1)
    return exponents[..., part].sum(-1).to(torch.float32) / total.clamp(min=1).to(torch.float32)
