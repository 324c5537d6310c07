"""Small tensors on their way to the host, which nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_WITH_EVENTS = ("cuda", "xpu")


class Arrival:
    """Copies tensors to pinned memory, and says when they are there.

    Tensors on the CPU are there at once and are not copied: nobody may change them afterwards.

    Args:
        tensors: on any devices, of any shapes; None stays None.

    Example:
        >>> arrival = Arrival([torch.tensor(2.0), None])
        >>> arrival.ready, arrival.values
        (True, [tensor(2.), None])
    """

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        self.values: list[Tensor | None] = [
            tensor if tensor is None else _begin_copy(tensor.detach()) for tensor in tensors
        ]
        devices = {t.device for t in tensors if t is not None and t.device.type != "cpu"}
        self._events = [_record(device) for device in devices]

    @property
    def ready(self) -> bool:
        """Whether `values` may be read; never waits.

        Example:
            >>> Arrival([]).ready
            True
        """
        return all(event is not None and event.query() for event in self._events)

    def wait(self) -> None:
        """Waits until `values` may be read."""
        for event in self._events:
            if event is not None:
                event.synchronize()
            elif torch.accelerator.is_available():
                torch.accelerator.synchronize()
        self._events = []


def _begin_copy(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor
    pin = _has_events(tensor.device)
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pin)
    return pinned.copy_(tensor, non_blocking=True)


def _record(device: torch.device) -> torch.Event | None:
    """An event behind the copies; None where there are none, and `wait` waits for everything."""
    if not _has_events(device):
        return None
    event = torch.Event(device)
    event.record(torch.accelerator.current_stream(device))
    return event


def _has_events(device: torch.device) -> bool:
    return device.type in _WITH_EVENTS and torch.accelerator.is_available()
