"""The partition into groups against brute force on small graphs."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale.plans.windows_partition import Edge, Interval, partition


def count(groups: list[int]) -> int:
    return max(groups, default=-1) + 1


def fewest_by_brute_force(intervals: list[Interval], edges: list[Edge]) -> int:
    """Every choice of one exponent a node; the connected sets of equal exponents are the groups."""
    # Upper ends suffice, because a group can be raised until one of them stops it.
    ends = sorted({hi for _, hi in intervals})
    choices = [[end for end in ends if lo <= end <= hi] for lo, hi in intervals]
    best = len(intervals)
    for chosen in itertools.product(*choices):
        component = list(range(len(intervals)))
        joined = 0
        for a, b in edges:
            if chosen[a] == chosen[b]:
                while component[a] != a:
                    a = component[a]
                while component[b] != b:
                    b = component[b]
                joined += a != b
                component[max(a, b)] = min(a, b)
        best = min(best, len(intervals) - joined)
    return best


def assert_valid(groups: list[int], intervals: list[Interval], edges: list[Edge]) -> None:
    for group in set(groups):
        members = [node for node, number in enumerate(groups) if number == group]
        assert max(intervals[m][0] for m in members) <= min(intervals[m][1] for m in members)
        reached, todo = {members[0]}, [members[0]]
        while todo:
            node = todo.pop()
            for a, b in edges:
                other = b if a == node else a if b == node else node
                if groups[other] == group and other not in reached:
                    reached.add(other)
                    todo.append(other)
        assert reached == set(members)


intervals_of = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 5)).map(lambda t: (t[0], t[0] + t[1])),
    min_size=1,
    max_size=7,
)


@given(intervals=intervals_of)
@settings(max_examples=150, deadline=None)
def test_a_chain_gets_the_fewest_groups(intervals: list[Interval]) -> None:
    edges = [(index, index + 1) for index in range(len(intervals) - 1)]
    groups = partition(intervals, edges)
    assert_valid(groups, intervals, edges)
    assert count(groups) == fewest_by_brute_force(intervals, edges)


@given(intervals=intervals_of, data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_tree_gets_the_fewest_groups(intervals: list[Interval], data: st.DataObject) -> None:
    edges = [(data.draw(st.integers(0, i - 1)), i) for i in range(1, len(intervals))]
    groups = partition(intervals, edges)
    assert_valid(groups, intervals, edges)
    assert count(groups) == fewest_by_brute_force(intervals, edges)


@given(intervals=intervals_of, data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_graph_gets_valid_groups_at_most_one_too_many(
    intervals: list[Interval], data: st.DataObject
) -> None:
    pairs = list(itertools.combinations(range(len(intervals)), 2))
    edges = data.draw(st.lists(st.sampled_from(pairs), max_size=10)) if pairs else []
    groups = partition(intervals, edges)
    assert_valid(groups, intervals, edges)
    assert count(groups) <= fewest_by_brute_force(intervals, edges) + 1


def test_small_random_graphs_almost_always_get_the_fewest_groups() -> None:
    generator = random.Random(0)
    exact = 0
    for _ in range(300):
        lows = [generator.randrange(8) for _ in range(6)]
        intervals = [(low, low + generator.randrange(6)) for low in lows]
        pairs = list(itertools.combinations(range(6), 2))
        edges = generator.sample(pairs, 8)
        exact += count(partition(intervals, edges)) == fewest_by_brute_force(intervals, edges)
    assert exact >= 285


@pytest.mark.parametrize("size", [0, 1, 3])
def test_nodes_without_edges_are_groups_of_their_own(size: int) -> None:
    assert partition([(0, 1)] * size, []) == list(range(size))


def test_one_common_exponent_gives_one_group() -> None:
    edges = [(a, b) for a, b in itertools.combinations(range(6), 2)]
    assert set(partition([(i - 6, i) for i in range(6)], edges)) == {0}


def test_a_join_of_thousands_is_no_deeper_than_the_stack() -> None:
    size = 20_000
    edges = [(0, index) for index in range(1, size)]
    assert count(partition([(0, 9)] * size, edges)) == 1
    chain = [(index, index + 1) for index in range(size - 1)]
    assert count(partition([(i // 5000, i // 5000) for i in range(size)], chain)) == 4


def test_a_skip_connection_keeps_the_group_of_its_ends_whole() -> None:
    # 0 -> 1 -> 2 -> 3 with a skip from 0 to 3: the branch alone needs another exponent.
    edges = [(0, 1), (1, 2), (2, 3), (0, 3)]
    assert partition([(0, 4), (9, 12), (8, 10), (0, 4)], edges) == [0, 1, 1, 0]
