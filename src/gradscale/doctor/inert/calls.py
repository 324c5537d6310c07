"""The few calls whose result is plain data; every other call leaves a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradscale.doctor.inert.values import Name, SavedTensor, Storage, Thing, numpy_number

_TENSORS = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"}
_PARAMETERS = {"_rebuild_parameter", "_rebuild_parameter_with_state"}
_DICTS = {"OrderedDict", "defaultdict", "Counter"}
_LONGEST_CODEC_TEXT = 2**24


def call(function: Any, args: Any, embedded: Callable[[bytes], Any]) -> Any:
    """What a pickled call gives, computed here if it is plain data, else a stand-in.

    Args:
        function: what would have been called.
        args: with what.
        embedded: reads a checkpoint within the checkpoint.

    Example:
        >>> call(Name("os", "system"), ("echo no",), bytes)
        <os.system>
        >>> call(Name("collections", "OrderedDict"), (), bytes)
        {}
    """
    made = _plain(function, args, embedded) if isinstance(function, Name) else None
    return Thing(function, args) if made is None else made


def _plain(function: Name, args: Any, embedded: Callable[[bytes], Any]) -> Any:
    match function.module, function.name, args:
        case "collections", name, _ if name in _DICTS:
            return _pairs(args)
        case "torch._utils", name, (Storage() as storage, int(offset), tuple(shape), *rest) if (
            name in _TENSORS
        ):
            return _tensor(storage, offset, shape, rest)
        case "torch._utils", name, (SavedTensor() as tensor, *_) if name in _PARAMETERS:
            return tensor
        case "torch._tensor", "_rebuild_from_type_v2", (Name() as inner, _, tuple(given), *_):
            return _plain(inner, given, embedded) if inner.module == "torch._utils" else None
        case "torch.storage", "_load_from_bytes", (bytes(raw),):
            return embedded(raw)
        case "torch", "Size", (tuple(sizes),):
            return sizes
        case "__builtin__" | "builtins", "bytes", ():
            return b""  # as older protocols write it
        case "_codecs", "encode", (str(text), "latin1") if len(text) < _LONGEST_CODEC_TEXT:
            return text.encode("latin-1")
        case (("numpy.core.multiarray" | "numpy._core.multiarray"), "scalar", (dtype, raw)):
            return _number(dtype, raw)
        case _:
            return None


def _pairs(args: Any) -> dict[Any, Any]:
    """An ordered dictionary is made empty, or, by Python 2, from a list of pairs."""
    match args:
        case (list(pairs),):
            given: list[Any] = pairs
            return {p[0]: p[1] for p in given if isinstance(p, list | tuple) and _is_pair(p)}
        case _:
            return {}


def _is_pair(pair: Any) -> bool:
    return len(pair) == 2 and isinstance(pair[0], str | int)


def _tensor(storage: Storage, offset: int, shape: Any, rest: list[Any]) -> SavedTensor | None:
    sizes: tuple[Any, ...] = shape
    if offset < 0 or not all(isinstance(size, int) and size >= 0 for size in sizes):
        return None
    said = [part.name for part in rest if isinstance(part, Name) and part.module == "torch"]
    dtype = storage.dtype or (said[-1] if said else "unknown")
    return SavedTensor(storage, offset, sizes, dtype)


def _number(dtype: Any, raw: Any) -> Any:
    try:
        return numpy_number(dtype, raw)
    except TypeError:
        return None
