"""Who chooses the loss scale, by the name that the user types."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.amp.grad_scaler import GradScaler as TorchScaler

SCALINGS: dict[str, str] = {
    "none": "no loss scaling",
    "static": "one constant, 2^16",
    "dynamic": "backs off on overflow, grows every 2000 good steps",
    "torch": "torch.amp.GradScaler",
}


class Outcome(NamedTuple):
    """What happened to one optimizer step."""

    scale: float
    skipped: bool
    reason: str | None


def make_scaler(name: str, device: str, init_scale: float | None) -> TorchScaler | None:
    """The scaler of that name, or None for ``none``."""
    if name == "none":
        return None
    start = 2.0**16 if init_scale is None else init_scale
    return TorchScaler(torch.device(device).type, init_scale=start)


def outcome(scaler: TorchScaler, optimizer: torch.optim.Optimizer, scale: float) -> Outcome:
    """What `scaler` did to the step just taken at `scale`; call it before `update()`."""
    found = scaler._found_inf_per_device(optimizer).values()
    skipped = any(bool(flag.item()) for flag in found)
    return Outcome(scale, skipped, "overflow" if skipped else None)
