"""Where a backward pass enters a loss: the moment to walk, measure and rescale."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradscale.backward.graph import Walk, walk
from gradscale.backward.running_pass import NONE, current_pass, executes, is_full
from gradscale.backward.user_hooks import watch_user_hooks
from gradscale.untraced import untraced


class LossEntry:
    """Calls `begin` at the start of each backward pass through the losses it watches.

    By then every hook that the user registered is known, the kind of pass is known, and all losses
    that take part in it are walked together, so that shared nodes get one exponent.

        entry = LossEntry(begin)
        scaled = entry.watch(loss) * scale       # an identity node, with a leaf nobody can name
        scaled.backward()                        # begin(walk) runs first; the pass continues

    `begin` is not called for `autograd.grad` or `backward(inputs=…)`, nor where the losses of two
    `LossEntry` meet in one pass: no plan may scale those, and `partial_passes` counts them. Nothing
    is kept alive between passes. One case cannot be seen: a loss that was never watched, computed
    from the same inner tensors and added to a watched one. Watch all losses of a pass, or none.

    Args:
        begin: receives the walk of all losses in this pass. What it passes to `rescale` serves
            this pass only. It runs in the engine's thread and must keep neither walk nor nodes.
        begin_part: the same for `autograd.grad` and `backward(inputs=…)`.

    Example:
        >>> entry = LossEntry(lambda walk: print(len(walk.graph), "nodes"))
        >>> w = torch.ones(3, requires_grad=True)
        >>> (entry.watch((w * 2).sum()) * 1024.0).backward()
        5 nodes
    """

    def __init__(
        self, begin: Callable[[Walk], None], begin_part: Callable[[Walk], None] | None = None
    ) -> None:
        watch_user_hooks()
        self._begin = begin
        self._begin_part = begin_part
        self._nodes: list[weakref.ref[Any]] = []
        self._probes: dict[torch.device, Tensor] = {}
        self._pass = NONE
        self.partial_passes = 0
        _ENTRIES.add(self)

    def watch(self, loss: Tensor) -> Tensor:
        """The same loss; a backward pass through the result announces itself.

        A loss that requires no gradient, or is inside `torch.func`, is returned as it is.
        """
        if not (loss.requires_grad and torch.is_grad_enabled()) or transformed():
            return loss
        probe = self._probes.get(loss.device)
        if probe is None:
            probe = torch.zeros((), device=loss.device, requires_grad=True)
            self._probes[loss.device] = probe
        watched = enter(loss, probe)
        node: Any = watched.grad_fn
        self._nodes = [ref for ref in self._nodes if ref() is not None]
        self._nodes.append(weakref.ref(node))
        node.register_prehook(self._entered)
        return watched

    def nodes(self) -> list[Any]:
        """Where passes enter the losses that are alive, in the order they were watched."""
        return [node for node in (ref() for ref in self._nodes) if node is not None]

    @untraced
    def _entered(self, grads: Any) -> None:
        del grads
        if torch.compiler.is_compiling():  # compiled autograd traces hooks, and could not follow
            self.partial_passes += 1
            return
        running = current_pass()
        if running == self._pass:
            return
        self._pass = running
        walked = walk(self._taking_part())
        full = is_full(walked.nodes[leaf] for leaf in walked.graph.leaves)
        alone = not any(entry._taking_part() for entry in list(_ENTRIES) if entry is not self)
        if full and alone:
            self._begin(walked)
        else:
            self.partial_passes += 1
            if alone and self._begin_part is not None:
                self._begin_part(walked)

    def _taking_part(self) -> list[Any]:
        """The entries that the running pass goes through, in the order they were watched."""
        here = torch._C._current_autograd_node()  # the engine does not count a pass's only root
        return [node for node in self.nodes() if node is here or executes(node)]


def enter(loss: Tensor, probe: Tensor) -> Tensor:
    """The same loss behind the node at which `LossEntry` notices a pass.

    Args:
        loss: requires a gradient.
        probe: a leaf that no `inputs=` can name; it gets no gradient.
    """
    return _LossEntry.apply(loss, probe)


def transformed() -> bool:
    """Whether a transform of `torch.func` is at work: its passes are none that a hook could see.

    Example:
        >>> transformed()
        False
    """
    return torch._C._are_functorch_transforms_active()


_ENTRIES: weakref.WeakSet[LossEntry] = weakref.WeakSet()


class _LossEntry(torch.autograd.Function):
    """The identity, with a second input that no `inputs=` can name."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, probe: Tensor) -> Tensor:
        del ctx, probe
        return loss.view_as(loss)

    @staticmethod
    @untraced
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        del ctx
        return grads[0], None
