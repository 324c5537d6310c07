"""Infinities and NaNs among the bytes of a tensor, counted without making numbers of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from gradscale.doctor.inert.numbers_in_bytes import CODES, Array, size_of

_CHUNK = 2**20  # bytes; a multiple of every element's size

MOST_READ = 2**31
"""Bytes of one file that are looked at, the smallest tensors first: some 20 s of a processor."""


class _Exponent(NamedTuple):
    """Its bits in the highest byte of a number and in the one below: all set where it is none."""

    highest: int
    second: int


_EXPONENTS = {
    "float16": _Exponent(0x7C, 0),
    "bfloat16": _Exponent(0x7F, 0x80),
    "float32": _Exponent(0x7F, 0x80),
    "float64": _Exponent(0x7F, 0xF0),
}
_WORDS = {2: "=H", 4: "=I", 8: "=Q"}


def _where_set(mask: int) -> bytes:
    """For `bytes.translate`: 1 where all bits of a mask are set."""
    return bytes(int(byte & mask == mask) for byte in range(256))


_TABLES = {mask: _where_set(mask) for masks in _EXPONENTS.values() for mask in masks}


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
        exponent, size = _EXPONENTS.get(array.dtype), array.numel * size_of(array.dtype)
        if exponent is None or not array.dense or size > self._left:
            return None
        self._left -= size
        raw = array.read(0, size)
        if len(raw) != size:
            return None
        found = sum(_count(chunk, array, exponent) for chunk in _chunks(raw))
        return 0 if found and _is_mask(raw, array) else found


def _chunks(raw: bytes) -> Iterator[bytes]:
    return (raw[begin : begin + _CHUNK] for begin in range(0, len(raw), _CHUNK))


def _count(raw: bytes, array: Array, exponent: _Exponent) -> int:
    """One bit for each element whose exponent is all ones; whole chunks at a time."""
    size = size_of(array.dtype)
    highest, second = (0, 1) if array.order == ">" else (size - 1, size - 2)
    bits = int.from_bytes(raw[highest::size].translate(_TABLES[exponent.highest]), "little")
    if bits and exponent.second:
        bits &= int.from_bytes(raw[second::size].translate(_TABLES[exponent.second]), "little")
    return bits.bit_count()


def _is_mask(raw: bytes, array: Array) -> bool:
    """Whether it is made of zeros and of infinities of one sign."""
    size, found = size_of(array.dtype), set[int]()
    for chunk in _chunks(raw):
        found.update(word for (word,) in struct.iter_unpack(_WORDS[size], chunk))
        if len(found) > 2:
            return False
    zero, *infinities = (_word(value, array) for value in (0.0, float("inf"), float("-inf")))
    return zero in found and any(infinity in found for infinity in infinities)


def _word(value: float, array: Array) -> int:
    """A number as an integer of the same bytes."""
    if array.dtype == "bfloat16":
        raw = struct.pack(">f", value)[:2]
        raw = raw if array.order == ">" else raw[::-1]
    else:
        raw = struct.pack(array.order + CODES[array.dtype], value)
    return struct.unpack(_WORDS[len(raw)], raw)[0]
