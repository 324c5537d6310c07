"""Where attention enters: above autograd, before torch picks a fused implementation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradscale.emulation.attention import attention
from gradscale.emulation.kernel import Kernel
from gradscale.emulation.mode import EmulationMode, current_mode
from gradscale.emulation.precision import emulated

_sdpa = torch.ops.aten.scaled_dot_product_attention.default


def attention_kernels() -> list[Kernel]:
    """One kernel for each device."""
    name = "scaled_dot_product_attention"
    return [Kernel(name, key, _kernel) for key in ("AutogradCPU", "AutogradCUDA")]


def _kernel(keyset: Any, *args: Any, **kwargs: Any) -> Tensor:
    mode = current_mode()
    if mode is None or not _applies(mode, args):
        return _sdpa.decompose(*args, **kwargs)
    return attention(mode, *args, **kwargs)


def _applies(mode: EmulationMode, args: tuple[Any, ...]) -> bool:
    return not mode.silent and emulated(*args[:3]) and not mode.keeps_float32(*args[:3])
