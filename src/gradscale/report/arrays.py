"""Numbers for the page: one compressed block of typed arrays, and where in it each lies."""

from __future__ import annotations

import base64
import gzip
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

ALIGNMENT = 8
"""Bytes: of the widest element. JavaScript's typed arrays refuse to begin in between."""


class Reference(TypedDict):
    """Where an array begins in the block, how many elements it has, and of which type."""

    at: int
    n: int
    type: str


class Arrays:
    """A growing block of arrays. JavaScript makes typed arrays of it without copying.

    Example:
        >>> arrays = Arrays()
        >>> arrays.add([1, 2, 3], "u1"), arrays.add([0.5], "f4")
        ({'at': 0, 'n': 3, 'type': 'u1'}, {'at': 8, 'n': 1, 'type': 'f4'})
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, values: ArrayLike, type: str) -> Reference:
        """Append `values`, and return the reference that the page resolves.

        Args:
            values: of any shape; flattened row by row.
            type: NumPy's code, such as ``"u2"``; written in little-endian order.

        Raises:
            OverflowError: if an integer does not fit.
        """
        given = np.asarray(values)
        with np.errstate(over="ignore"):  # a loss of 1e300 is infinite on the page
            stored = np.ascontiguousarray(given, dtype=f"<{type}")
        if stored.dtype.kind != "f" and not np.array_equal(stored, given):
            raise OverflowError(f"`Arrays.add(…, {type!r})` does not hold all of these values.")
        data = stored.tobytes()
        reference: Reference = {"at": self._size, "n": int(stored.size), "type": type}
        # Each begins where any type may.
        padded = data + bytes(-len(data) % ALIGNMENT)
        self._parts.append(padded)
        self._size += len(padded)
        return reference

    def packed(self) -> str:
        """The whole block, compressed, as base64."""
        return packed(b"".join(self._parts))


def packed(data: bytes) -> str:
    """Compressed by gzip, as base64. Equal data gives equal text: no time is stored.

    Example:
        >>> gzip.decompress(base64.b64decode(packed(b"gradients")))
        b'gradients'
    """
    # Base64, because a page may hold no bytes; gzip first makes up for its third.
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode("ascii")
