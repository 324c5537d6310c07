"""A pickle machine that only moves data: it imports no module and calls no function.

Python's own unpickler, whatever its `find_class`, calls what it finds, hashes what it is given and
grows its memo as it is told. This one knows every opcode and none of these: names stay names, calls
become stand-ins, keys are plain values, and nothing is larger than the file.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from gradscale.doctor.inert.calls import call
from gradscale.doctor.inert.values import Name, Thing

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MAKERS: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,  # its elements need no hash
}
_IGNORED = {"PROTO", "FRAME", "READONLY_BUFFER"}
_READS = {"GET", "BINGET", "LONG_BINGET"}
_WRITES = {"PUT", "BINPUT", "LONG_BINPUT"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Mark:
    """Where a group of stacked values begins."""


class Machine:
    """Runs one pickle after another.

    Args:
        persistent: what a persistent id stands for.
        embedded: reads a checkpoint within the checkpoint.
    """

    def __init__(
        self, persistent: Callable[[Any], Any] = Thing, embedded: Callable[[bytes], Any] = Thing
    ) -> None:
        self._persistent = persistent
        self._embedded = embedded
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        """The value of the pickle that begins here; the file is left at its end.

        Raises:
            ValueError: if it is no pickle, or a broken one.

        Example:
            >>> import io, os, pickle
            >>> class Evil:
            ...     def __reduce__(self):
            ...         return os.system, ("echo this is never printed",)
            >>> Machine().run(io.BytesIO(pickle.dumps(Evil()))).args
            ('echo this is never printed',)
        """
        self._stack, self._memo = [], {}
        try:
            for opcode, arg, _ in pickletools.genops(file):
                if opcode.name == "STOP":
                    return self._pop()
                self._do(opcode.name, arg)
        except (IndexError, LookupError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"it is no pickle that Python could have written: {error}") from None
        raise ValueError("the pickle has no end")

    def _do(self, name: str, arg: Any) -> None:
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _MAKERS:
            self._stack.append(_MAKERS[name]())
        elif name in _READS:
            self._stack.append(self._memo[int(arg)])
        elif name in _WRITES:
            self._memo[int(arg)] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in _TUPLES:
            self._stack.append(tuple(self._last(_TUPLES[name])))
        elif name not in _IGNORED:
            handle = _HANDLERS.get(name)
            if handle is not None:
                handle(self, arg)
            elif arg is not None:  # numbers and texts
                self._stack.append(arg)
            else:
                raise ValueError(f"opcode {name}")

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _Mark:
            raise ValueError("a value is missing")
        return value

    def _last(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    def _since_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self._stack.pop()) is not _Mark:
            values.append(value)
        return values[::-1]

    def _mark(self, arg: Any) -> None:
        self._stack.append(_Mark)

    def _discard(self, arg: Any) -> None:
        self._stack.pop()

    def _discard_group(self, arg: Any) -> None:
        self._since_mark()

    def _twice(self, arg: Any) -> None:
        self._stack.append(self._stack[-1])

    def _group(self, arg: Any) -> None:
        self._stack.append(self._since_mark())

    def _tuple(self, arg: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _dict(self, arg: Any) -> None:
        self._stack.append(dict(_entries(self._since_mark())))

    def _append(self, arg: Any) -> None:
        self._extend([self._pop()])

    def _appends(self, arg: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        target: Any = self._stack[-1]
        target = target.items if isinstance(target, Thing) else target
        if isinstance(target, list):
            cast("list[Any]", target).extend(values)

    def _set(self, arg: Any) -> None:
        self._update(self._last(2))

    def _sets(self, arg: Any) -> None:
        self._update(self._since_mark())

    def _update(self, flat: list[Any]) -> None:
        target: Any = self._stack[-1]
        target = target.entries if isinstance(target, Thing) else target
        if isinstance(target, dict):
            cast("dict[Any, Any]", target).update(_entries(flat))

    def _global(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self._stack.append(Name(module, name))

    def _stack_global(self, arg: Any) -> None:
        module, name = self._last(2)
        self._stack.append(Name(*(x if isinstance(x, str) else "?" for x in (module, name))))

    def _extension(self, arg: int) -> None:
        self._stack.append(Name("copyreg", f"extension_{arg}"))

    def _reduce(self, arg: Any) -> None:
        function, args = self._last(2)
        self._stack.append(call(function, args, self._embedded))

    def _new(self, arg: Any) -> None:
        kind, args = self._last(2)
        self._stack.append(Thing(kind, args))

    def _new_with_keywords(self, arg: Any) -> None:
        kind, args, keywords = self._last(3)
        self._stack.append(Thing(kind, (args, keywords)))

    def _instance(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self._stack.append(Thing(Name(module, name), tuple(self._since_mark())))

    def _object(self, arg: Any) -> None:
        kind, *args = self._since_mark()
        self._stack.append(Thing(kind, tuple(args)))

    def _build(self, arg: Any) -> None:
        state = self._pop()
        if isinstance(self._stack[-1], Thing):
            self._stack[-1].state = state

    def _look_up(self, arg: Any) -> None:
        self._stack.append(self._persistent(self._pop() if arg is None else arg))

    def _buffer(self, arg: Any) -> None:
        self._stack.append(Thing(Name("pickle", "PickleBuffer")))


def _entries(flat: list[Any]) -> Iterator[tuple[Any, Any]]:
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        yield _key(key), value


def _key(key: Any) -> Any:
    """A key that hashes in no time and runs nothing; what else was one is named."""
    plain = key is None or isinstance(key, str | int | float | bytes)
    return key if plain else f"<a key that is {type(key).__name__}>"


_HANDLERS: dict[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine._mark,
    "POP": Machine._discard,
    "POP_MARK": Machine._discard_group,
    "DUP": Machine._twice,
    "LIST": Machine._group,
    "TUPLE": Machine._tuple,
    "DICT": Machine._dict,
    "APPEND": Machine._append,
    "APPENDS": Machine._appends,
    "ADDITEMS": Machine._appends,
    "FROZENSET": Machine._group,
    "SETITEM": Machine._set,
    "SETITEMS": Machine._sets,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "EXT1": Machine._extension,
    "EXT2": Machine._extension,
    "EXT4": Machine._extension,
    "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._new,
    "NEWOBJ_EX": Machine._new_with_keywords,
    "INST": Machine._instance,
    "OBJ": Machine._object,
    "BUILD": Machine._build,
    "PERSID": Machine._look_up,
    "BINPERSID": Machine._look_up,
    "NEXT_BUFFER": Machine._buffer,
}
