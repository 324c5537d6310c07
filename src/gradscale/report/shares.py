"""Shares between 0 and 1 in 16 bits, fine enough that no reader sees the difference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradscale.report.arrays import Floats

# Two codes for what has no logarithm; from `FIRST` on they count steps above 2^-40.
UNKNOWN = 0
ZERO = 1
FIRST = 2
OCTAVES = 40
STEPS = 128
"""A step is 1/128 of an octave: half a percent of the share itself."""


def encode_shares(shares: Floats) -> NDArray[np.uint16]:
    """A code for each share.

        code = 0 if not measured (NaN), 1 if zero, else 2 + round(128 * (40 + log2 share))

    Args:
        shares: any shape, each NaN or in [0, 1]; what is below 2^-40 counts as 2^-40.

    Example:
        >>> encode_shares(np.array([np.nan, 0.0, 2.0**-40, 1.0])).tolist()
        [0, 1, 2, 5122]
    """
    # Logarithms of 0 and NaN, for which there are codes.
    with np.errstate(divide="ignore", invalid="ignore"):
        octaves = np.clip(np.log2(shares), -OCTAVES, 0.0)
    known = np.nan_to_num(np.round(STEPS * (octaves + OCTAVES)), nan=0.0) + FIRST
    codes = np.where(shares > 0, known, ZERO)
    return np.where(np.isnan(shares), UNKNOWN, codes).astype(np.uint16)
