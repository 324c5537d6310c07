"""Sets of neighbours, united one edge at a time."""

from __future__ import annotations


class DisjointSets:
    """Disjoint sets of the integers below `size`, united in almost constant time.

    Example:
        >>> sets = DisjointSets(3)
        >>> sets.unite(2, 1), sets.unite(1, 2), sets.find(2)
        (True, False, 1)
    """

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, item: int) -> int:
        """The smallest member of the set that `item` is in."""
        parent = self._parent
        while parent[item] != item:
            # Half the path goes at each walk along it, so that later walks are short.
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def unite(self, one: int, other: int) -> bool:
        """Whether the two were in different sets until now."""
        one, other = self.find(one), self.find(other)
        self._parent[max(one, other)] = min(one, other)
        return one != other
