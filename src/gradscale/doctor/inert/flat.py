"""A tree of whatever shape as one flat JSON text, and what that text holds as values.

A file's containers may hold each other, share their parts until a walk through them never ends, or
be nested deeper than any recursion goes. As a list of nodes that name each other by number, they
cost what they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from gradscale.doctor.inert.bad_floats import FloatSearch
from gradscale.doctor.inert.numbers_in_bytes import Array, numpy_array
from gradscale.doctor.inert.unpickling import StandIn, named_class

MOST_BYTES = 2**24
"""Of the text: a checkpoint of many thousand tensors has a few million."""

LONGEST_TEXT = 2**23
"""Characters of a text that is no key: the plans of a large model are one of a few million."""

_BEGINNING = 2**12  # what is left of a longer one, which is no setting

_HIGHEST = 2**1100  # above every float; what is larger says no more
_CONTAINERS = (dict, list, tuple, set, frozenset, StandIn, Array)


class TooMuch(Exception):
    """A tree with more in it than anybody needs to look at."""


def flatten(tree: object, readable: int = 0) -> str:
    """The text for a tree.

    Args:
        tree: from `read_container`.
        readable: bytes of tensors that may be looked through for what is not finite.

    Raises:
        TooMuch: if it would be longer than `MOST_BYTES`.

    Example:
        >>> flatten({"a": [1, 2.5], "b": b"bytes are no setting"})
        '[["dict",[["a",[1]],["b",null]]],["list",[1,2.5]]]'
    """
    nodes = _Nodes()
    parts: list[str] = []
    arrays: list[tuple[int, Array]] = []
    written = 0
    nodes.number(tree)
    for value in nodes.values:  # which grows while it is gone through
        if isinstance(value, StandIn):
            value = numpy_array(value) or value
        if isinstance(value, Array):
            arrays.append((len(parts), value))
        parts.append(json.dumps(nodes.described(value), separators=(",", ":")))
        written += len(parts[-1]) + 1
        # While it grows, not afterwards: a small file may stand for more than there is memory.
        if written > MOST_BYTES:
            raise TooMuch
    # The smallest first: what the limit leaves out is then the fewest tensors.
    search = FloatSearch(readable)
    for place, array in sorted(arrays, key=lambda pair: pair[1].numel):
        parts[place] = f"{parts[place][:-1]},{json.dumps(search.nonfinite(array))}]"
    return f"[{','.join(parts)}]"


class _Nodes:
    """The containers of a tree, numbered in the order in which they are met."""

    def __init__(self) -> None:
        self.values: list[object] = []
        self._numbers: dict[int, int] = {}

    def number(self, value: object) -> int:
        # By identity: equal containers may differ later, and comparing them may never end. The
        # list keeps them alive, so that no number is dealt out twice.
        at = self._numbers.setdefault(id(value), len(self.values))
        if at == len(self.values):
            self.values.append(value)
        return at

    def described(self, value: object) -> list[object]:
        if isinstance(value, StandIn):
            entries, attributes = self._pairs(value.entries), self._pairs(value.attributes)
            args, items = self._all(value.args), self._all(value.items)
            return ["object", value.kind, args, attributes, entries, items]
        if isinstance(value, Array):
            return ["array", value.dtype, self._all(value.shape), value.number()]
        if isinstance(value, dict):
            return ["dict", self._pairs(value)]
        if isinstance(value, list | tuple | set | frozenset):
            return ["list", self._all(value)]
        return ["value", self._said(value)]

    def _all(self, values: Iterable[object]) -> list[object]:
        return [self._said(value) for value in values]

    def _pairs(self, held: dict[object, object]) -> list[object]:
        # Pairs rather than an object of JSON, whose keys would all be texts.
        return [[_key(key), self._said(value)] for key, value in held.items()]

    def _said(self, value: object) -> object:
        """A plain value as it is; a container as the number of its node, in brackets."""
        if isinstance(value, _CONTAINERS):
            return [self.number(value)]
        return _plain(value)


def _plain(value: object) -> object:
    if isinstance(value, str):
        return value if len(value) <= LONGEST_TEXT else value[:_BEGINNING]
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-_HIGHEST, min(value, _HIGHEST))
    if value is None or isinstance(value, bool | float):
        return value
    return named_class(value) or None


def _key(key: object) -> object:
    if isinstance(key, str):
        return key
    plain = key is None or isinstance(key, bool | int | float)
    return _plain(key) if plain else f"<a key that is {type(key).__name__}>"
