"""The files that checkpoints come in: torch's archive, torch's older format, a pickle, JSON."""

from __future__ import annotations

import io
import json
import zipfile
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from gradscale.doctor.inert.machine import Machine
from gradscale.doctor.inert.values import Name, Storage, Thing, item_size

LARGEST_PICKLE = 2**28
"""Bytes of the pickle within an archive, which has no tensor's elements in it."""

LARGEST_JSON = 2**26

_MAGIC = 0x1950A86A20F9469CFC6C  # how a file of torch before 1.6 begins


def read_file(path: Path) -> Any:
    """What a file holds, as dictionaries, lists, numbers, texts and stand-ins.

    Tensors stay in the file.

    Args:
        path: of a checkpoint, or of JSON.

    Raises:
        ValueError: if it is neither, or damaged.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise ValueError("it is empty")
    if start[257:262] == b"ustar":
        raise ValueError("it is a tar archive; torch has not written those since version 0.1")
    if start[:4] == b"PK\x03\x04":
        return _archive(path)
    if start.lstrip()[:1] in (b"{", b"["):
        return _json(path)
    with path.open("rb") as file:
        # By path, not by this file: a tensor's bytes are read when somebody asks.
        return _pickle(file, partial(_bytes_of, path))


def _json(path: Path) -> Any:
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"its JSON is larger than {LARGEST_JSON // 2**20} MB")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def _archive(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if not names:
                raise ValueError("it is an archive without torch's data.pkl")
            if archive.getinfo(names[0]).file_size > LARGEST_PICKLE:
                raise ValueError(f"its data.pkl is larger than {LARGEST_PICKLE // 2**20} MB")
            prefix = names[0].removesuffix("data.pkl")
            big = _entry(archive, f"{prefix}byteorder") == b"big"
            with archive.open(names[0]) as file:
                pickled = io.BytesIO(file.read(LARGEST_PICKLE))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"it is a damaged archive: {error}") from None

    def storage(saved: Any) -> Any:
        match saved:
            case ("storage", Name() as kind, str(key), _, int(numel), *_):
                name = f"{prefix}data/{key}"

                def read(offset: int, size: int) -> bytes:
                    return _part(path, name, offset, size)

                return Storage(_dtype(kind), numel, read, ">" if big else "<")
            case _:
                return Thing(Name("pickle", "persistent id"), saved)

    return Machine(storage, _embedded).run(pickled)


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        with archive.open(name) as file:
            return file.read(16)
    except KeyError:
        return b""


def _part(path: Path, name: str, offset: int, size: int) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            file.seek(offset)
            return file.read(size)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError):
        return b""


class _Bytes:
    """Where the storages of an older file begin, known once it has been read."""

    def __init__(self, read: Any) -> None:
        self.read = read
        self.begins: dict[str, int] = {}
        self.sizes: dict[str, int] = {}

    def storage(self, saved: Any) -> Any:
        match saved:
            case ("storage", Name() as kind, str(key), _, int(numel), *_):
                self.sizes[key] = numel * item_size(_dtype(kind))

                def read(offset: int, size: int) -> bytes:
                    if key not in self.begins or offset + size > self.sizes[key]:
                        return b""
                    return self.read(self.begins[key] + offset, size)

                return Storage(_dtype(kind), numel, read)
            case _:
                return Thing(Name("pickle", "persistent id"), saved)

    def place(self, keys: Any, position: int) -> None:
        """The storages follow in the order of `keys`, each after its length in 8 bytes."""
        for key in cast("list[Any]", keys) if isinstance(keys, list) else []:
            self.begins[str(key)] = position + 8
            position += 8 + self.sizes.get(str(key), 0)


def _pickle(file: IO[bytes], read: Any, embedded: Any = None) -> Any:
    places = _Bytes(read)
    machine = Machine(places.storage, embedded or _embedded)
    value = machine.run(file)
    if value != _MAGIC:
        return value
    for _ in range(2):  # the protocol, and what machine wrote it
        machine.run(file)
    value = machine.run(file)
    places.place(machine.run(file), file.tell())
    return value


def _embedded(raw: bytes) -> Any:
    """A tensor's storage that was pickled on its own: a whole older file in a string."""

    def no_deeper(deeper: bytes) -> Any:
        return Thing(Name("torch.storage", "_load_from_bytes"), (deeper,))

    def read(offset: int, size: int) -> bytes:
        return raw[offset : offset + size]

    return _pickle(io.BytesIO(raw), read, no_deeper)


def _bytes_of(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _dtype(kind: Name) -> str | None:
    """What a class such as `torch.FloatStorage` holds; None for one that holds bytes."""
    words = {"Half": "float16", "Float": "float32", "Double": "float64", "BFloat16": "bfloat16"}
    words |= {"Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64", "Byte": "uint8"}
    words["Bool"] = "bool"
    return words.get(kind.name.removesuffix("Storage"))
