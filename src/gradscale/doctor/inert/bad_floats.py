"""Infinities and NaNs among the bytes of a tensor, counted without making numbers of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from gradscale.doctor.inert.numbers_in_bytes import Array, size_of

_CHUNK = 2**20  # bytes; a multiple of every element's size

MOST_READ = 2**31
"""Bytes of one file that are looked at, the smallest tensors first: some 20 s of a processor."""


EXPONENTS = {
    "float16": (0x7C, 0x00),
    "bfloat16": (0x7F, 0x80),
    "float32": (0x7F, 0x80),
    "float64": (0x7F, 0xF0),
}
"""Its bits in the highest byte of a number and in the one below: all set in infinities and NaN."""

# For `bytes.translate`: 1 where all bits of a mask are set.
_ALL_SET = {
    mask: bytes(byte & mask == mask for byte in range(256))
    for masks in EXPONENTS.values()
    for mask in masks
}


class FloatSearch:
    """Looks through the floats of one file, as far as it may read.

    Args:
        most: bytes to read at most.
    """

    def __init__(self, most: int) -> None:
        self._left = min(most, MOST_READ)

    def nonfinite(self, array: Array) -> int | None:
        """How many elements are infinite or NaN; None if nobody has looked.

        What holds zeros and one infinity, and nothing else, is a mask.
        """
        size = array.numel * size_of(array.dtype)
        # Of a tensor that is not dense, the bytes between its elements belong to others.
        if array.dtype not in EXPONENTS or not array.dense or size > self._left:
            return None
        self._left -= size
        raw = array.read(0, size)
        if len(raw) != size:
            return None
        found = sum(_count(chunk, array) for chunk in _chunks(raw))
        return 0 if found and _is_mask(raw, array) else found


def _chunks(raw: bytes) -> Iterator[bytes]:
    return (raw[begin : begin + _CHUNK] for begin in range(0, len(raw), _CHUNK))


def _count(raw: bytes, array: Array) -> int:
    """One bit for each element whose exponent is all ones; whole chunks at a time."""
    size = size_of(array.dtype)
    highest, second = EXPONENTS[array.dtype]
    # The bytes of a chunk as one large integer: `&` and `bit_count` are then loops in C, which is
    # as fast as a process without numpy gets, some 100 MB a second.
    at_highest, at_second = (0, 1) if array.order == ">" else (size - 1, size - 2)
    bits = int.from_bytes(raw[at_highest::size].translate(_ALL_SET[highest]), "little")
    if bits and second:  # most chunks have no candidate, and float16's exponent ends there
        bits &= int.from_bytes(raw[at_second::size].translate(_ALL_SET[second]), "little")
    return bits.bit_count()


def _is_mask(raw: bytes, array: Array) -> bool:
    """Whether it is made of zeros and of infinities of one sign."""
    size, found = size_of(array.dtype), set[bytes]()
    for chunk in _chunks(raw):
        found.update(element for (element,) in struct.iter_unpack(f"{size}s", chunk))
        if len(found) > 2:
            return False
    highest, second = EXPONENTS[array.dtype]
    # An infinity is a full exponent and nothing else, the sign in the highest bit.
    infinities = (bytes([sign | highest, second]) + bytes(size - 2) for sign in (0, 0x80))
    forwards = 1 if array.order == ">" else -1
    return bytes(size) in found and any(infinity[::forwards] in found for infinity in infinities)
