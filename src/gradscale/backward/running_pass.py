"""Which backward pass is running, and whether it is one that a plan may scale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

NONE = -1


def current_pass() -> int:
    """The engine's number for the backward pass that this thread works on, -1 outside of any."""
    return torch._C._current_graph_task_id()


def executes(node: Any) -> bool:
    """Whether the running pass executes `node`, accumulating if it is a leaf.

    `autograd.grad` captures a leaf's gradient in place of accumulating it; the engine then refuses
    to answer for that leaf, which is an answer too.
    """
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:
        return False


def is_full(leaves: Iterable[Any]) -> bool:
    """Whether the running pass accumulates into all these leaves.

    A pass that leaves one out is `autograd.grad` or `backward(inputs=…)`, and may hand gradients of
    inner tensors to the user. One that names every leaf and inner tensors as well looks full;
    `LossEntry` adds a leaf that nobody can name.
    """
    return all(executes(leaf) for leaf in leaves)


class PassGate:
    """Open while a scaled pass runs. All hooks of one plan share one gate.

    Hooks hold the gate, so it must hold no node: that cycle would run through the engine, where
    Python's collector cannot see it.
    """

    def __init__(self) -> None:
        self._seen = NONE
        self._open = NONE
        self._only: int | None = None
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether the hooks behind this gate may still act."""
        return not self._closed and (self._only is None or self._only == current_pass())

    def enter(self, leaves: list[Any]) -> None:
        """Called as a loss's node is about to run: decides for this pass, the first time."""
        running = current_pass()
        if self._seen == running or not self.alive:
            return
        self._seen = running
        self._open = running if is_full(leaves) else NONE

    def open_for_this_pass(self) -> None:
        """Binds the hooks to the pass that is running, and to no other."""
        self._only = self._open = self._seen = current_pass()

    def is_open(self) -> bool:
        """Whether the running pass is one to scale."""
        return self._open == torch._C._current_graph_task_id() and not self._closed

    def close(self) -> None:
        """Makes every hook inert."""
        self._closed = True
