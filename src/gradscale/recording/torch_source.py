"""`torch.amp.GradScaler` listened to: what it skipped, and at which scale, without waiting."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from torch import Tensor
from torch.amp.grad_scaler import GradScaler as TorchScaler

from gradscale.metrics.arrival import Arrival
from gradscale.outcomes.ledger import LONGEST_QUEUE
from gradscale.recording.facts import Facts
from gradscale.recording.sources import Listener


class _Waiting(NamedTuple):
    """A step under way: its scale and flags, how many of each optimizer, and who was asked."""

    arrival: Arrival
    flags: tuple[int, ...]
    asked: bool


class TorchSource:
    """Takes the flags from torch's scaler in front of `update()`, which forgets them.

    torch keeps neither a reason nor the parameters to blame: a skip is an ``overflow``, unless the
    loss that was noted is not finite.

    Args:
        scaler: its `update` is replaced on this one object until `leave`.
        listener: who is told.
    """

    def __init__(self, scaler: TorchScaler, listener: Listener) -> None:
        self._scaler, self._listener = scaler, listener
        self._update = scaler.update
        self._waiting: deque[_Waiting] = deque()
        self._instance: Any = scaler
        self._instance.update = self._note

    def _note(self, new_scale: float | Tensor | None = None) -> None:
        waiting = self._depart(asked=new_scale is None)
        self._update(new_scale)
        if waiting is None:
            return
        self._waiting.append(waiting)
        self._listener.departed()
        self._poll(wait=len(self._waiting) > LONGEST_QUEUE)

    def _depart(self, *, asked: bool) -> _Waiting | None:
        scale, records = self._scaler._scale, self._scaler._per_optimizer_states.values()
        flags = [tuple(record["found_inf_per_device"].values()) for record in records]
        if scale is None or not any(flags):
            return None
        # Cloned, because update() changes the scale, and adds up flags, in place.
        tensors = [scale.detach().clone(), *(flag.clone() for part in flags for flag in part)]
        return _Waiting(Arrival(tensors), tuple(map(len, flags)), asked)

    def _poll(self, *, wait: bool) -> None:
        while self._waiting:
            first = self._waiting[0]
            if wait:
                first.arrival.wait()
            if not (wait or first.arrival.ready):
                return
            self._waiting.popleft()
            self._listener.arrived(_facts(first))

    def wait(self) -> None:
        """Has everything arrive. Waits for the device."""
        self._poll(wait=True)

    def leave(self) -> None:
        """Gives the scaler its own `update` back."""
        if self._instance.__dict__.get("update") == self._note:
            del self._instance.update


def _facts(waiting: _Waiting) -> Facts:
    scale, *flags = (0.0 if value is None else float(value) for value in waiting.arrival.values)
    skips: list[bool] = []
    for count in waiting.flags:
        skips.append(any(flags[:count]))
        flags = flags[count:]
    skipped = any(skips)
    return Facts(
        scale=scale,
        skipped=skipped,
        reason="overflow" if skipped else None,
        overflow=skipped,
        asked=waiting.asked,
        guessed=True,
        optimizers=tuple(skips) if len(skips) > 1 else (),
    )
