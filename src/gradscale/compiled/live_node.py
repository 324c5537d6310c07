"""A node of torch's autograd graph, as far as it is asked for anything here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.utils.hooks import RemovableHandle

Gradients = Sequence[Tensor | None]


class LiveNode(Protocol):
    """What torch's nodes have, and the nodes inside a compiled one as well."""

    @property
    def next_functions(self) -> tuple[tuple[LiveNode | None, int], ...]:
        """Where its gradients go: nodes and their inputs."""
        ...

    @property
    def metadata(self) -> dict[str, object]:
        """A place for notes, which goes with the node."""
        ...

    def name(self) -> str:
        """What autograd calls it."""
        ...

    def _sequence_nr(self) -> int: ...

    def register_prehook(self, hook: Callable[[Any], Any], /) -> RemovableHandle:
        """Calls `hook(arrived)` before it runs, and takes what that returns instead."""
        ...
