"""The few scalars of a step: flags combined, 1/S, one transfer to the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscale.accelerators import has_float64


def inverse(scale: Tensor) -> Tensor:
    """1/S, float32 0-d, correctly rounded: exact for powers of two down to 2^-126.

    Accelerators may compile float32 division imprecisely, so it is taken in float64 there, where
    they have it.
    """
    if scale.is_cpu or not has_float64(scale.device):
        return scale.reciprocal()
    return scale.double().reciprocal().float()


def combined(flags: Sequence[Tensor], device: torch.device) -> Tensor:
    """The largest of several flags, float32 0-d on `device`: 0 or 1, never their number."""
    # The usual case, without a launch.
    if len(flags) == 1:
        flag = flags[0]
        return flag if flag.device == device else flag.to(device=device, non_blocking=True)
    return torch.stack([flag.to(device=device, non_blocking=True) for flag in flags]).amax()


def read_together(flags: Sequence[Tensor], scale: Tensor) -> tuple[bool, float]:
    """Whether a flag is set, and the scale: one host read if all are on one accelerator."""
    if len(flags) == 1 and scale.is_cpu:
        return flags[0].item() > 0, scale.item()
    # On several devices there is no one transfer that brings all; on the CPU a read costs nothing.
    if scale.is_cpu or any(flag.device != scale.device for flag in flags):
        return any(flag.item() for flag in flags), scale.item()
    *found, value = torch.stack([*flags, scale]).tolist()
    return any(found), value
