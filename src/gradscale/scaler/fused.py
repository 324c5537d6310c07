"""What fused optimizers are handed: flag and scale as tensors, on which they decide alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, cast

import torch
from torch import Tensor


class Fused(Protocol):
    """What torch's scaler sets on an optimizer that divides and skips by itself."""

    grad_scale: Tensor | None
    found_inf: Tensor


def step_deciding(
    optimizer: torch.optim.Optimizer,
    scale: Tensor | None,
    found_inf: Tensor,
    call: Callable[[], float | None],
) -> float | None:
    """A step for whose length `optimizer.grad_scale` and `optimizer.found_inf` are set.

    Args:
        optimizer: one with ``_step_supports_amp_scaling``. A `grad_scale` of its own is multiplied
            by `scale`.
        scale: what it divides its gradients by; None if they are divided already.
        found_inf: float32 0-d, exactly 0 or 1: fused Adam subtracts it from its step count.
        call: its `step`, with all that it is given.
    """
    fused = cast(Fused, optimizer)
    own = getattr(optimizer, "grad_scale", None)
    fused.grad_scale = own if scale is None else scale if own is None else scale * own
    fused.found_inf = found_inf
    # Asked before the step, which allocates what is missing.
    unwritten = list(_without_momentum(optimizer))
    try:
        result = call()
    finally:
        del fused.grad_scale, fused.found_inf
    for parameter in unwritten:
        # torch allocates the buffer of a skipped first step and never writes it.
        state = optimizer.state[parameter]
        buffer = state.get("momentum_buffer")
        if isinstance(buffer, Tensor) and found_inf.device.type == "cpu":
            state["momentum_buffer"] = None if found_inf.item() else buffer
        elif isinstance(buffer, Tensor):
            buffer.copy_(torch.where(found_inf.to(buffer.device) > 0, 0.0, buffer))
    return result


def _without_momentum(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if group["momentum"] == 0:
            continue
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if optimizer.state.get(parameter, {}).get("momentum_buffer") is not None:
                # torch allocates all buffers of a group at once.
                break
            yield parameter
