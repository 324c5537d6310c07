"""What a device can hold: whether its tensors can be float64."""

from __future__ import annotations

import torch


def has_float64(device: torch.device) -> bool:
    """Whether tensors on `device` can be float64; Apple's and some of Intel's GPUs have none.

    Example:
        >>> has_float64(torch.device("cpu")), has_float64(torch.device("mps"))
        (True, False)
    """
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type != "mps"


def widest_float(device: torch.device) -> torch.dtype:
    """The widest floating-point dtype of a device: float64, or float32 where there is none.

    Example:
        >>> widest_float(torch.device("mps"))
        torch.float32
    """
    return torch.float64 if has_float64(device) else torch.float32
