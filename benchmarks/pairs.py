"""Ways to do the same thing, timed in turns: on a shared machine only ratios mean anything."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

Way = Callable[[], float]
"""Does the thing once, and returns the seconds of it that count."""


def seconds(work: Callable[[], object], device: str) -> float:
    """The time that `work` takes; on a GPU until all of it has run."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def in_turns(ways: Mapping[str, Way], rounds: int) -> dict[str, list[float]]:
    """The seconds of every way in every round; each round begins with the next of them."""
    names = list(ways)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(ways[name]())
    return taken


def quartiles(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Of the ratios of one way to another, round by round."""
    return statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)


def bracketed(low: float, middle: float, high: float, digits: int = 3) -> str:
    """A median, and its quartiles behind it."""
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


class Paired(NamedTuple):
    """The seconds of two ways, round by round."""

    ours: list[float]
    theirs: list[float]

    def row(self, ours: str, theirs: str) -> dict[str, Any]:
        """Both medians in milliseconds, under the names given, and the ratio with its quartiles."""
        low, middle, high = quartiles(self.ours, self.theirs)
        return {
            f"{theirs}_ms": 1e3 * statistics.median(self.theirs),
            f"{ours}_ms": 1e3 * statistics.median(self.ours),
            "ratio": middle,
            "ratio_low": low,
            "ratio_high": high,
            "rounds": len(self.ours),
        }


def ratio_of(row: dict[str, Any], digits: int = 3) -> str:
    """The ratio of a row of `Paired`, as text."""
    return bracketed(row["ratio_low"], row["ratio"], row["ratio_high"], digits)


def paired(ours: Way, theirs: Way, rounds: int, best_of: int = 1) -> Paired:
    """Two ways in turns, undisturbed by the garbage collector.

    Args:
        ours: one way.
        theirs: the other, the denominator.
        rounds: how many pairs of times there will be.
        best_of: how many times in a row each is run in a round; the shortest time counts.
    """

    def best(way: Way) -> Way:
        return lambda: min(way() for _ in range(best_of))

    with without_collection():
        taken = in_turns({"theirs": best(theirs), "ours": best(ours)}, rounds)
    return Paired(taken["ours"], taken["theirs"])


@contextmanager
def without_collection() -> Iterator[None]:
    """Undisturbed by the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
