"""What one measured step saw of each row, as arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscale.recording import Seen

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SeenArrays:
    """One entry a row that was measured at this step.

    Attributes:
        id: the rows.
        flushed: elements lost: not zero before rounding to the format, zero after.
        nonzero: elements that are truly not zero.
        zero: elements that are truly zero.
        nonfinite: elements that are infinite or NaN.
        amax: log2 of the largest magnitude, unscaled; -inf where all are zero.
        exponent: the row is stored at ``2**exponent`` times its true values.
        lo: below this exponent too much is lost.
        hi: above it overflow is near.
    """

    id: NDArray[np.int64]
    flushed: Floats
    nonzero: Floats
    zero: Floats
    nonfinite: Floats
    amax: Floats
    exponent: Floats
    lo: Floats
    hi: Floats

    @staticmethod
    def of(seen: Seen) -> SeenArrays:
        """From the lists of a recording."""
        return SeenArrays(
            np.asarray(seen.id, dtype=np.int64),
            flushed=_floats(seen.flushed),
            nonzero=_floats(seen.nonzero),
            zero=_floats(seen.zero),
            nonfinite=_floats(seen.nonfinite),
            amax=_floats([-math.inf if value is None else value for value in seen.amax]),
            exponent=_floats(seen.exponent),
            lo=_floats(seen.lo),
            hi=_floats(seen.hi),
        )


def _floats(values: Sequence[float]) -> Floats:
    return np.asarray(values, dtype=np.float64)
