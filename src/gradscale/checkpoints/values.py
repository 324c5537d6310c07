"""Plain numbers out of saved dictionaries: Python's, torch's, numpy's and lists of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast


def read_float(state: Mapping[str, Any], key: str) -> float:
    """`state[key]` as a float.

    Args:
        state: a saved dictionary.
        key: its key; the value is a number, a one-element tensor or array, or a list of one.

    Raises:
        ValueError: if the key is absent.
        TypeError: if the value is not one number.

    Example:
        >>> import torch
        >>> read_float({"scale": torch.tensor([4.0])}, "scale")
        4.0
    """
    return float(_number(state, key))


def read_count(state: Mapping[str, Any], key: str) -> int:
    """`state[key]` as an int; a float is taken where it is whole.

    Raises:
        ValueError: if the key is absent.
        TypeError: if the value is not one whole number.

    Example:
        >>> read_count({"unskipped": 12.0}, "unskipped")
        12
    """
    number = _number(state, key)
    if number != int(number):
        raise TypeError(f"`state[{key!r}]` is {number!r}, which is not a whole number.")
    return int(number)


def read_flag(state: Mapping[str, Any], key: str) -> bool:
    """`state[key]` as a bool.

    Example:
        >>> read_flag({"dynamic": True}, "dynamic")
        True
    """
    return bool(_number(state, key))


def _number(state: Mapping[str, Any], key: str) -> float | int:
    if key not in state:
        raise ValueError(f"`state[{key!r}]` is absent; the state has {sorted(map(str, state))}.")
    value: Any = state[key]
    if isinstance(value, list | tuple):
        value = _only(cast("Sequence[Any]", value))
    # torch, numpy, jax and paddle scalars all have item(); none of the four is imported for it.
    if hasattr(value, "item"):
        try:
            value = value.item()
        except (RuntimeError, ValueError, TypeError):
            value = None
    if not isinstance(value, bool | int | float):
        raise TypeError(
            f"`state[{key!r}]` is {state[key]!r}, not one number. Pass the dictionary that the "
            "system saved, with plain numbers or one-element arrays in it."
        )
    return value


def _only(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else None
