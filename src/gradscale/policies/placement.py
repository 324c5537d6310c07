"""The scale that puts a gradient of a given size at a given exponent."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from gradscale.formats import FloatFormat
from gradscale.policies.bits import MIN_SCALE, ceil_log2, power_of_two
from gradscale.policies.observed import Maximum

MAX_PREDICTED_SCALE = 2.0**60
"""How far policies that measure may raise the scale: well inside float32, so that a scaled loss
stays finite."""

# Measured on heavy-tailed maxima; see `unseen_log2_amax`.
_UNSEEN_OCTAVES = 2.0


def scale_under(
    amax: Tensor, exponent: int, min_scale: float, max_scale: float = MAX_PREDICTED_SCALE
) -> Tensor:
    """The largest power of two `S` with ``S * amax <= 2**exponent``, between the two bounds.

    Args:
        amax: any shape, float32, not negative; zero gives `max_scale`.
        exponent: where the product may end.
        min_scale: a power of two.
        max_scale: a power of two.

    Returns:
        The same shape, float32.

    Example:
        >>> scale_under(torch.tensor([1.0, 1.5, 0.0]), 14, 1.0, 2.0**20)
        tensor([  16384.,    8192., 1048576.])
    """
    # A subnormal has no exponent to be read off its bits. Taken for 2^-126 it leads to the cap, as
    # it should: that is 2^127 at most.
    octaves = exponent - ceil_log2(amax.clamp(min=MIN_SCALE))
    # Exact: who places by powers of two has bounds that are some (`check_placing`).
    low, high = int(math.log2(min_scale)), int(math.log2(max_scale))
    scale = power_of_two(octaves.clamp(low, high))
    return torch.where(amax > 0, scale, max_scale)


def scale_between(
    log2_scale: Tensor, min_scale: float, max_scale: float, to_power_of_two: bool
) -> Tensor:
    """``2**log2_scale`` between the two bounds, rounded down to a power of two if asked.

    Args:
        log2_scale: any shape, float32, not NaN.
        min_scale: the smallest result; a power of two if `to_power_of_two`.
        max_scale: the largest result; a power of two if `to_power_of_two`.
        to_power_of_two: whether to drop the fraction of `log2_scale`.

    Returns:
        The same shape, float32.

    Example:
        >>> scale_between(torch.tensor([3.9, 99.0]), 1.0, 1024.0, to_power_of_two=True)
        tensor([   8., 1024.])
    """
    bounded = log2_scale.clamp(math.log2(min_scale), math.log2(max_scale))
    if to_power_of_two:
        return power_of_two(torch.floor(bounded).to(torch.int32))
    # `exp2` of a bound's logarithm may round past the bound.
    return torch.exp2(bounded).clamp(min_scale, max_scale)


def log2_max(format: FloatFormat) -> float:
    """The base-2 logarithm of the format's largest value, 15.9993 for float16."""
    return math.log2(format.max)


class _Backing(Protocol):
    @property
    def backoff_factor(self) -> float: ...
    @property
    def min_scale(self) -> float: ...


def backed_off(policy: _Backing, scale: Tensor) -> Tensor:
    """The scale after an overflow: `backoff_factor` times what it was, not below `min_scale`."""
    return (scale * policy.backoff_factor).clamp(min=policy.min_scale)


def log2_maximum(maximum: Maximum, scale: Tensor, format: FloatFormat) -> Tensor:
    """What a policy that predicts the next maximum learns of this one.

    Returns:
        The shape of `scale`, float32: log2 of the unscaled maximum, or what an overflow says of it.
    """
    seen = torch.log2(maximum.amax.clamp(min=MIN_SCALE))
    return torch.where(maximum.overflowed, unseen_log2_amax(scale, format), seen)


def unseen_log2_amax(scale: Tensor, format: FloatFormat) -> Tensor:
    """What to record of a step that overflowed: two octaves above what would have fit.

    The true maximum is lost: it lies above ``format.max / scale``, perhaps far above. With one
    octave, an unrounded `Quantile` overflows 1.2 times as often as it should on heavy tails.

    Args:
        scale: any shape, float32, the scale in force.
        format: what overflowed.

    Returns:
        The same shape, float32: log2 of an unscaled maximum.
    """
    return log2_max(format) + _UNSEEN_OCTAVES - torch.log2(scale)
