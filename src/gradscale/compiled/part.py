"""What a traced backward pass holds, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

OUTSIDE = -1


class Arriving(NamedTuple):
    """What arrives at one input of an inner node; reads as torch's own input metadata does."""

    dtype: torch.dtype
    device: torch.device
    shape: tuple[int, ...]
    value: str


class Inner(NamedTuple):
    """An autograd node within a compiled backward pass.

    Attributes:
        name: what autograd calls it.
        pinned: whether it stays at the loss scale, because it is not known to be linear.
        arrives: one entry for each input.
    """

    name: str
    pinned: bool
    arrives: tuple[Arriving, ...]


class Crossing(NamedTuple):
    """A gradient on its way from one inner node to another, or out of the graph.

    Attributes:
        source: the inner node that made it.
        target: the inner node it goes to; `OUTSIDE` if it leaves.
        input: at which input of the target it arrives, or as which tensor argument's gradient.
        value: the operator of the traced graph whose result it is.
        readers: the operators that read it there.
        place: where it stands in the graph's output; -1 if it does not.
    """

    source: int
    target: int
    input: int
    value: str
    readers: tuple[str, ...]
    place: int


class Entry(NamedTuple):
    """Where a gradient that enters the graph arrives first."""

    inner: int
    input: int


@dataclass(frozen=True, eq=False)
class CompiledPart:
    """The inside of one compiled backward pass: nodes, the edges between them, and its borders.

    Attributes:
        nodes: in no particular order.
        crossings: sorted by source; each has a factor of its own, at its place here.
        entries: by the output of the forward pass whose gradient enters.
        arguments: how many tensors the forward pass was given.
        device: on which the gradients are.
    """

    nodes: tuple[Inner, ...]
    crossings: tuple[Crossing, ...]
    entries: Mapping[int, Entry]
    arguments: int
    device: torch.device

    def __deepcopy__(self, memo: dict[int, object]) -> CompiledPart:
        return self  # torch copies a traced graph, with its notes, before it compiles it

    @cached_property
    def leaving(self) -> tuple[tuple[int, ...], ...]:
        """For each inner node the places of its crossings."""
        places: list[list[int]] = [[] for _ in self.nodes]
        for place, crossing in enumerate(self.crossings):
            places[crossing.source].append(place)
        return tuple(tuple(own) for own in places)


class Closed(NamedTuple):
    """A compiled backward pass that nobody can look into, and why.

    In the reason `{this}` and `{the}` stand for who wanted to: "this scaler", "the scaler".
    """

    why: str
