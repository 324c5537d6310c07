"""Where attention enters: above autograd, before torch picks a fused implementation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradscale.emulation.attention import attention
from gradscale.emulation.direction_formats import DirectionFormats, takes_part
from gradscale.emulation.mode import current_rounding
from gradscale.emulation.operators import Kernel
from gradscale.emulation.rounding import Rounding
from gradscale.formats import FloatFormat

_sdpa = torch.ops.aten.scaled_dot_product_attention.default


def attention_kernels() -> list[Kernel]:
    """One kernel for each device."""
    name = "scaled_dot_product_attention"
    return [Kernel(name, key, _kernel) for key in ("AutogradCPU", "AutogradCUDA")]


def _kernel(
    keyset: object, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    rounding = current_rounding()
    if rounding is None or not _applies(rounding, query, key, value):
        return _sdpa.decompose(query, key, value, *args, **kwargs)
    return attention(rounding, query, key, value, *args, **kwargs)


def _applies(rounding: Rounding, *operands: Tensor) -> bool:
    if rounding.silent or not takes_part(*operands) or rounding.keeps_float32(*operands):
        return False
    own = FloatFormat.of(operands[0].dtype)
    # Where the formats are the operands' own, an accelerator's kernel is the real thing.
    everywhere = DirectionFormats(own, own, own, own)
    return operands[0].device.type == "cpu" or rounding.precision != everywhere
