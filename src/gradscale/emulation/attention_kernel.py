"""Where attention enters: above autograd, before torch picks a fused implementation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradscale.emulation.attention import attention
from gradscale.emulation.direction_formats import DirectionFormats, takes_part
from gradscale.emulation.kernel import Kernel
from gradscale.emulation.mode import EmulationMode, current_mode
from gradscale.formats import FloatFormat

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
    tensors = args[:3]
    if mode.silent or not takes_part(*tensors) or mode.keeps_float32(*tensors):
        return False
    own = FloatFormat.of(tensors[0].dtype)
    real = tensors[0].device.type != "cpu" and mode.precision == DirectionFormats(
        own, own, own, own
    )
    return not real
