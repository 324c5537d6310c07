"""Small tensors on their way to the host, which nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor

from gradscale.capturing import capturing

Value = TypeVar("Value", bound=Tensor | None)


class HostCopies(Generic[Value]):
    """Copies of tensors, and whether they are there; for every kind of accelerator.

        copies = HostCopies([flag, scale])     one launch a tensor, one event a device
        if copies.arrived:                     asks the events, never waits
            flag, scale = copies.tensors       on the CPU: reading them is free
        copies.wait()                          for who cannot go on without

    Copies go to pinned memory, on the current stream of each tensor's own device, and an event
    behind them says when they are there; where an accelerator has no events, they have arrived once
    somebody has waited for these or for later ones. Tensors on the CPU are not copied: nobody may
    change them afterwards. Fake and meta tensors of other devices have no value and never arrive.

    While a graph is being captured nothing has arrived, because asking an event would break the
    capture. Do not begin copies then either: ask `gradscale.capturing` first.

    To do something about each of several steps, in order, put them in a `WaitingLine`.

    Args:
        tensors: on any devices, of any shapes; None stays None.

    Attributes:
        tensors: on the host, in the order given; to be read once `arrived`.

    Example:
        >>> copies = HostCopies([torch.tensor(2.0), None])
        >>> copies.arrived, copies.tensors
        (True, [tensor(2.), None])
    """

    def __init__(self, tensors: Sequence[Value]) -> None:
        begun = [None if tensor is None else _begin_copy(tensor.detach()) for tensor in tensors]
        self.tensors = cast("list[Value]", begun)
        elsewhere = [t for t in tensors if t is not None and t.device.type != "cpu"]
        self._absent = any(map(_has_no_value, elsewhere))
        devices = {tensor.device for tensor in elsewhere if _is_accelerator(tensor.device)}
        self._behind = [] if self._absent else [_behind(device) for device in devices]

    @property
    def arrived(self) -> bool:
        """Whether `tensors` may be read; never waits.

        Example:
            >>> HostCopies([]).arrived
            True
        """
        if self._absent:
            return False
        return not self._behind or (not capturing() and all(it.query() for it in self._behind))

    def wait(self) -> None:
        """Waits until `tensors` may be read."""
        for event in self._behind:
            event.synchronize()
        self._behind, self._absent = [], False


def _begin_copy(tensor: Tensor) -> Tensor:
    device = tensor.device
    if device.type in ("cpu", "meta"):
        return tensor
    # What is neither the CPU nor the accelerator of this process is copied as a user would: it may
    # wait, but nobody knows how to ask such a device whether it has finished.
    nobody_waits = _is_accelerator(device) or _has_no_value(tensor)
    pin = _is_accelerator(device) and not _has_no_value(tensor) and _has_pinned_memory()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pin)
    return host.copy_(tensor, non_blocking=nobody_waits)


def _has_no_value(tensor: Tensor) -> bool:
    """Whether it is a fake or a meta tensor; torch keeps the class of the former to itself."""
    return tensor.is_meta or hasattr(tensor, "fake_mode")


def _is_accelerator(device: torch.device) -> bool:
    accelerator = torch.accelerator.current_accelerator()
    return accelerator is not None and accelerator.type == device.type


def _behind(device: torch.device) -> torch.Event | _WholeDevice:
    """What says when this device has done everything that it has been told so far."""
    if not _has_events(device.type):
        return _WholeDevice(device)
    event = torch.Event(device)
    event.record(torch.accelerator.current_stream(device))
    return event


class _WholeDevice:
    """In an event's place where there are none: done once somebody waited for all of the device."""

    _begun = 0
    _done: ClassVar[dict[torch.device, int]] = {}

    def __init__(self, device: torch.device) -> None:
        _WholeDevice._begun += 1
        self._device, self._number = device, _WholeDevice._begun

    def query(self) -> bool:
        return self._done.get(self._device, 0) >= self._number

    def synchronize(self) -> None:
        if not self.query():
            begun = _WholeDevice._begun
            torch.accelerator.synchronize(self._device)
            self._done[self._device] = begun


@cache
def _has_events(kind: str) -> bool:
    try:
        torch.Event(kind).record(torch.accelerator.current_stream())
    except RuntimeError:  # NotImplementedError is one too
        return False
    return True


@cache
def _has_pinned_memory() -> bool:
    """Copies to other memory are as right, but CUDA makes the host wait for them."""
    try:
        return torch.empty(0, device="cpu", pin_memory=True).is_pinned()
    except RuntimeError:
        return False
