"""Memory for the float32 copies of half-precision operands, used again for every product."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """One growing buffer for each operand of a product, on the CPU.

    A copy lives for one product only. Memory fresh from the system costs more than the copying: at
    4 MB it is the page faults that take most of the time.
    """

    def __init__(self) -> None:
        self._buffers: dict[int, Tensor] = {}

    def float32(self, tensor: Tensor, slot: int) -> Tensor:
        """`tensor` in float32 and in its own memory layout, valid until `slot` is used again."""
        if tensor.dtype == torch.float32 or tensor.device.type != "cpu":
            return tensor.to(torch.float32)
        buffer = self._buffers.get(slot)
        if buffer is None or buffer.numel() < tensor.numel():
            buffer = self._buffers[slot] = torch.empty(tensor.numel())
        # What `.to` would choose: the same strides if they are dense.
        strides = torch.empty_like(tensor, device="meta").stride()
        return buffer.as_strided(tensor.shape, strides).copy_(tensor)
