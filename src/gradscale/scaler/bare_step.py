"""An optimizer that steps past the scaler, on gradients that are S times too large."""

from __future__ import annotations

import warnings
from collections.abc import Sized
from functools import partial
from weakref import ref

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gradscale.gradients.master_weights import trained_by
from gradscale.outcomes.reach import leaves_of
from gradscale.untraced import untraced


class BareStepWatch:
    """Looks at the first step of a loop, in which such a mistake is made or is not.

    From the first scaled loss to the first `update()` every optimizer that steps is compared with
    what the backward pass of a scaled loss has left: the same gradient, written by nobody since, is
    at the scale. Cleared, divided by hand, or made by a loss of its own, as in a GAN, it is another
    one. A warning and no error, because an optimizer may divide by the scale in its own way.

    Args:
        records: of the step under way: empty until the scaler handles an optimizer.
    """

    def __init__(self, records: Sized) -> None:
        self._records = records
        self._left: dict[int, tuple[ref[Tensor], int]] = {}
        self._scale: Tensor | None = None
        self._hook = register_optimizer_step_pre_hook(_calling(ref(self)))

    def watch(self, product: Tensor, graph: Node | None, scale: Tensor) -> None:
        """Has the gradients noted that the backward pass of a scaled loss will leave.

        Args:
            product: the scaled loss.
            graph: of the loss itself; a hook that held the product's own would never be freed.
            scale: S.
        """
        self._scale = scale
        if graph is not None:
            product.register_hook(partial(self._begins, graph))

    def end(self) -> None:
        """Looks no more."""
        self._hook.remove()
        self._left.clear()

    def __del__(self) -> None:
        self._hook.remove()

    @untraced
    def _begins(self, graph: Node, gradient: Tensor) -> None:
        # When the pass begins `.grad` is not filled yet: the engine calls back at its end.
        leaves = leaves_of(graph) or []
        torch.autograd.Variable._execution_engine.queue_callback(partial(self._note, leaves))

    @untraced
    def _note(self, leaves: list[Tensor]) -> None:
        for leaf in leaves:
            if leaf.grad is not None:
                self._left[id(leaf)] = ref(leaf.grad), leaf.grad._version

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called before any optimizer steps."""
        # Whoever uses the scaler may have it step a wrapper, and that one steps another optimizer.
        if not self._left or len(self._records):
            return
        for parameter in trained_by(optimizer):
            left, grad = self._left.get(id(parameter)), parameter.grad
            if left is None or grad is None or left[0]() is not grad or left[1] != grad._version:
                continue
            scale = 1.0 if self._scale is None else self._scale.item()
            self.end()
            if scale != 1:
                warnings.warn(
                    f"`{type(optimizer).__name__}.step()` was called on gradients of "
                    f"`scaler.scale(loss).backward()`, which are {scale:g} times too large. Call "
                    "`scaler.step(optimizer)` and `scaler.update()` instead; to step by hand, "
                    "call `scaler.unscale_(optimizer)` before.",
                    stacklevel=4,
                )
            return


def _calling(watch: ref[BareStepWatch]) -> partial[None]:
    return partial(_before_any_step, watch)


def _before_any_step(
    watch: ref[BareStepWatch], optimizer: torch.optim.Optimizer, *_: object
) -> None:
    alive = watch()
    if alive is not None:
        alive.before_step(optimizer)
