"""A scale times a factor, rounded as torch's own kernel rounds it."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from gradscale.accelerators import has_float64


def rounded_product(scale: Tensor, factor: float) -> Tensor:
    """`scale * factor`, taken in float64 and rounded once to float32.

    A factor that float32 holds exactly needs no float64: its product with a float32 is exact there
    and so rounds to the same value. Other factors are rounded to float32 first on devices without
    float64, which can change the last bit of the scale.

    Args:
        scale: any shape, float32.
        factor: finite.

    Returns:
        The same shape, float32; inf where the product exceeds it.

    Example:
        >>> rounded_product(torch.tensor([3.0]), 0.1), torch.tensor([3.0]) * 0.1
        (tensor([0.3000]), tensor([0.3000]))
    """
    if _is_float32(factor) or not has_float64(scale.device):
        return scale * factor
    return (scale.to(torch.float64) * factor).to(torch.float32)


def _is_float32(factor: float) -> bool:
    try:
        return struct.unpack("f", struct.pack("f", factor))[0] == factor
    except OverflowError:
        return False
