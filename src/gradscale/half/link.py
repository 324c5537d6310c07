"""A parameter in half precision and its float32 master, whose `.grad` is one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakMethod, WeakValueDictionary, ref

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gradscale.backward.running_pass import NONE, current_pass
from gradscale.half.narrow import narrow_

if TYPE_CHECKING:
    from gradscale.half.masters import Masters

HALVES = (torch.float16, torch.bfloat16)


class Link:
    """One parameter of a model, and what the optimizer updates in its place.

    A gradient arrives at the parameter. The master is given the same tensor, in half precision at
    first; once divided, both have the float32 one. So it does not matter of which of the two
    somebody clips, reads or clears the gradient.

    Attributes:
        parameter: half precision; what the model computes with.
        master: float32; what the optimizer updates.
        moved: whether the master changed its device, and the optimizer's state has yet to follow.
        narrow: whether backward passes accumulate in half precision.
        format: the dtype that the parameter was given.
        exponent: the half gradient is stored at ``2**exponent`` times the loss-scaled one.
        cleared: whether the gradient is zero since `optimizer.zero_grad(set_to_none=False)`.
    """

    __slots__ = (
        "__weakref__",
        "_agreed",
        "_agreed_master",
        "_arrived",
        "_handle",
        "_incoming",
        "_owner",
        "_seen",
        "cleared",
        "exponent",
        "format",
        "master",
        "moved",
        "narrow",
        "parameter",
    )

    def __init__(
        self, parameter: Tensor, master: Tensor, gradients: torch.dtype, owner: Masters
    ) -> None:
        self._owner = ref(owner)
        self.parameter = parameter
        self.master = master
        self.format = parameter.dtype
        self.exponent = 0
        self.cleared = self.moved = False
        self._incoming = (NONE, 0)
        self._seen: Tensor | None = None
        self._arrived = 0
        self.note_agreed()
        # None: half precision from the backward pass, float32 once divided.
        self.narrow = gradients in HALVES
        cast(Any, parameter).grad_dtype = None if self.narrow else gradients
        cast(Any, master).grad_dtype = None
        self._handle = _hook_accumulation(parameter, self._accumulated)
        LINKS[id(parameter)] = self

    @property
    def owner(self) -> Masters | None:
        """The masters of the optimizer, as long as that is there."""
        return self._owner()

    def expect(self, exponent: int) -> None:
        """The running backward pass brings the gradient at ``2**exponent`` of the loss scale."""
        self._incoming = (current_pass(), exponent)

    @property
    def pending(self) -> int | None:
        """The exponent of what more is added to; None if there is nothing, or only zeros."""
        return None if self.parameter.grad is None or self.cleared else self.exponent

    def _accumulated(self, parameter: Tensor) -> None:
        number, exponent = self._incoming
        incoming = exponent if number == current_pass() else 0
        if parameter.grad is self._seen and not self.cleared and incoming != self.exponent:
            raise RuntimeError(
                f"a gradient at 2^{incoming} of the loss scale was added to one at "
                f"2^{self.exponent}: this backward pass did not follow the plan of the one before. "
                "Begin every backward pass at `scaler.scale(loss)`, or call "
                "`optimizer.zero_grad()` in between."
            )
        self.exponent, self.cleared = incoming, False
        grad = self.gradient()
        self._arrived = 0 if grad is None else grad._version

    @property
    def modified(self) -> bool:
        """Whether the gradient was written in place, or replaced, since it arrived."""
        grad = self.parameter.grad
        return grad is not None and not self.cleared and grad._version != self._arrived

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
        ahead = self.ahead
        self.master.data = self.master.data.to(self.parameter.device)
        if not ahead:
            self._agreed_master = _state(self.master)
        self.moved = True

    def replace(self, grad: Tensor | None) -> None:
        """Gives both another gradient."""
        self.parameter.grad = self.master.grad = self._seen = grad

    def let_go(self) -> None:
        """Leaves the gradient to the parameter alone, so that clearing it there frees it."""
        self.master.grad = self._seen = None

    def note_agreed(self) -> None:
        """The parameter holds the rounded master."""
        self._agreed = _state(self.parameter)
        self._agreed_master = _state(self.master)

    @property
    def written(self) -> bool:
        """Whether the parameter was written, or given other memory, since both agreed."""
        return _changed(self.parameter, self._agreed)

    @property
    def ahead(self) -> bool:
        """Whether the master was written, or given other memory, since both agreed."""
        return _changed(self.master, self._agreed_master)

    @property
    def apart(self) -> bool:
        """Whether the parameter holds something else than the rounded master. Reads the host."""
        rounded = self._rounded().to(self.parameter.device)
        return not torch.equal(rounded, self.parameter.detach())

    def _rounded(self) -> Tensor:
        master, dtype = self.master.detach(), self.parameter.dtype
        owner = self.owner
        if owner is not None and owner.saturate:
            master = master.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
        return master.to(dtype)

    @property
    def value(self) -> Tensor:
        """The float32 weight: the master, or what it will be once it has taken what was written."""
        master = self.master.detach()
        return self._taken(self.parameter.detach()) if self.written else master

    def take_changes(self) -> None:
        """Brings the master in line if the parameter was written.

        A master that rounds to what the parameter holds keeps its bits; others take its value.

        Raises:
            RuntimeError: if the master was written as well, to something else.
        """
        if not self.written:
            return
        if self.ahead and self.apart:
            raise RuntimeError(
                "a parameter of the model and its float32 master were both written since they "
                "last agreed, to different values. `half.sync()` between the two writes makes the "
                "second one hold; now it makes the master's hold."
            )
        self.take(self.parameter.detach())
        self.note_agreed()

    def settle(self) -> None:
        """Whichever was written reaches the other one."""
        self.take_changes()
        if self.ahead:
            self.copy_back()

    def copy_back(self) -> None:
        """Rounds the master into the parameter."""
        copy_back([self], saturate=self.owner is not None and self.owner.saturate)

    def take(self, value: Tensor) -> None:
        """The master takes a value: of a wider dtype as it is, of its own only where it differs."""
        with torch.no_grad():
            self.master.copy_(self._taken(value))

    def _taken(self, value: Tensor) -> Tensor:
        master = self.master.detach()
        value = value.to(master.device)
        if value.dtype != self.parameter.dtype:
            return value
        same = self._rounded().to(master.device) == value
        return torch.where(same, master, value.to(master.dtype))

    def dissolve(self) -> None:
        """The parameter takes the master's storage and dtype, and its own gradients back."""
        self.replace(None)
        self.take_changes()
        self._handle.remove()
        LINKS.pop(id(self.parameter), None)
        convert_(self.parameter, self.master.dtype)
        with torch.no_grad():
            self.parameter.copy_(self.master)
        cast(Any, self.parameter).grad_dtype = self.parameter.dtype


