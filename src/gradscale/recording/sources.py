"""Who says what became of a step: our scaler, torch's, or the training loop itself."""

from __future__ import annotations

from typing import Protocol

from torch.amp.grad_scaler import GradScaler as TorchScaler

from gradscale.recording.facts import Listener
from gradscale.recording.our_source import OurSource
from gradscale.recording.torch_source import TorchSource
from gradscale.scaler import GradScaler


class Source(Protocol):
    """A scaler that is listened to."""

    def wait(self) -> None:
        """Has everything arrive. Waits for the device."""

    def leave(self) -> None:
        """Listens no more."""


def scaler_to_follow(scaler: object) -> TorchScaler | None:
    """The scaler; None without one, or for one that is switched off.

    Raises:
        TypeError: if it is no scaler that is known.
    """
    if scaler is None:
        return None
    if not isinstance(scaler, TorchScaler):
        raise TypeError(
            f"`Recorder(scaler={type(scaler).__name__}(…))` must be a `gradscale.GradScaler` or a "
            "`torch.amp.GradScaler`. For another one leave it out, and call `recorder.step()` "
            "after every step."
        )
    # Switched off it ends no steps: the loop does, by `recorder.step()`.
    return scaler if scaler.is_enabled() else None


def source_of(scaler: TorchScaler | None, listener: Listener) -> Source | None:
    """How to listen to a scaler."""
    if scaler is None:
        return None
    if isinstance(scaler, GradScaler):
        return OurSource(scaler, listener)
    return TorchSource(scaler, listener)
