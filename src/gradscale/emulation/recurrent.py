"""Recurrent layers taken apart into products, instead of fused kernels that hide them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gradscale.emulation.mode import current_rounding
from gradscale.emulation.operators import Kernel, KernelFunction
from gradscale.emulation.over_time import is_split, over_time

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

    def kernel(keyset: object, input: Tensor, *args: Any, **kwargs: Any) -> object:
        rounding = current_rounding()
        if rounding is None or rounding.silent:
            return op.decompose(input, *args, **kwargs)
        on_cpu = input.device.type == "cpu"
        apart = is_split() and overload == "input"
        fused_hides = apart or rounding.precision.directions_differ
        with unfused(oneDNN=on_cpu, cuDNN=not on_cpu and fused_hides):
            if apart:
                return _step_by_step(op, input, *args, **kwargs)
            return op.decompose(input, *args, **kwargs)

    return kernel


def _step_by_step(
    op: torch._ops.OpOverload,
    input: Tensor,
    hidden: Tensor | Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """`op(…)` with a projection of the input for each time; the arguments are the operator's."""
    single = isinstance(hidden, Tensor)

    def one_step(
        now: Tensor, states: Sequence[Tensor], own: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        at = states[0] if single else list(states)
        output, *ends = op.decompose(now, at, list(own), has_biases, 1, 0.0, train, False, False)
        return output, ends

    output, ends = over_time(
        one_step,
        input.transpose(0, 1) if batch_first else input,
        [hidden] if isinstance(hidden, Tensor) else hidden,
        params,
        layers=num_layers,
        directions=1 + bidirectional,
        dropout=dropout if train else 0.0,
    )
    return (output.transpose(0, 1) if batch_first else output, *ends)


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
