"""What a stranger's file holds, as values that do nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class SavedObject:
    """An object of whatever class, which was not made.

    Attributes:
        kind: its class, or the function that would have made it, such as ``os.system``.
        args: what that would have been called with.
        attributes: what it would have been given: what `vars(object)` would say.
        entries: items that would have been set.
        items: items that would have been appended.
    """

    kind: str
    args: list[object] = field(default_factory=list[object], repr=False)
    attributes: dict[str, object] = field(default_factory=dict[str, object], repr=False)
    entries: dict[object, object] = field(default_factory=dict[object, object], repr=False)
    items: list[object] = field(default_factory=list[object], repr=False)


@dataclass(frozen=True, eq=False)
class SavedArray:
    """A tensor or an array that was left where it is.

    Attributes:
        dtype: of its elements.
        shape: its sizes.
        value: its number, if it has one element.
        nonfinite: how many of its elements are infinite or NaN, but for masks; None if nobody has
            looked.
    """

    dtype: str
    shape: tuple[int, ...]
    value: float | int | None = None
    nonfinite: int | None = None

    def item(self) -> float | int:
        """Its only number.

        Raises:
            ValueError: if it has several, or its bytes are missing.
        """
        if self.value is None:
            raise ValueError(f"an array of {self.dtype} and shape {self.shape} is not one number")
        return self.value


def rebuild(text: str) -> object:
    """The tree that `flatten` wrote; what was a tuple or a set is a list.

    Args:
        text: from the child process.

    Example:
        >>> rebuild('[["dict",[["a",[1]],["b",null]]],["list",[1,2.5]]]')
        {'a': [1, 2.5], 'b': None}
    """
    nodes: list[list[Any]] = json.loads(text)
    # Each node once: what the file shares is shared here, too, and may hold itself.
    values = [_empty(node) for node in nodes]

    def said(value: object) -> object:
        match value:
            case [int(number)]:
                return values[number]
            case _:
                return value

    # In two rounds, because a container may hold one that comes later, or itself.
    for node, value in zip(nodes, values, strict=True):
        match node, value:
            case ["object", _, args, attributes, entries, items], SavedObject():
                value.args.extend(map(said, args))
                value.attributes.update((str(name), said(part)) for name, part in attributes)
                value.entries.update((key, said(part)) for key, part in entries)
                value.items.extend(map(said, items))
            case ["dict", pairs], dict():
                value.update((key, said(part)) for key, part in pairs)
            case ["list", parts], list():
                value.extend(map(said, parts))
            case _:
                pass
    return values[0]


def _empty(node: list[Any]) -> object:
    match node:
        case ["object", kind, *_]:
            return SavedObject(kind)
        case ["array", dtype, shape, value, nonfinite]:
            return SavedArray(dtype, tuple(shape), value, nonfinite)
        case ["dict", _]:
            return {}
        case ["list", _]:
            return []
        case _:
            return node[1]
