"""Which backward pass is running, and whether it is one that a plan may scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch

from gradscale.live_nodes import LiveNode

NONE = -1
NEVER = -2
"""No pass has this number, and neither has the time between two."""


# Torch declares a class of its own for nodes, which knows less of them than `LiveNode`.
_executes = cast(Callable[[LiveNode], bool], torch._C._will_engine_execute_node)


def current_pass() -> int:
    """The engine's number for the backward pass that this thread works on, -1 outside of any."""
    return torch._C._current_graph_task_id()


def executes(node: LiveNode) -> bool:
    """Whether the running pass executes `node`, accumulating if it is a leaf.

    `autograd.grad` captures a leaf's gradient in place of accumulating it; the engine then refuses
    to answer for that leaf, which is an answer too.
    """
    try:
        return _executes(node)
    except RuntimeError:
        return False


def is_full(leaves: Iterable[LiveNode]) -> bool:
    """Whether the running pass accumulates into all these leaves.

    A pass that leaves one out is `autograd.grad` or `backward(inputs=…)`, and may hand gradients of
    inner tensors to the user. One that names every leaf and inner tensors as well looks full;
    `LossEntry` adds a leaf that nobody can name.
    """
    try:
        return all(map(_executes, leaves))
    except RuntimeError:  # see `executes`
        return False


class PassGate:
    """Open while a scaled pass runs. All hooks of one plan share one gate.

    Hooks hold the gate, so it must hold no node: that cycle would run through the engine, where
    Python's collector cannot see it.

    Attributes:
        open_in: the pass for which it is open. A hook compares it with `current_pass` by itself.
    """

    def __init__(self) -> None:
        self.open_in = NEVER
        self._seen = NONE
        self._only: int | None = None
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether the hooks behind this gate may still act."""
        return not self._closed and (self._only is None or self._only == current_pass())

    def enter(self, leaves: Iterable[LiveNode]) -> None:
        """Called as a loss's node is about to run: decides for this pass, the first time."""
        running = current_pass()
        if self._seen == running or not self.alive:
            return
        self._seen = running
        self.open_in = running if is_full(leaves) else NEVER

    def open_for_this_pass(self) -> None:
        """Binds the hooks to the pass that is running, and to no other."""
        self._only = self.open_in = self._seen = current_pass()

    def is_open(self) -> bool:
        """Whether the running pass is one to scale."""
        return self.open_in == current_pass()

    def close(self) -> None:
        """Makes every hook inert."""
        self._closed = True
        self.open_in = NEVER
