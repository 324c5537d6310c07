"""A replacement kernel: for which operation, at which dispatch key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kernel:
    """`function(keyset, *args, **kwargs)` for the operation `name` at the dispatch key `key`."""

    name: str
    key: str
    function: Callable[..., Any]
