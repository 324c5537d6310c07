"""Settings out of JSON as a frozen policy holds them: with tuples where JSON has lists."""

from __future__ import annotations


def frozen(setting: object) -> object:
    """The same value, every list of it a tuple.

    Example:
        >>> frozen([[25, 2.0], [100, 8.0]])
        ((25, 2.0), (100, 8.0))
    """
    return tuple(map(frozen, setting)) if isinstance(setting, list | tuple) else setting
