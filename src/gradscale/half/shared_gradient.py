"""The gradient of a parameter in half precision and of its float32 master: one tensor."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from weakref import WeakMethod

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradscale.backward.running_pass import NONE, current_pass
from gradscale.half.rounding import HALVES


class Held(Enum):
    """What gradient a parameter has.

        NOTHING --backward--> ARRIVED --somebody writes--> MODIFIED --zero_grad--> NOTHING, ZEROS

    Dividing it makes it float32, and counts as written.
    """

    NOTHING = 0
    ZEROS = 1
    ARRIVED = 2
    MODIFIED = 3


class SharedGradient:
    """Arrives at the parameter, in half precision; the master is given the same tensor.

    Once divided, both have the float32 one. So it does not matter of which of the two somebody
    clips, reads or clears the gradient.

    Attributes:
        parameter: half precision; what backward passes give a gradient to.
        master: float32; what the optimizer steps with it.
        accumulates: the dtype in which backward passes accumulate.
        exponent: the half gradient is stored at ``2**exponent`` times the loss-scaled one.
        moved: whether the master changed its device, and the optimizer's state has yet to follow.
    """

    __slots__ = (
        "__weakref__",
        "_arrived",
        "_handle",
        "_incoming",
        "_seen",
        "_zeroed",
        "accumulates",
        "exponent",
        "master",
        "moved",
        "parameter",
    )

    def __init__(self, parameter: Tensor, master: Tensor, accumulates: torch.dtype) -> None:
        self.parameter = parameter
        self.master = master
        self.accumulates = accumulates
        self.exponent = 0
        self.moved = self._zeroed = False
        self._incoming = (NONE, 0)
        self._seen: Tensor | None = None
        self._arrived = 0
        # None: half precision from the backward pass, float32 once divided.
        parameter.grad_dtype = None if accumulates in HALVES else accumulates
        master.grad_dtype = None
        self._handle = _hook_accumulation(parameter, self._accumulated)

    def expect(self, exponent: int) -> None:
        """The running backward pass brings the gradient at ``2**exponent`` of the loss scale."""
        self._incoming = (current_pass(), exponent)

    @property
    def held(self) -> Held:
        """What gradient the parameter has."""
        grad = self.parameter.grad
        if grad is None:
            return Held.NOTHING
        if self._zeroed:
            return Held.ZEROS
        return Held.ARRIVED if grad._version == self._arrived else Held.MODIFIED

    def _accumulated(self, parameter: Tensor) -> None:
        number, exponent = self._incoming
        incoming = exponent if number == current_pass() else 0
        # The engine adds in place: the same tensor as before is one that was added to.
        if parameter.grad is self._seen and not self._zeroed and incoming != self.exponent:
            raise RuntimeError(
                f"a gradient at 2^{incoming} of the loss scale was added to one at "
                f"2^{self.exponent}: this backward pass did not follow the plan of the one before. "
                "Begin every backward pass at `scaler.scale(loss)`, or call "
                "`optimizer.zero_grad()` in between."
            )
        self.exponent, self._zeroed = incoming, False
        grad = self.gradient()
        self._arrived = 0 if grad is None else grad._version

    def gradient(self) -> Tensor | None:
        """The gradient that both have from now on.

        The parameter's, unless somebody gave the master another one since they last agreed.
        """
        grad, other = self.parameter.grad, self.master.grad
        if other is grad:
            return grad
        assigned = other is not None and other is not self._seen
        if assigned and (grad is None or grad is self._seen):
            self.parameter.grad = grad = other
        else:
            if self.master.device != self.parameter.device:
                self._follow()
            self.master.grad = grad
        self._seen = grad
        return grad

    def _follow(self) -> None:
        """After `model.to(device)`: the master moves too, and the optimizer is told."""
        self.master.grad = None
        self.master.data = self.master.data.to(self.parameter.device)
        self.moved = True

    def replace(self, grad: Tensor | None) -> None:
        """Gives both another gradient."""
        self.parameter.grad = self.master.grad = self._seen = grad

    def clear(self, *, set_to_none: bool) -> None:
        """After `optimizer.zero_grad`, which has cleared what the master has."""
        self._zeroed = True
        if set_to_none:
            self.replace(None)

    def let_go(self) -> None:
        """Leaves the gradient to the parameter alone, so that clearing it there frees it."""
        self.master.grad = self._seen = None

    def release(self) -> None:
        """Gives the parameter gradients of its own back."""
        self._handle.remove()
        self.parameter.grad_dtype = self.parameter.dtype


def _hook_accumulation(parameter: Tensor, method: Callable[[Tensor], None]) -> RemovableHandle:
    # Weakly, because what the hook of a tensor holds is out of the garbage collector's sight.
    weak = WeakMethod(method)

    def hook(parameter: Tensor) -> None:
        alive = weak()
        if alive is not None:
            alive(parameter)

    # Torch takes no hook for a frozen parameter, but runs it once that is trained again.
    trained = parameter.requires_grad
    parameter.requires_grad_(True)
    handle = parameter.register_post_accumulate_grad_hook(hook)
    parameter.requires_grad_(trained)
    return handle
