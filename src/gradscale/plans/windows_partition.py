"""The fewest groups of neighbouring nodes whose windows have an exponent in common.

On a tree this is small parsimony (Hartigan 1973, *Minimum mutation fits to a given tree*,
Biometrics 29): with each node choosing from a set of states, find the fewest edges whose ends
differ. The set of best states of a subtree follows from those of its children alone, here as one
bit per exponent, so that a node costs a few operations on integers. A backward graph is not a tree,
but its groups are connected through some spanning tree; so the trees that keep the widest common
windows are tried, and groups that still fit each other are joined.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradscale.plans.disjoint_sets import DisjointSets

Interval = tuple[int, int]
Edge = tuple[int, int]


def partition(intervals: Sequence[Interval], edges: Sequence[Edge]) -> list[int]:
    """Groups of nodes, connected through `edges`, each with a common point of its intervals.

    Args:
        intervals: for each node the lowest and the highest exponent, lo <= hi.
        edges: pairs of neighbours; directions do not matter.

    Returns:
        For each node the number of its group, 0 for the group of node 0 and counting upwards in
        the order of the nodes. The number of groups is the smallest possible if the edges form a
        forest, and close to it otherwise. Deterministic; near-linear time.

    Example:
        >>> partition([(0, 4), (2, 6), (5, 9), (8, 9)], [(0, 1), (1, 2), (2, 3)])
        [0, 0, 1, 1]
    """
    shared = [_shared(intervals[a], intervals[b]) for a, b in edges]
    by_width = sorted(range(len(edges)), key=lambda index: -shared[index])
    orders = [by_width, list(range(len(edges))), list(range(len(edges) - 1, -1, -1))]
    best: list[int] | None = None
    for order in orders:
        fitting = [edges[index] for index in order if shared[index] > 0]
        rest = [edges[index] for index in order if shared[index] <= 0]
        tree = _spanning_forest(len(intervals), fitting + rest)
        groups = _joined(_cut_tree(intervals, tree), intervals, edges)
        if best is None or max(groups, default=0) < max(best, default=0):
            best = groups
        if len(tree) == len(edges) or not rest:
            break
    return best or []


def _shared(one: Interval, other: Interval) -> int:
    return min(one[1], other[1]) - max(one[0], other[0]) + 1


def _spanning_forest(size: int, edges: Sequence[Edge]) -> list[Edge]:
    sets = DisjointSets(size)
    return [edge for edge in edges if sets.unite(*edge)]


def _cut_tree(intervals: Sequence[Interval], tree: Sequence[Edge]) -> list[int]:
    """The fewest groups of a forest: for each node the smallest node of its group."""
    parents, order = _rooted(len(intervals), tree)
    offset = min((lo for lo, _ in intervals), default=0)
    # One bit an exponent; bit 0 is the lowest of all.
    allowed = [((1 << (hi - lo + 1)) - 1) << (lo - offset) for lo, hi in intervals]
    planes: list[list[int]] = [[] for _ in intervals]
    # In place: what a node allows is not asked again.
    best = allowed
    for node in reversed(order):
        best[node] = _most_counted(allowed[node], planes[node])
        if parents[node] >= 0:
            _add(planes[parents[node]], best[node])
    sets = DisjointSets(len(intervals))
    chosen = [0] * len(intervals)
    for node in order:
        parent = parents[node]
        if parent >= 0 and best[node] & chosen[parent]:
            chosen[node] = chosen[parent]
            sets.unite(node, parent)
        else:
            # The highest of those that are equally good.
            chosen[node] = 1 << (best[node].bit_length() - 1)
    return [sets.find(node) for node in range(len(intervals))]


def _rooted(size: int, tree: Sequence[Edge]) -> tuple[list[int], list[int]]:
    """Each node's parent (-1 for a root), and the nodes with parents before children."""
    neighbors: list[list[int]] = [[] for _ in range(size)]
    for one, other in tree:
        neighbors[one].append(other)
        neighbors[other].append(one)
    parents = [-1] * size
    seen = [False] * size
    order: list[int] = []
    for root in range(size):
        if seen[root]:
            continue
        seen[root] = True
        stack = [root]
        while stack:
            node = stack.pop()
            order.append(node)
            for neighbor in neighbors[node]:
                if not seen[neighbor]:
                    seen[neighbor] = True
                    parents[neighbor] = node
                    stack.append(neighbor)
    return parents, order


def _add(planes: list[int], mask: int) -> None:
    """Counts `mask` into the bit planes: plane i holds bit i of the count of each exponent."""
    index = 0
    while mask:
        if index == len(planes):
            planes.append(0)
        # One is added to the counts of all exponents of the mask at once; what carries goes on.
        planes[index], mask = planes[index] ^ mask, planes[index] & mask
        index += 1


def _most_counted(allowed: int, planes: Sequence[int]) -> int:
    """Those of the allowed exponents that were counted most often."""
    for plane in reversed(planes):
        # From the highest bit of the counts down: who has it beats who lacks it.
        allowed = allowed & plane or allowed
    return allowed


def _joined(
    groups: Sequence[int], intervals: Sequence[Interval], edges: Sequence[Edge]
) -> list[int]:
    """Neighbouring groups with a common exponent become one, the widest agreement first."""
    sets = DisjointSets(len(groups))
    shared: dict[int, Interval] = {}
    for group, (lo, hi) in zip(groups, intervals, strict=True):
        low, high = shared.get(group, (lo, hi))
        shared[group] = (max(lo, low), min(hi, high))
    pairs = {(groups[a], groups[b]) for a, b in edges if groups[a] != groups[b]}
    widest = sorted((-_shared(shared[a], shared[b]), a, b) for a, b in pairs)
    for _, a, b in widest:
        one, other = sets.find(a), sets.find(b)
        if one != other and _shared(shared[one], shared[other]) > 0:
            (low, high), (lo, hi) = shared[one], shared[other]
            sets.unite(one, other)
            shared[min(one, other)] = (max(lo, low), min(hi, high))
    numbers: dict[int, int] = {}
    return [numbers.setdefault(sets.find(group), len(numbers)) for group in groups]
