"""What a backward pass does with a compiled node that it runs through: noted on the live node."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor
from torch._ops import OpOverload

from gradscale.live_nodes import LiveNode

Seen = Sequence[Tensor]
Hook = Callable[[Seen, Seen], object]
_NOTE = "gradscale.under_way"


class Gate(Protocol):
    """Tells whether the pass that is running is the one that a plan was attached for."""

    def is_open(self) -> bool:
        """Whether it is."""
        ...


class UnderWay:
    """What is asked of one live compiled node. Goes with the node, and keeps no node alive.

    Attributes:
        hooks: by inner node, called with what it produced and what arrived there.
    """

    def __init__(self) -> None:
        self.hooks: dict[int, OrderedDict[int, Hook]] = {}
        self._factors: Tensor | None = None
        self._gate: Gate | None = None

    def scale(self, factors: Tensor, gate: Gate) -> None:
        """From now on, while the gate is open, crossings are multiplied by these."""
        self._factors, self._gate = factors, gate

    @property
    def factors(self) -> Tensor | None:
        """The factors of the running pass, None if it stays plain."""
        return self._factors if self._gate is not None and self._gate.is_open() else None

    @property
    def watched(self) -> bool:
        """Whether somebody wants to see what passes."""
        return any(self.hooks.values())


def under_way(node: LiveNode) -> UnderWay:
    """The note on a live node, made if there is none."""
    return cast(UnderWay, node.metadata.setdefault(_NOTE, UnderWay()))


def noted(node: LiveNode | None) -> UnderWay | None:
    """The note on a live node, None if there is none."""
    return None if node is None else cast("UnderWay | None", node.metadata.get(_NOTE))


def running_node() -> LiveNode | None:
    """The node that the engine runs in this thread; None outside of a backward pass."""
    # torch's own annotations take `metadata` for a method.
    return cast("LiveNode | None", torch._C._current_autograd_node())


def visit(arrived: list[Tensor], produced: list[Tensor], inner: int) -> Tensor:
    """Calls the hooks of an inner node of the compiled node that is running.

    Args:
        arrived: for each of its inputs what arrived there.
        produced: for each of its outputs what leaves it, before a plan multiplies it.
        inner: the number of the inner node.

    Returns:
        Nothing, as a tensor, so that a compiler does not leave the call out.
    """
    note = noted(running_node())
    if note is not None:
        for hook in list(note.hooks.get(inner, {}).values()):
            hook(produced, arrived)
    return torch.empty(0, device="cpu")


_LIBRARY = torch.library.Library("gradscale", "DEF")
_LIBRARY.define("visit(Tensor[] arrived, Tensor[] produced, int inner) -> Tensor")
_LIBRARY.impl("visit", visit, "CompositeExplicitAutograd")


def _visit_fake(arrived: list[Tensor], produced: list[Tensor], inner: int) -> Tensor:
    del arrived, produced, inner
    return torch.empty(0, device="cpu")


torch.library.register_fake("gradscale::visit", _visit_fake)
VISIT: OpOverload = torch.ops.gradscale.visit.default
