"""What was seen at one place of a network, before it is judged for a format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from gradscale.backward.measurements import Counts
from gradscale.watching.rows import RowKind

Order = tuple[int, ...]
"""Where in a step: the number of the pass, then of the node; of nodes inside a node, both."""


class StoredAs(NamedTuple):
    """How tensors were stored that are counted together.

    Attributes:
        stored: the format in which they came about.
        rounded: the format that they are rounded to next, or None.
        exponent: stored at ``2**exponent`` times the true value.
    """

    stored: str
    rounded: str | None
    exponent: int

    @property
    def native(self) -> str:
        """The format that something is lost in, if anywhere."""
        return self.rounded or self.stored


@dataclass(frozen=True)
class Sight:
    """What one row is made of.

    Attributes:
        name: of the row.
        kind: of the row.
        order: where it is first met, in backward order (activations: in forward order).
        parts: what was counted, by how it was stored.
        broken: where something that is not finite is first met; None if all is finite.
        negligible: whether it is zero up to rounding, wherever it was met.
    """

    name: str
    kind: RowKind
    order: Order
    parts: Mapping[StoredAs, Counts]
    broken: Order | None = None
    negligible: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What tells rows apart."""
        return self.kind, self.name

    def __add__(self, other: Sight) -> Sight:
        # Kept apart by how they were stored: each part is judged by its own format and exponent.
        parts = dict(self.parts)
        for part, counts in other.parts.items():
            parts[part] = parts[part] + counts if part in parts else counts
        # The first of either, for what comes later may only follow from it.
        broken = min(filter(None, (self.broken, other.broken)), default=None)
        return replace(
            self,
            order=min(self.order, other.order),
            parts=parts,
            broken=broken,
            negligible=self.negligible and other.negligible,
        )


def together(sights: Iterable[Sight]) -> dict[tuple[str, str], Sight]:
    """Those of the same row counted as one, in order.

    Example:
        >>> half = StoredAs("fp16", None, 16)
        >>> one = Sight("w", "parameter", (0, 3), {half: Counts(zero=1)})
        >>> two = Sight("w", "parameter", (1, 3), {half: Counts(zero=2)}, broken=(1, 3))
        >>> (both,) = together([one, two]).values()
        >>> both.parts[half].zero, both.order, both.broken
        (3, (0, 3), (1, 3))
    """
    found: dict[tuple[str, str], Sight] = {}
    for sight in sights:
        known = found.get(sight.key)
        found[sight.key] = sight if known is None else known + sight
    # By where each is first met: a row that later passes add to keeps the place of its first.
    return dict(sorted(found.items(), key=lambda item: item[1].order))
