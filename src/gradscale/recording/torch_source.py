"""`torch.amp.GradScaler` listened to: what it skipped, and at which scale, without waiting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.amp.grad_scaler import GradScaler as TorchScaler

from gradscale.host_copies import HostCopies
from gradscale.recording.facts import Facts
from gradscale.waiting_line import WaitingLine


@dataclass(frozen=True)
class _Waiting:
    """A step under way: its scale and flags, how many of each optimizer, and who was asked."""

    copies: HostCopies[Tensor]
    flags: tuple[int, ...]
    asked: bool

    @property
    def arrived(self) -> bool:
        return self.copies.arrived

    def wait(self) -> None:
        self.copies.wait()


class TorchSource:
    """Takes the flags from torch's scaler in front of `update()`, which forgets them.

    torch keeps neither a reason nor the parameters to blame: a skip is an ``overflow``, unless the
    loss that was noted is not finite.

    Args:
        scaler: its `update` is replaced on this one object until `leave`.
        departed: called as a step ends.
        arrived: called once its values have arrived, in the order of the steps.
    """

    def __init__(
        self,
        scaler: TorchScaler,
        departed: Callable[[], None],
        arrived: Callable[[Facts], None],
    ) -> None:
        self._scaler, self._departed, self._arrived = scaler, departed, arrived
        self._update = scaler.update
        self._line = WaitingLine[_Waiting](lambda waiting: self._arrived(_facts(waiting)))
        scaler.update = self._note

    def _note(self, new_scale: float | Tensor | None = None) -> None:
        # In front of torch's own, which clears the flags and moves the scale.
        waiting = self._depart(asked=new_scale is None)
        self._update(new_scale)
        if waiting is None:
            return
        self._departed()
        self._line.add(waiting)

    def _depart(self, *, asked: bool) -> _Waiting | None:
        scale, records = self._scaler._scale, self._scaler._per_optimizer_states.values()
        flags = [tuple(record["found_inf_per_device"].values()) for record in records]
        if scale is None or not any(flags):
            return None
        # Cloned, because update() changes the scale, and adds up flags, in place.
        tensors = [scale.detach().clone(), *(flag.clone() for part in flags for flag in part)]
        return _Waiting(HostCopies(tensors), tuple(map(len, flags)), asked)

    def wait(self) -> None:
        """Has everything arrive. Waits for the device."""
        self._line.poll(wait=True)

    def leave(self) -> None:
        """Gives the scaler its own `update` back."""
        # Unless somebody has put another on top, which then goes on calling ours.
        if vars(self._scaler).get("update") == self._note:
            del self._scaler.update


def _facts(waiting: _Waiting) -> Facts:
    scale, *flags = map(float, waiting.copies.tensors)
    skips: list[bool] = []
    # An optimizer has a flag for each device.
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
