"""What pickled objects become: names, attributes and sizes, never an object that does something."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

_CODES = {
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
_NUMPY = {"f2": "e", "f4": "f", "f8": "d", "i4": "i", "i8": "q", "u1": "B", "b1": "?"}


@dataclass(frozen=True)
class Name:
    """A class or a function that a file names. It cannot be called.

    Example:
        >>> str(Name("os", "system"))
        'os.system'
    """

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Thing:
    """An object of whatever class: what it was made from, and what it held.

    Attributes:
        kind: its class, or the function that would have made it.
        args: what that would have been called with.
        state: what it would have been given: mostly its attributes.
        entries: items that would have been set.
    """

    kind: Any
    args: Any = ()
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict[Any, Any])
    items: list[Any] = field(default_factory=list[Any])

    def __repr__(self) -> str:
        return f"<{self.kind if isinstance(self.kind, Name) else 'object'}>"

    @property
    def attributes(self) -> Mapping[str, Any]:
        """What `vars(object)` would give, slots included."""
        state = self.state
        if isinstance(state, tuple) and len(cast("tuple[Any, ...]", state)) == 2:
            parts = cast("tuple[Any, ...]", state)
            dicts = [cast("dict[str, Any]", part) for part in parts if isinstance(part, dict)]
            return {name: value for part in dicts for name, value in part.items()}
        return cast("dict[str, Any]", state) if isinstance(state, dict) else {}

    def item(self) -> float | int:
        """The number in a numpy array of one element.

        Raises:
            TypeError: if it is anything else.
        """
        parts: Any = self.state
        match parts:
            case (int(), tuple(shape), dtype, bool(), bytes(raw)) if math.prod(shape) == 1:
                return numpy_number(dtype, raw)
            case _:
                raise TypeError(f"{self!r} is not one number")


@dataclass(eq=False)
class Storage:
    """Where a tensor's bytes are, without reading them.

    Attributes:
        dtype: of its elements; None if the tensor has to say.
        numel: how many there are, as the file says.
        read: gives bytes from an offset.
        order: ``<`` or ``>``.
    """

    dtype: str | None
    numel: int
    read: Callable[[int, int], bytes] = field(repr=False)
    order: str = "<"


@dataclass(eq=False)
class SavedTensor:
    """A tensor that was left where it is.

    Attributes:
        storage: its bytes.
        offset: of its first element.
        shape: its sizes.
        dtype: of its elements.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    dtype: str

    def item(self) -> float | int:
        """The value of a tensor with one element, read from the file.

        Raises:
            ValueError: if it has several, or its bytes are missing.
        """
        if math.prod(self.shape) != 1:
            raise ValueError(f"a tensor of shape {self.shape} is not one number")
        size = 2 if self.dtype == "bfloat16" else _size(self.dtype)
        raw = self.storage.read(self.offset * size, size)
        if len(raw) != size:
            raise ValueError("the tensor's bytes are missing")
        if self.dtype == "bfloat16":
            raw, order = _widened(raw, self.storage.order), "<"
            return struct.unpack(f"{order}f", raw)[0]
        return struct.unpack(self.storage.order + _CODES[self.dtype], raw)[0]

    def __repr__(self) -> str:
        return f"<{self.dtype} tensor of shape {self.shape}>"


def numpy_number(dtype: Any, raw: Any) -> float | int:
    """The number that numpy saved as a dtype and bytes.

    Raises:
        TypeError: if it is none of the usual ones.

    Example:
        >>> numpy_number(Thing(Name("numpy", "dtype"), ("f4", False, True)), bytes([0, 0, 128, 63]))
        1.0
    """
    match dtype:
        case Thing(args=(str(code), *_), state=state) if code in _NUMPY and isinstance(raw, bytes):
            big = isinstance(state, tuple) and ">" in state
            form = (">" if big else "<") + _NUMPY[code]
            if struct.calcsize(form) == len(raw):
                return struct.unpack(form, raw)[0]
        case _:
            pass
    raise TypeError("not a number of numpy's usual kinds")


def item_size(dtype: str | None) -> int:
    """Bytes of an element; 1 where the dtype is not known, as a storage without one counts bytes.

    Example:
        >>> item_size("float64"), item_size(None)
        (8, 1)
    """
    return 2 if dtype == "bfloat16" else struct.calcsize(_CODES.get(dtype or "", "B"))


def _size(dtype: str) -> int:
    if dtype not in _CODES:
        raise ValueError(f"a tensor of {dtype} is not read")
    return item_size(dtype)


def _widened(raw: bytes, order: str) -> bytes:
    """A bfloat16 as the float32 that begins with the same bits, little-endian."""
    return b"\0\0" + (raw if order == "<" else raw[::-1])
