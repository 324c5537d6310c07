"""How gradients are clipped and unscaled together, in as few passes as possible."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gradscale.accelerators import widest_float
from gradscale.gradients.clip import clamp_groups_, known_coefficient, sum_duplicates_, true_norm
from gradscale.gradients.flags import combined, inverse
from gradscale.gradients.master_weights import masters_of
from gradscale.gradients.norm import Norm, gradient_norm
from gradscale.gradients.unscale import collect_from, multiply_and_check_, not_finite
from gradscale.optimizer_parameters import parameters_of
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.dividing import check_fused, deliver, divide, handled, keep, unscale_now
from gradscale.scaler.order import refuse
from gradscale.scaler.record import At, Record
from gradscale.scaler.scaling import scale_without_loss
from gradscale.undo.readers import steps_fused

Optimizers = Sequence[torch.optim.Optimizer]


def clip_norm(
    step: CurrentStep,
    optimizers: Optimizers,
    parameters: Sequence[Tensor],
    max_norm: float,
    norm_type: float,
    error_if_nonfinite: bool,
    foreach: bool | None,
) -> Tensor:
    """Clips by the common norm of several optimizers; see `GradScaler.clip_grad_norm_`."""
    scale = scale_without_loss(step, optimizers[0], "clip_grad_norm_")
    # The other orders see no infinity, or (0) do not grow with the scale.
    together = norm_type > 0
    scaled = _scaled_still(step, scale, "clip_grad_norm_", optimizers, len(parameters), together)
    norm = gradient_norm(parameters, float(norm_type), foreach)
    if norm is None:
        norm = Norm(torch.zeros((), dtype=torch.float32, device=scale.device), torch.float32)
    inv_scale = inverse(scale) if scaled else torch.ones_like(scale)
    true = true_norm(norm, inv_scale)
    if error_if_nonfinite and not math.isfinite(true.item()):
        raise RuntimeError(
            f"`clip_grad_norm_(error_if_nonfinite=True)`: the norm of order {norm_type} is "
            f"{true.item()}. Leave it False: `step` skips this step and `update` lowers "
            "the scale."
        )
    coefficient = known_coefficient(true, max_norm).to(scale.device, non_blocking=True)
    if not scaled:
        _multiply_(parameters, coefficient)
        _flag_all(step, optimizers, not_finite(true))
        return true.to(norm.dtype)
    # One product, so that dividing and clipping round once.
    factor = inv_scale * coefficient
    for each in optimizers:
        if step.undo.by_itself(each):
            _clip_at_scale(step, each, norm.value, true, coefficient, factor)
            continue
        divide(step, each, _record(step, each), factor)
        if len(optimizers) > 1:
            _flag_all(step, [each], not_finite(true))
    return true.to(norm.dtype)


def clip_value_(
    step: CurrentStep, optimizers: Optimizers, parameters: Sequence[Tensor], clip_value: float
) -> None:
    """Clamps the gradients of several optimizers; see `GradScaler.clip_grad_value_`."""
    scale = scale_without_loss(step, optimizers[0], "clip_grad_value_")
    scaled = _scaled_still(step, scale, "clip_grad_value_", optimizers, len(parameters))
    if scaled and not all(map(step.undo.by_itself, optimizers)):
        for each in optimizers:
            unscale_now(step, each, _record(step, each), scale)
        scaled = False
    for each in optimizers if scaled else ():
        _check_only(step, each)
    # S times the threshold may leave float32.
    at = scale if scaled else torch.ones_like(scale)
    bound = at.to(widest_float(scale.device)) * clip_value
    flags = [flag for each in optimizers for flag in _record(step, each).flags.values()]
    # An infinite gradient must stay one, for `step` to see.
    bound = torch.where(combined(flags, scale.device) > 0, math.inf, bound)
    sum_duplicates_(parameters)
    clamp_groups_(collect_from(parameters), bound)


def _record(step: CurrentStep, optimizer: torch.optim.Optimizer) -> Record:
    return step.records[id(optimizer)]


def _scaled_still(
    step: CurrentStep,
    scale: Tensor,
    name: str,
    optimizers: Optimizers,
    distinct: int,
    together: bool = True,
) -> bool:
    """Whether the gradients are all at the scale still; else all of them are unscaled now."""
    for optimizer in optimizers:
        record = _record(step, optimizer)
        refuse(record, "clip", name)
        deliver(step, optimizer, record)
    # One that two optimizers own would be divided by both.
    owned = len(parameters_of(*optimizers))
    if together and owned == distinct and all(_deferrable(step, each) for each in optimizers):
        return True
    for optimizer in optimizers:
        record = _record(step, optimizer)
        if record.untouched:
            unscale_now(step, optimizer, record, scale)
    return False


def _deferrable(step: CurrentStep, optimizer: torch.optim.Optimizer) -> bool:
    record = _record(step, optimizer)
    return (
        record.untouched
        and not record.evaluating
        and step.gradients.deferrable(optimizer)
        # Their half-precision gradients have no float32 ones yet to take the norm of.
        and masters_of(optimizer) is None
    )


def _clip_at_scale(
    step: CurrentStep,
    optimizer: torch.optim.Optimizer,
    norm: Tensor,
    true: Tensor,
    coefficient: Tensor,
    factor: Tensor,
) -> None:
    """Clips gradients that stay at S, or has the optimizer clip them.

    Args:
        step: the one under way.
        optimizer: which undoes the scale by itself.
        norm: of all gradients, at S.
        true: of the unscaled ones.
        coefficient: what clips them.
        factor: what clips and unscales them.
    """
    record, scale = _record(step, optimizer), step.held.ready("clip_grad_norm_")
    step.note(optimizer)
    fits = true < math.inf
    if steps_fused(optimizer):
        # A fused kernel divides by what it is handed, where ours multiplies.
        record.divisor = factor.reciprocal()
    else:
        held_by_it = step.undo.norm_fits(optimizer, norm)
        fits = fits if held_by_it is None else fits & held_by_it
        record.kept = True
        _multiply_(parameters_of(optimizer), coefficient)
    flag = fits.logical_not().to(device=scale.device, dtype=torch.float32, non_blocking=True)
    flags = step.gradients.agreed(optimizer, {scale.device: flag}, scale)
    handled(step, optimizer, record, At.KEPT, flags)


def _check_only(step: CurrentStep, optimizer: torch.optim.Optimizer) -> None:
    record = _record(step, optimizer)
    if steps_fused(optimizer):
        flags = check_fused(step, optimizer, record)
        record.divisor = step.held.ready("clip_grad_value_").clone()
    else:
        flags = keep(step, optimizer, record)
    handled(step, optimizer, record, At.KEPT, flags)


def _multiply_(parameters: Iterable[Tensor], coefficient: Tensor) -> None:
    # On the CPU the host knows it for nothing, and most steps clip nothing.
    if coefficient.device.type == "cpu" and coefficient.item() == 1:
        return
    for device, by_dtype in collect_from(parameters).items():
        unused = torch.zeros((), dtype=torch.float32, device=device)
        factor = coefficient.to(device, non_blocking=True)
        for grads in by_dtype.values():
            multiply_and_check_(grads, unused, factor)


def _flag_all(step: CurrentStep, optimizers: Iterable[torch.optim.Optimizer], flag: Tensor) -> None:
    """Optimizers that share a norm share its fate: without it none of them can be clipped."""
    for optimizer in optimizers:
        flags = _record(step, optimizer).flags
        for device, own in flags.items():
            flags[device] = torch.maximum(own, flag.to(device, non_blocking=True))
