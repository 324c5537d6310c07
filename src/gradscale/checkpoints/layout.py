"""The contract of a checkpoint layout: how one system's saved state is known, read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradscale.checkpoints.draft import Exported
from gradscale.checkpoints.state import ScalerState

Saved = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """How one system saves its loss scaler.

    Args:
        name: the word that `source=` and `target=` take.
        recognizes: True for a dictionary that this system saved and no other did.
        read: the dictionary as a neutral state; raises where it is not of this layout.
        write: a neutral state as this system's dictionary.
    """

    name: str
    recognizes: Callable[[Saved], bool]
    read: Callable[[Saved], ScalerState]
    write: Callable[[ScalerState], Exported]


def has(state: Saved, *keys: str) -> bool:
    """Whether `state` has all of `keys`.

    Example:
        >>> has({"a": 1, "b": 2}, "a", "b")
        True
    """
    return all(key in state for key in keys)
