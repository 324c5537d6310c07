"""What was lost as one number: flushed over non-zero elements, and how well that is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

METHODS = ("counted", "reference", "probe", "extrapolated")
"""Where the number of lost elements can come from, the best founded first."""


class JudgedRow(Protocol):
    """What is needed of a `gradscale.watching.Row`."""

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def format(self) -> str: ...  # noqa: D102
    @property
    def flushed(self) -> int: ...  # noqa: D102
    @property
    def nonzero(self) -> int: ...  # noqa: D102
    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def least(self) -> int: ...  # noqa: D102
    @property
    def most(self) -> int: ...  # noqa: D102
    @property
    def negligible(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class LostCount:
    """Elements that were lost, of those that are truly not zero; `+` adds them up.

    Attributes:
        flushed: how many were lost.
        nonzero: how many there were to lose.
        method: how that is known; of a sum, the weakest way.

    Example:
        >>> whole = LostCount(1, 8, "counted") + LostCount(1, 8, "probe")
        >>> whole.lost_share, whole.method
        (0.125, 'probe')
    """

    flushed: int = 0
    nonzero: int = 0
    method: str = METHODS[0]

    def __add__(self, other: LostCount) -> LostCount:
        weakest = max(self.method, other.method, key=METHODS.index)
        return LostCount(self.flushed + other.flushed, self.nonzero + other.nonzero, weakest)

    @property
    def lost_share(self) -> float | None:
        """Lost over non-zero elements; None if nothing was non-zero."""
        return self.flushed / self.nonzero if self.nonzero else None


def may_lose(row: JudgedRow) -> bool:
    """Whether a row counts for the lost share: a gradient of which something that matters may go.

    Activations are no gradients; what is zero up to rounding does not matter; and float32 loses
    nothing itself: what is missing there was lost, and is counted, where it was narrower.
    """
    return row.kind != "activation" and not row.negligible and row.format != "fp32"


def count_lost(rows: Iterable[JudgedRow]) -> LostCount:
    """What the rows lost together, the same for a step that was watched and a pass compared.

    Args:
        rows: of one step or pass; see `may_lose` for those that count.

    Example:
        >>> count_lost([]).lost_share is None
        True
    """
    counts = (LostCount(row.flushed, row.nonzero, row.method) for row in rows if may_lose(row))
    return sum(counts, start=LostCount())


class LostBetween(NamedTuple):
    """The shares between which the truth lies; equal where nothing is estimated.

    Attributes:
        least: if every zero whose origin nobody knows is a true one.
        most: if none is.
    """

    least: float
    most: float


def lost_between(rows: Iterable[JudgedRow]) -> LostBetween:
    """The least and the largest share of lost elements that fits what was seen.

        kept  = what was seen, and not flushed
        least = known to be lost / (kept + known to be lost)
        most  = (known to be lost + zeros) / (kept + known to be lost + zeros)

    Octaves are counted whole: an element exactly on the bound between kept and flushed counts as
    kept.

    Args:
        rows: of one step or pass; see `may_lose` for those that count.

    Example:
        >>> lost_between([])
        LostBetween(least=0.0, most=0.0)
    """
    counting = [row for row in rows if may_lose(row)]
    kept = sum(row.nonzero - row.flushed for row in counting)
    bounds = (sum(row.least for row in counting), sum(row.most for row in counting))
    # Where nothing was kept or lost the share is 0, and not 0 / 0.
    return LostBetween(*(lost / max(1, kept + lost) for lost in bounds))
