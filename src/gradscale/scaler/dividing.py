"""How gradients are divided or checked: one place that flags, stages and tells who has to know."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.gradients.flags import combined, inverse
from gradscale.gradients.unscale import Flags
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.order import BACKWARD_SINCE
from gradscale.scaler.record import DIVIDED, At, Record


def unscale_now(
    step: CurrentStep, optimizer: torch.optim.Optimizer, record: Record, scale: Tensor
) -> None:
    """Makes `.grad` the true gradient, checked: of what backward left, or of the micro-batches."""
    if record.sums is None:
        divide(step, optimizer, record, inverse(scale))
    else:
        deliver(step, optimizer, record)


def divide(
    step: CurrentStep, optimizer: torch.optim.Optimizer, record: Record, factor: Tensor
) -> None:
    """Multiplies the gradients by 1/S, or by 1/S and more."""
    flags = divide_gradients(step, optimizer, factor, torch.zeros_like(factor))
    handled(step, optimizer, record, DIVIDED, flags)


def divide_gradients(
    step: CurrentStep, optimizer: torch.optim.Optimizer, factor: Tensor, found_inf: Tensor
) -> Flags:
    """Multiplies the gradients, and nothing else; torch's `_unscale_grads_`.

    Args:
        step: the one under way.
        optimizer: whose gradients.
        factor: 1/S, float32 0-d.
        found_inf: float32 0-d, set to 1 if one of its device is not finite.
    """
    step.note(optimizer)
    # `torch.no_grad()`, without the five calls that it makes each step.
    before = torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)  # pyright: ignore[reportPrivateUsage]
    try:
        return step.gradients.divide_(optimizer, factor, found_inf)
    finally:
        torch._C._set_grad_enabled(before)  # pyright: ignore[reportPrivateUsage]


def deliver(step: CurrentStep, optimizer: torch.optim.Optimizer, record: Record) -> None:
    """Makes the mean of the micro-batches, if there are any, the gradient, unscaled and checked."""
    sums = record.sums
    if sums is None:
        return
    if sums.filled:
        raise RuntimeError(BACKWARD_SINCE)
    record.sums = None
    step.note_added(optimizer, record.added)
    scale = step.held.ready("step")
    with torch.no_grad():
        flag = sums.deliver_().to(scale.device, non_blocking=True)
        flags = step.gradients.agreed(optimizer, {scale.device: flag}, scale)
        step.gradients.measure(optimizer, scale.device)
    if sums.drop_overflow:
        record.dropped = sums.dropped
    handled(step, optimizer, record, DIVIDED, flags)


def keep(step: CurrentStep, optimizer: torch.optim.Optimizer, record: Record) -> Flags:
    """Checks gradients that stay at S, because the optimizer's own numbers will absorb it."""
    scale = step.held.ready("step")
    record.kept = True
    factor = step.undo.check_factor(optimizer, scale)
    flags = record.flags = _flags_at_scale(step, optimizer, scale, factor)
    return flags


def check_fused(step: CurrentStep, optimizer: torch.optim.Optimizer, record: Record) -> Flags:
    """Checks what a fused optimizer will divide; torch's `_check_inf_per_device`."""
    scale = step.held.ready("_check_inf_per_device")
    # From a scale of 1 on no quotient overflows, and the cheaper check is enough.
    factor = None if step.held.at_least(scale) >= 1 else inverse(scale)
    flags = record.flags = _flags_at_scale(step, optimizer, scale, factor)
    return flags


def _flags_at_scale(
    step: CurrentStep, optimizer: torch.optim.Optimizer, like: Tensor, factor: Tensor | None
) -> Flags:
    """The flags of gradients that are, or times `factor` would be, not finite; divides nothing."""
    step.note(optimizer)
    with torch.no_grad():
        return step.gradients.check(optimizer, like, factor)


def handled(
    step: CurrentStep, optimizer: torch.optim.Optimizer, record: Record, at: At, flags: Flags
) -> None:
    """Notes what has become of an optimizer's gradients, and tells who scaled them."""
    record.move(at, flags)
    if at is DIVIDED:
        step.gradients.mark_divided(optimizer)
    layerwise = step.held.layerwise
    if layerwise is not None:
        layerwise.after_unscale(optimizer)


def quotient_overflowed(
    step: CurrentStep, optimizer: torch.optim.Optimizer, scale: Tensor, flags: list[Tensor]
) -> bool:
    """Whether divided gradients are not finite though they were before; reads the host.

    torch's scaler never looks, and steps on them. Only below a scale of 1 can it be.
    """
    with torch.no_grad():
        found = step.gradients.check(optimizer, scale)
    overflowed = any(flag.item() for flag in found.values())
    if overflowed:
        flags[0].fill_(1.0)
    return overflowed


def with_quotients(
    step: CurrentStep, optimizer: torch.optim.Optimizer, scale: Tensor, record: Record
) -> Flags:
    """The flags, also of divided gradients that are not finite, though they were before.

    Those are no fault of the scale, so the record keeps them apart, as `beyond`.
    """
    flags = record.flags
    with torch.no_grad():
        again = step.gradients.check(optimizer, scale)
    # The flags saw the gradients before they were divided, this look sees them after it.
    both = {d: torch.maximum(flag, again.get(d, flag)) for d, flag in flags.items()}
    after, before = (combined(list(f.values()), scale.device) for f in (both, flags))
    # Each is 0 or 1, and the later one never below the earlier.
    record.beyond = after - before
    return both
