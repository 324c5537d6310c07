"""The files that checkpoints come in: torch's archive, torch's older format, a pickle, JSON."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, cast

from gradscale.doctor.inert.numbers_in_bytes import Storage, numpy_scalar, tensor
from gradscale.doctor.inert.unpickling import InertUnpickler, Maker, named_class

_MAGIC = 0x1950A86A20F9469CFC6C  # how a file of torch before 1.6 begins
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError,
)  # fmt: skip


Check = Callable[[IO[bytes]], object]

LARGEST_JSON = 2**26  # bytes; a state has a few thousand


def read_container(file: IO[bytes], check: Check = lambda pickled: None) -> object:
    """What a file holds, as dictionaries, lists, numbers, texts, arrays and stand-ins.

    Args:
        file: at its beginning; one that can seek.
        check: sees each pickle before it is read, and raises if it must not be.

    Raises:
        ValueError: if it is no checkpoint and no JSON, or damaged.
        Exception: whatever a broken pickle makes the unpickler raise.
    """
    start = file.read(512)  # a tar's first block, which has its name at 257
    file.seek(0)
    if not start:
        raise ValueError("it is empty")
    if start[257:262] == b"ustar":
        raise ValueError("it is a tar archive; torch has not written those since version 0.1")
    if start[:4] == b"PK\x03\x04":
        return _archive(file, check)
    # No pickle begins so: neither is one of its instructions.
    if start.lstrip()[:1] in (b"{", b"["):
        return _json(file)
    return _pickle(file, check)


def _json(file: IO[bytes]) -> object:
    text = file.read(LARGEST_JSON + 1)
    if len(text) > LARGEST_JSON:
        raise ValueError(f"its JSON is larger than {LARGEST_JSON // 2**20} MB")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def _archive(file: IO[bytes], check: Check) -> object:
    try:
        archive = zipfile.ZipFile(file)
        name = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if name is None:
            raise ValueError("it is an archive without torch's data.pkl")
        prefix = name.removesuffix("data.pkl")
        order = ">" if _part(archive, f"{prefix}byteorder", 0, 16) == b"big" else "<"

        def storage(kind: str, key: str, numel: int) -> Storage:
            place = f"{prefix}data/{key}"
            return Storage(kind, numel, lambda at, size: _part(archive, place, at, size), order)

        with archive.open(name) as pickled:
            check(pickled)
        with archive.open(name) as pickled:
            return InertUnpickler(pickled, _tensors(storage), _makers(check)).load()
    except _DAMAGED as error:
        raise ValueError(f"it is a damaged archive: {error}") from None


def _part(archive: zipfile.ZipFile, name: str, offset: int, size: int) -> bytes:
    """Bytes of an entry; none if it is not there, or not as long as that."""
    try:
        with archive.open(name) as entry:
            entry.seek(offset)
            return entry.read(size)
    except (*_DAMAGED, KeyError):
        return b""


def _pickle(file: IO[bytes], check: Check, *, deeper: bool = True) -> object:
    """A plain pickle, or torch's older format: five in a row, and then the storages."""
    begins: dict[str, int] = {}
    sizes: dict[str, int] = {}

    def storage(kind: str, key: str, numel: int) -> Storage:
        def read(at: int, size: int) -> bytes:
            if key not in begins or at + size > sizes[key]:
                return b""
            file.seek(begins[key] + at)
            return file.read(size)

        found = Storage(kind, numel, read)
        sizes[key] = found.size
        return found

    # One level, as torch nests them: a file in a file in a file would never end.
    makers = _makers(check) if deeper else {}

    def load() -> object:
        position = file.tell()
        check(file)
        file.seek(position)
        return InertUnpickler(file, _tensors(storage), makers).load()

    value = load()
    if value != _MAGIC:
        return value
    for _ in range(2):  # the protocol, and what machine wrote it
        load()
    value, keys, position = load(), cast("list[object]", load()), file.tell()
    # The storages follow in the order of `keys`, each after its length in 8 bytes.
    for key in keys:
        begins[str(key)] = position + 8
        position += 8 + sizes.get(str(key), 0)
    return value


def _tensors(storage: Callable[[str, str, int], Storage]) -> Callable[[object], object]:
    def of(saved: object) -> object:
        match saved:
            case ("storage", kind, str(key), _, int(numel), *_):
                return storage(named_class(kind), key, numel)
            case ("module", kind, *_):  # with its source, as older files keep a model's class
                return kind
            case _:
                return None

    return of


def _makers(check: Check) -> dict[str, Maker]:
    tensors = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
    parameters = ("_rebuild_parameter", "_rebuild_parameter_with_state")
    return {
        **{f"torch._utils.{name}": tensor for name in tensors},
        **{f"torch._utils.{name}": _first for name in parameters},
        **{f"collections.{name}": _pairs for name in ("OrderedDict", "defaultdict", "Counter")},
        **{f"numpy.{core}.multiarray.scalar": numpy_scalar for core in ("core", "_core")},
        **{f"{module}.bytes": _no_bytes for module in ("builtins", "__builtin__")},
        "_codecs.encode": _latin1,
        "torch.Size": _first,
        "torch._tensor._rebuild_from_type_v2": _of_a_subclass,
        # A tensor's storage that was pickled on its own: a whole older file in a string.
        "torch.storage._load_from_bytes": lambda args: _pickle(
            io.BytesIO(*cast("tuple[bytes]", args)), check, deeper=False
        ),
    }


def _first(args: tuple[object, ...]) -> object:
    return args[0] if args else None


class _Pairs(dict[object, object]):
    """An ordered dictionary, which may be given attributes, as a model's state has them."""

    def __setstate__(self, state: object) -> None:
        pass


def _pairs(args: tuple[object, ...]) -> _Pairs:
    """It is made empty, or, by Python 2, from a list of pairs."""
    return _Pairs(args[0]) if args and isinstance(args[0], list | dict) else _Pairs()


def _no_bytes(args: tuple[object, ...]) -> bytes | None:
    return None if args else b""  # as older protocols write it


def _latin1(args: tuple[object, ...]) -> bytes | None:
    match args:
        case (str(text), "latin1"):
            return text.encode("latin1")
        case _:
            return None


def _of_a_subclass(args: tuple[object, ...]) -> object:
    match args:
        case (type() as kind, _, tuple(given), *_) if named_class(kind).startswith("torch._utils."):
            return kind(*given)
        case _:
            return None
