"""Tensors that stay where they are, and the one number in a tensor or array of one element."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from typing import cast

from gradscale.doctor.inert.unpickling import StandIn, named_class

CODES = {
    "float16": "e",
    "float32": "f",
    "float64": "d",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint8": "B",
    "bool": "?",
}
_NUMPY_CODES = {
    "f2": "float16",
    "f4": "float32",
    "f8": "float64",
    "i4": "int32",
    "i8": "int64",
    "u1": "uint8",
    "b1": "bool",
}
_STORAGES = {
    "Half": "float16",
    "Float": "float32",
    "Double": "float64",
    "BFloat16": "bfloat16",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "Byte": "uint8",
    "Bool": "bool",
}
_MOST_AXES = 64  # as numpy; the product of a million sizes takes its time


class Storage:
    """Where a tensor's bytes are.

    Args:
        kind: such as ``torch.FloatStorage``; one that is not typed leaves the dtype to the tensor.
        numel: elements, as the file says.
        read: gives bytes from an offset.
        order: ``<`` or ``>``.
    """

    def __init__(
        self, kind: str, numel: int, read: Callable[[int, int], bytes], order: str = "<"
    ) -> None:
        self.dtype = _STORAGES.get(kind.rpartition(".")[2].removesuffix("Storage"))
        self.size = numel * (size_of(self.dtype) or 1)  # one without a dtype counts bytes
        self.read = read
        self.order = order


class Array:
    """A tensor or an array of numpy: what it is, and its number if it is one.

    Args:
        dtype: of its elements.
        shape: its sizes.
        read: gives bytes from an offset, which counts from its first element.
        order: ``<`` or ``>``.
        dense: whether its elements lie side by side, in whatever order.
    """

    def __init__(
        self,
        dtype: str,
        shape: Iterable[object],
        read: Callable[[int, int], bytes],
        order: str,
        dense: bool = True,
    ) -> None:
        self.dtype = dtype
        self.shape = tuple(shape)
        self.read = read
        self.order = order
        self.dense = dense

    @property
    def numel(self) -> int:
        """Elements; 0 for a shape that no array has."""
        sizes = self.shape
        whole = [size for size in sizes if type(size) is int and size >= 0]
        return math.prod(whole) if len(whole) == len(sizes) <= _MOST_AXES else 0

    def number(self) -> float | int | None:
        """The value of a single element; None if there are several, or its bytes are missing."""
        size = size_of(self.dtype)
        # A scale may have any shape of one element, `(1,)` as well as `()`.
        if self.numel != 1 or not size:
            return None
        raw = self.read(0, size)
        if len(raw) != size:
            return None
        if self.dtype == "bfloat16":  # a float32 begins with the same bits
            raw, code = (raw + b"\0\0", ">f") if self.order == ">" else (b"\0\0" + raw, "<f")
            return struct.unpack(code, raw)[0]
        return struct.unpack(self.order + CODES[self.dtype], raw)[0]


def size_of(dtype: str | None) -> int:
    """Bytes of an element; 0 for a dtype that is not read.

    Example:
        >>> size_of("float64"), size_of("bfloat16"), size_of("complex64")
        (8, 2, 0)
    """
    if dtype == "bfloat16":
        return 2
    return struct.calcsize(f"={CODES[dtype]}") if dtype in CODES else 0


def tensor(args: tuple[object, ...]) -> Array | None:
    """The tensor of `torch._utils._rebuild_tensor_v2` and its like, left in the file."""
    match args:
        case (Storage() as storage, int(offset), tuple(shape), *rest) if offset >= 0:
            said = [named_class(part) for part in rest if named_class(part).startswith("torch.")]
            dtype = storage.dtype or (said[-1].removeprefix("torch.") if said else "unknown")
            begin = offset * size_of(dtype)
            read = storage.read
            dense = _dense(shape, rest[0] if rest else None)
            return Array(
                dtype, shape, lambda at, size: read(begin + at, size), storage.order, dense
            )
        case _:
            return None


def _dense(shape: tuple[object, ...], strides: object) -> bool:
    if not isinstance(strides, tuple) or len(strides) != len(shape) or len(shape) > _MOST_AXES:
        return False
    # Dense in whatever order: the last element lies as far from the first as there are elements.
    last, numel = 0, 1
    for size, stride in zip(shape, cast("tuple[object, ...]", strides), strict=True):
        if not (isinstance(size, int) and isinstance(stride, int) and size >= 0 and stride >= 0):
            return False
        last, numel = last + (size - 1) * stride, numel * size
    return last + 1 == numel


def numpy_array(thing: StandIn) -> Array | None:
    """The array that numpy would restore; None if it is anything else."""
    match thing.state:
        # What `ndarray.__setstate__` takes: version, shape, dtype, Fortran order, content.
        case (int(), tuple(shape), StandIn() as dtype, bool(), bytes(raw)):
            return _numpy(dtype, shape, raw)
        case _:
            return None


def numpy_scalar(args: tuple[object, ...]) -> float | int | None:
    """What `numpy.core.multiarray.scalar` would give, as Python's own number."""
    match args:
        case (StandIn() as dtype, bytes(raw)):
            array = _numpy(dtype, (), raw)
            return None if array is None else array.number()
        case _:
            return None


def _numpy(dtype: StandIn, shape: Iterable[object], raw: bytes) -> Array | None:
    match dtype.args:
        case (str(code), *_) if code in _NUMPY_CODES:
            # The dtype's own state says the byte order; "|" and "<" are read alike.
            big = isinstance(dtype.state, tuple) and ">" in dtype.state
            return Array(
                _NUMPY_CODES[code], shape, lambda at, n: raw[at : at + n], ">" if big else "<"
            )
        case _:
            return None
