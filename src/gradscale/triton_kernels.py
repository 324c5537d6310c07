"""Whether the Triton kernels can run on a tensor's device, and launching them there.

Each has a form in plain torch, slower and everywhere at home, for the devices where they cannot.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_LEAST_CAPABILITY = (7, 0)


def can_read(tensor: Tensor) -> bool:
    """Whether a kernel can be handed this tensor's memory.

    Example:
        >>> can_read(torch.ones(2))
        False
    """
    # A fake or distributed tensor has no memory of its own.
    return type(tensor) is Tensor and tensor.is_cuda and _runs_on(tensor.device.index)


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Makes `device` the current one: Triton launches there, whatever a kernel's pointers say."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def _runs_on(index: int) -> bool:
    if find_spec("triton") is None or torch.cuda.get_device_capability(index) < _LEAST_CAPABILITY:
        return False
    from triton.runtime import driver

    try:
        # The first kernel of a process makes Triton build its launcher, with a C compiler.
        driver.active.get_current_target()
    except Exception as error:
        warnings.warn(
            f"gradscale: Triton is installed but cannot start ({error}). Plain torch does the same "
            "in more passes. Install a C compiler to have the faster kernels.",
            stacklevel=2,
        )
        return False
    return True
