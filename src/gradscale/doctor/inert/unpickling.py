"""Python's own unpickler, where whatever a file names is a stand-in that does nothing.

Here and in every file that the child process runs: the standard library alone, and no more of it
than is needed, because a process is started for each file.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import IO

Maker = Callable[[tuple[object, ...]], object]
"""What a call gives whose result is plain data; None leaves a stand-in."""


class StandIn:
    """An object of whatever class: what it was made from, and what it held.

    What a file names becomes a subclass, because the unpickler makes objects of types only.
    """

    __slots__ = ("args", "entries", "items", "state")
    kind = "object"
    make: Maker | None = None
    args: tuple[object, ...]
    state: object
    entries: dict[object, object]
    items: list[object]

    def __new__(cls, *args: object, **keywords: object) -> object:
        """What `make` gives, or an object that keeps the arguments."""
        made = None if cls.make is None else cls.make(args)
        if made is not None:
            return made
        self = super().__new__(cls)
        # Keywords come with protocol 4's NEWOBJ_EX only; they are data like the rest.
        self.args = (*args, keywords) if keywords else args
        self.state, self.entries, self.items = None, {}, []
        return self

    # What the unpickler calls where an object's own class would have acted.

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.entries[key] = value

    def extend(self, items: list[object]) -> None:
        """Items of a list of its own kind."""
        self.items += items

    def add(self, item: object) -> None:
        """An item of a set of its own kind."""
        self.items.append(item)

    @property
    def attributes(self) -> dict[object, object]:
        """What `vars(object)` would give, slots included."""
        state = self.state
        # `object.__reduce_ex__` gives a pair where a class has slots: its dictionary, its slots.
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        return {
            name: value for part in parts if isinstance(part, dict) for name, value in part.items()
        }


def named_class(value: object) -> str:
    """The name of a stand-in for a class; empty for anything else."""
    return value.kind if isinstance(value, type) and issubclass(value, StandIn) else ""


class InertUnpickler(pickle.Unpickler):
    """Reads a pickle; imports no module and calls no function that it names.

    Args:
        file: where it begins; left at its end.
        storage: what a persistent id stands for.
        makers: by name, the calls whose result is plain data.

    Example:
        >>> import io, os, pickle
        >>> class Evil:
        ...     def __reduce__(self):
        ...         return os.system, ("echo this is never printed",)
        >>> InertUnpickler(io.BytesIO(pickle.dumps(Evil()))).load().args
        ('echo this is never printed',)
    """

    def __init__(
        self,
        file: IO[bytes],
        storage: Callable[[object], object] = lambda saved: None,
        makers: Mapping[str, Maker] | None = None,
    ) -> None:
        super().__init__(file, encoding="latin1")  # any bytes of Python 2 are text in it
        self._storage = storage
        self._makers = makers or {}
        self._kinds: dict[str, type[StandIn]] = {}

    def find_class(self, module: str, name: str, /) -> type[StandIn]:
        """A stand-in for what the file names; the same one each time."""
        kind = f"{module}.{name}"
        if kind not in self._kinds:
            make = self._makers.get(kind)
            # A type of its own, for `NEWOBJ` calls `cls.__new__`, and refuses what is no type.
            held = {"kind": kind, "make": make and staticmethod(make), "__slots__": ()}
            self._kinds[kind] = type("Named", (StandIn,), held)
        return self._kinds[kind]

    def persistent_load(self, pid: object) -> object:
        """What is kept outside the pickle: the bytes of a tensor."""
        return self._storage(pid)