def copy_back(links: Sequence[Link], *, saturate: bool) -> None:
    """Rounds masters into their parameters, together."""
    pairs = [(local(link.parameter), local(link.master)) for link in links]
    narrow_(pairs, saturate=saturate)
    for link in links:
        link.note_agreed()


def _state(tensor: Tensor) -> tuple[int, int]:
    """What changes when a tensor is written in place, or given other memory (`tensor.data = …`)."""
    return tensor._version, tensor.data_ptr() if type(tensor) is Parameter else 0


def _changed(tensor: Tensor, state: tuple[int, int]) -> bool:
    # In every step and forward pass, of every parameter: no calls that are not needed.
    version, pointer = state
    return tensor._version != version or (pointer != 0 and tensor.data_ptr() != pointer)


LINKS: WeakValueDictionary[int, Link] = WeakValueDictionary()
"""By ``id(parameter)``."""


def link_of(parameter: Tensor | None) -> Link | None:
    """The link of a parameter in half precision; None if it has no master."""
    link = LINKS.get(id(parameter))
    return link if link is not None and link.parameter is parameter else None


def local(tensor: Tensor) -> Tensor:
    """The part of a distributed tensor that lives here; any other tensor as it is."""
    return getattr(tensor, "_local_tensor", tensor)


def convert_(parameter: Tensor, dtype: torch.dtype, *, saturate: bool = False) -> None:
    """Changes a parameter's or buffer's dtype in place: whoever holds it sees the new values."""
    with torch.no_grad():
        value = parameter.detach()
        if saturate:
            value = value.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
        value = value.to(dtype)
        if not is_traceable_wrapper_subclass(parameter):
            parameter.data = value
            return
        if isinstance(parameter, Parameter):
            value = Parameter(value, requires_grad=parameter.requires_grad)
        torch.utils.swap_tensors(parameter, value)


def _hook_accumulation(parameter: Tensor, method: Any) -> Any:
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
