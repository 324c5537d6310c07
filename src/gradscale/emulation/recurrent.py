"""Recurrent layers taken apart into products, instead of fused kernels that hide them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from gradscale.emulation.mode import current_rounding
from gradscale.emulation.operators import Kernel, KernelFunction

LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
OVERLOADS = ("input", "data")  # for batches, and for packed sequences


def recurrent_kernels() -> list[Kernel]:
    """One kernel for every recurrent layer and device.

    oneDNN's fused LSTM has no float16 on most CPUs and hides its products; cuDNN's hides them too,
    but is the real thing where the formats are its own.
    """
    return [
        Kernel(f"{layer}.{overload}", key, _composite(layer, overload))
        for layer in LAYERS
        for overload in OVERLOADS
        for key in ("AutogradCPU", "AutogradCUDA")
    ]


def _composite(layer: str, overload: str) -> KernelFunction:
    op = getattr(getattr(torch.ops.aten, layer), overload)

    def kernel(keyset: object, input: Tensor, *args: object, **kwargs: object) -> object:
        rounding = current_rounding()
        if rounding is None or rounding.silent:
            return op.decompose(input, *args, **kwargs)
        on_cpu = input.device.type == "cpu"
        with unfused(oneDNN=on_cpu, cuDNN=not on_cpu and rounding.precision.directions_differ):
            return op.decompose(input, *args, **kwargs)

    return kernel


@contextmanager
def unfused(*, oneDNN: bool, cuDNN: bool) -> Generator[None]:
    """Switch the named libraries off for one call. The switches are the whole process's."""
    before = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    torch._C._set_mkldnn_enabled(before[0] and not oneDNN)
    torch._C._set_cudnn_enabled(before[1] and not cuDNN)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before[0])
        torch._C._set_cudnn_enabled(before[1])
