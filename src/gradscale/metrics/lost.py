"""One number for what a step lost: flushed over non-zero elements, and how well it is known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

METHODS = ("counted", "reference", "probe", "extrapolated")
"""Where the number of lost elements can come from, the best founded first."""


class JudgedRow(Protocol):
    """What is needed of a `gradscale.watching.Row`."""

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def flushed(self) -> int: ...  # noqa: D102
    @property
    def nonzero(self) -> int: ...  # noqa: D102
    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def negligible(self) -> bool: ...  # noqa: D102


class Lost(NamedTuple):
    """Elements lost, elements truly not zero, and the weakest method among the rows."""

    flushed: int
    nonzero: int
    method: str

    @property
    def share(self) -> float | None:
        """Lost over non-zero elements; None if nothing was non-zero."""
        return self.flushed / self.nonzero if self.nonzero else None


def lost_in(rows: Iterable[JudgedRow]) -> Lost:
    """What a step's rows lost together: all gradients, without activations and without noise.

    Args:
        rows: of one step. Those whose true value is zero up to rounding are left out.

    Example:
        >>> lost_in([]).share is None
        True
    """
    flushed = nonzero = 0
    weakest = 0
    for row in rows:
        if row.kind != "activation" and not row.negligible:
            flushed += row.flushed
            nonzero += row.nonzero
            weakest = max(weakest, METHODS.index(row.method))
    return Lost(flushed, nonzero, METHODS[weakest])
