"""A node of a live autograd graph, as far as this library knows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import methodcaller
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

Gradients = Sequence[Tensor | None]


class InputMetadata(Protocol):
    """What a node expects at one of its inputs."""

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of a dense gradient."""
        ...

    @property
    def device(self) -> torch.device | None:
        """Where the gradient is."""
        ...

    @property
    def shape(self) -> Sequence[int | torch.SymInt]:
        """The shape; raises `RuntimeError` for a nested tensor."""
        ...


class LiveNode(Protocol):
    """Torch's own nodes, those of custom functions, and those inside compiled ones.

    `torch.autograd.graph.Node` names less than every one of them has.
    """

    @property
    def next_functions(self) -> tuple[tuple[LiveNode | None, int], ...]:
        """For each gradient that it makes, the node and the input where that goes."""
        ...

    @property
    def metadata(self) -> dict[str, object]:
        """A place for notes, which lasts as long as the node."""
        ...

    @property
    def _input_metadata(self) -> Sequence[InputMetadata]: ...

    def name(self) -> str:
        """What autograd calls it."""
        ...

    def _sequence_nr(self) -> int: ...

    def register_hook(
        self, fn: Callable[[Gradients, Gradients], Gradients | None], /
    ) -> RemovableHandle:
        """Calls `fn(produced, arrived)` after it has run, and takes what that returns instead."""
        ...

    def register_prehook(self, fn: Callable[[Gradients], Gradients | None], /) -> RemovableHandle:
        """Calls `fn(arrived)` before it runs, and takes what that returns instead."""
        ...


class LeafNode(LiveNode, Protocol):
    """The node that accumulates into a tensor's `.grad`."""

    @property
    def variable(self) -> Tensor:
        """The tensor."""
        ...


def expected_by(node: LiveNode) -> Sequence[InputMetadata]:
    """What a node expects at each of its inputs; empty where this version of torch does not say."""
    return getattr(node, "_input_metadata", ())


def sequence_numbers(nodes: Iterable[LiveNode]) -> list[int]:
    """The numbers of nodes in the order in which a thread made them; leaves have the largest."""
    return [*map(methodcaller("_sequence_nr"), nodes)]
