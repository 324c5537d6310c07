"""A parameter in half precision and its float32 master: two tensors that are one weight."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor
from torch.nn import Parameter

from gradscale.gradients.master_weights import MasterWeights
from gradscale.half.rounding import convert_, local, narrow_, rounded_to
from gradscale.half.shared_gradient import SharedGradient


class Written(Enum):
    """Which of parameter and master was written, or given other memory, since they agreed."""

    NEITHER = 0
    PARAMETER = 1
    MASTER = 2
    BOTH = 3


PARAMETER = (Written.PARAMETER, Written.BOTH)
MASTER = (Written.MASTER, Written.BOTH)


class Link(SharedGradient):
    """One parameter of a model, and what the optimizer updates in its place.

    Attributes:
        parameter: half precision; what the model computes with.
        master: float32; what the optimizer updates.
        saturate: whether a master beyond the half-precision range is clamped to it.
        format: the dtype that the parameter was given.
    """

    __slots__ = ("_agreed", "_agreed_master", "_owner", "format", "saturate")

    def __init__(
        self,
        parameter: Tensor,
        master: Tensor,
        accumulates: torch.dtype,
        saturate: bool,
        owner: MasterWeights,
    ) -> None:
        super().__init__(parameter, master, accumulates)
        self._owner = ref(owner)
        self.saturate = saturate
        self.format = parameter.dtype
        self.note_agreed()
        LINKS[id(parameter)] = self

    @property
    def owner(self) -> MasterWeights | None:
        """The masters of the optimizer, as long as that is there."""
        return self._owner()

    def _follow(self) -> None:
        # The move below gives the master other memory, which is no write of anybody's.
        ahead = self.written in MASTER
        super()._follow()
        if not ahead:
            self._agreed_master = _state(self.master)

    def note_agreed(self) -> None:
        """The parameter holds the rounded master."""
        self._agreed = _state(self.parameter)
        self._agreed_master = _state(self.master)

    @property
    def written(self) -> Written:
        """Which of the two torch has seen written, or given other memory, since both agreed."""
        own = _changed(self.parameter, self._agreed)
        if _changed(self.master, self._agreed_master):
            return Written.BOTH if own else Written.MASTER
        return Written.PARAMETER if own else Written.NEITHER

    @property
    def apart(self) -> bool:
        """Whether the parameter holds something else than the rounded master. Reads the host."""
        return not torch.equal(self._rounded(self.parameter.device), self.parameter.detach())

    def _rounded(self, device: torch.device) -> Tensor:
        master = self.master.detach()
        return rounded_to(master, self.parameter.dtype, saturate=self.saturate).to(device)

    @property
    def value(self) -> Tensor:
        """The float32 weight: the master, or what it will be once it has taken what was written."""
        taken = self.written in PARAMETER
        return self._taken(self.parameter.detach()) if taken else self.master.detach()

    def take_changes(self) -> None:
        """Brings the master in line if the parameter was written.

        A master that rounds to what the parameter holds keeps its bits; others take its value.

        Raises:
            RuntimeError: if the master was written as well, to something else.
        """
        written = self.written
        if written not in PARAMETER:
            return
        if written is Written.BOTH and self.apart:
            raise RuntimeError(
                "a parameter of the model and its float32 master were both written since they "
                "last agreed, to different values. `half.sync()` between the two writes makes the "
                "second one hold; now it makes the master's hold."
            )
        self.take(self.parameter.detach())
        self.note_agreed()

    def take(self, value: Tensor) -> None:
        """The master takes a value: of a wider dtype as it is, of its own only where it differs."""
        with torch.no_grad():
            self.master.copy_(self._taken(value))

    def _taken(self, value: Tensor) -> Tensor:
        master = self.master.detach()
        value = value.to(master.device)
        if value.dtype != self.parameter.dtype:
            return value
        # A NaN equals nothing: written to the parameter, it reaches the master.
        return torch.where(self._rounded(master.device) == value, master, value.to(master.dtype))

    def dissolve(self) -> None:
        """The parameter takes the master's storage and dtype, and its own gradients back."""
        self.take_changes()
        LINKS.pop(id(self.parameter), None)
        self.replace(None)
        convert_(self.parameter, self.master.dtype)
        with torch.no_grad():
            self.parameter.copy_(self.master)
        self.release()


# In every step and every forward pass, of every parameter: no calls that are not needed.
def written_of(links: Sequence[Link]) -> list[Link]:
    """Those whose parameter was written since it agreed with its master."""
    return [link for link in links if _changed(link.parameter, link._agreed)]


def settle_ahead(links: Sequence[Link]) -> None:
    """Masters that were written reach the parameters."""
    ahead = [link for link in links if _changed(link.master, link._agreed_master)]
    for link in ahead:
        link.take_changes()
    if ahead:
        copy_back(ahead)


def copy_back(links: Sequence[Link]) -> None:
    """Rounds masters of one `half_precision`, which saturate or do not, into their parameters."""
    pairs = [(local(link.parameter), local(link.master)) for link in links]
    narrow_(pairs, saturate=any(link.saturate for link in links[:1]))
    for link in links:
        link.note_agreed()


def _state(tensor: Tensor) -> tuple[int, int]:
    """What changes when a tensor is written in place, or given other memory (`tensor.data = …`)."""
    # What wraps other tensors has no memory of its own: 0 says not to look at it.
    return tensor._version, tensor.data_ptr() if type(tensor) is Parameter else 0


def _changed(tensor: Tensor, state: tuple[int, int]) -> bool:
    version, pointer = state
    return tensor._version != version or (pointer != 0 and tensor.data_ptr() != pointer)


LINKS: WeakValueDictionary[int, Link] = WeakValueDictionary()
"""By ``id(parameter)``."""


def link_of(parameter: Tensor | None) -> Link | None:
    """The link of a parameter in half precision; None if it has no master."""
    link = LINKS.get(id(parameter))
    return link if link is not None and link.parameter is parameter else None
