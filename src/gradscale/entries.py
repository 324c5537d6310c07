"""What somebody else wrote, taken entry by entry, each checked for its kind and its range.

Whatever comes out of a file goes through here once, so that nothing behind it asks again: states
of scalers, lines of recordings, arguments beside a checkpoint.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

MOST = 2**53
"""Of a count: the largest that a float holds exactly, and more than any run has of anything."""

_Taken = TypeVar("_Taken")
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


class Absent(ValueError):
    """An entry that is not there.

    Args:
        key: which.
        message: what to say.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class Entries:
    """A dictionary that was read, whose entries are taken by kind and range.

    A number may be Python's, torch's, numpy's, or a list of one. Every method raises `Absent` for
    an entry that is not there, TypeError for another kind and ValueError out of range.

    Args:
        held: what was read.
        name: what it is called in messages.

    Raises:
        TypeError: if it is no dictionary.

    Example:
        >>> state = Entries({"scale": [4.0], "tracker": -1}, "state")
        >>> state.number("scale")
        4.0
        >>> state.count("tracker")
        Traceback (most recent call last):
            ...
        ValueError: `state['tracker']` is -1; it must not be negative.
    """

    __slots__ = ("held", "name")

    def __init__(self, held: object, name: str = "state") -> None:
        if not isinstance(held, Mapping):
            raise TypeError(f"`{name}` is {shown(held)}; it must be a dictionary.")
        self.held = cast("Mapping[str, object]", held)
        self.name = name

    def has(self, key: str) -> bool:
        """Whether `key` is there, and not None."""
        return self.held.get(key) is not None

    def optional(self, take: Callable[[str], _Taken], key: str) -> _Taken | None:
        """What `take` gives for `key`; None if there is no such entry.

        Example:
            >>> state = Entries({"cap": None, "floor": 2})
            >>> state.optional(state.number, "cap"), state.optional(state.number, "floor")
            (None, 2.0)
        """
        return None if self.held.get(key) is None else take(key)

    def number(self, key: str, least: float | None = None, most: float | None = None) -> float:
        """A number; within bounds it is not NaN."""
        value = self.held.get(key)
        if type(value) is not float:
            try:
                value = float(self._one(key))
            except OverflowError:
                raise ValueError(f"{self._is(key)}, which is too large for a float.") from None
        if (least is not None and not value >= least) or (most is not None and not value <= most):
            raise ValueError(f"{self._is(key)}; it must {_within(least, most)}.")
        return value

    def count(self, key: str, least: int = 0, most: int = MOST) -> int:
        """A whole number, as an int or as a float."""
        value = self.held.get(key)
        if type(value) is not int:
            value = self._one(key)
        if type(value) is not int:
            if math.isinf(value):
                raise TypeError(f"{self._at(key)} is infinity, which is not a whole number.")
            if value != value or value != int(value):
                raise TypeError(f"{self._is(key)}, which is not a whole number.")
            value = int(value)
        if not least <= value <= most:
            raise ValueError(f"{self._is(key)}; it must {_within(least, most)}.")
        return value

    def flag(self, key: str) -> bool:
        """True or False, or a number that stands for one of them."""
        value = self.held.get(key)
        return value if isinstance(value, bool) else bool(self._one(key))

    def text(self, key: str) -> str:
        """A text."""
        return self._of(key, str, "a text")

    def choice(self, key: str, choices: Sequence[str]) -> str:
        """One of a few words."""
        value = self.text(key)
        if value not in choices:
            raise ValueError(f"{self._is(key)}; it must be one of {', '.join(choices)}.")
        return value

    def entries(self, key: str) -> Entries:
        """A dictionary within."""
        return Entries(self._held(key), f"{self.name}[{key!r}]")

    def within(self, key: str) -> Entries:
        """A dictionary within; an empty one where there is none."""
        return self.entries(key) if self.has(key) else Entries({}, f"{self.name}[{key!r}]")

    def each(self, key: str) -> list[Entries]:
        """A list of dictionaries."""
        return [
            Entries(part, f"{self.name}[{key!r}][{at}]") for at, part in enumerate(self.list(key))
        ]

    def counts(self, key: str, least: int = 0, most: int = MOST) -> tuple[int, ...]:
        """A list of whole numbers."""
        values = self.list(key)
        whole = all(type(value) is int for value in values)
        if not whole or (values and not (least <= min(values) and max(values) <= most)):
            raise ValueError(f"{self._is(key)}; its elements must {_within(least, most)}.")
        return tuple(values)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        values = self.list(key)
        if not all(isinstance(value, str) for value in values):
            raise TypeError(f"{self._is(key)}; it must be a list of texts.")
        return tuple(values)

    def list(self, key: str) -> Sequence[Any]:
        """A list of whatever; who takes it looks at its elements."""
        return self._of(key, (list, tuple), "a list")

    def _of(self, key: str, kind: type[_Taken] | tuple[type[_Taken], ...], words: str) -> _Taken:
        value = self._held(key)
        if not isinstance(value, kind):
            raise TypeError(f"{self._is(key)}; it must be {words}.")
        return value

    def _held(self, key: str) -> object:
        if key not in self.held:
            known = sorted(map(str, self.held))
            raise Absent(key, f"{self._at(key)} is absent; the {self.name} has {shown(known)}.")
        return self.held[key]

    def _one(self, key: str) -> float | int:
        value = self._held(key)
        if type(value) is float or type(value) is int:
            return value
        if isinstance(value, list | tuple):
            value = _only(cast("Sequence[object]", value))
        # torch, numpy, jax and paddle scalars all have item(); none of the four is imported for it.
        item = getattr(value, "item", None)
        if item is not None:
            try:
                value = item()
            except (RuntimeError, ValueError, TypeError):
                value = None
        if not isinstance(value, bool | int | float):
            raise TypeError(
                f"{self._is(key)}, not one number. Pass the dictionary that the system saved, with "
                "plain numbers or one-element arrays in it."
            )
        return value

    def _at(self, key: str) -> str:
        return f"`{self.name}[{key!r:.60}]`"

    def _is(self, key: str) -> str:
        return f"{self._at(key)} is {shown(self.held[key])}"


def shown(value: object) -> str:
    """A value in a message, in a few words: one that was read may hold itself a billion times.

    Example:
        >>> shown([[[[1]]]]), shown(10**400)
        ('[[[...]]]', 'a whole number of 1329 bits')
    """
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"  # Python refuses to write the longest
    return _SHORT.repr(value)


def _only(values: Sequence[object]) -> object:
    return values[0] if len(values) == 1 else None


def _within(least: float | None, most: float | None) -> str:
    if least == 0 and most in (None, MOST):
        return "not be negative"
    if most is None or most == MOST:
        return f"be at least {least:g}"
    return f"be at most {most:g}" if least is None else f"lie between {least:.10g} and {most:.10g}"


def plain_settings(settings: Iterable[tuple[str, object]]) -> dict[str, float | int | bool | str]:
    """Those of `settings` that are plain values: a text, a flag, or a number that a float holds.

    Example:
        >>> plain_settings([("floor", 2.0), ("cap", None), ("what", [[]])])
        {'floor': 2.0}
    """
    held: dict[str, float | int | bool | str] = {}
    for name, value in settings:
        fits = not isinstance(value, int) or value.bit_length() < 1024
        if isinstance(value, int | float | str) and fits:
            held[name] = value
    return held
