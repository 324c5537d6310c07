"""How micro-batches are summed in float32, and how one that overflows is left out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradscale.gradients.accumulate import Divisor, MicroBatches
from gradscale.gradients.flags import inverse
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.order import NOT_FILLED, refuse
from gradscale.scaler.record import At, Record
from gradscale.scaler.settings import check_real

DIVISORS = ("kept", "all", "nothing")


def accumulate(
    step: CurrentStep,
    optimizer: torch.optim.Optimizer,
    weight: float,
    drop_overflow: bool,
    divide_by: Divisor,
) -> None:
    """Adds one micro-batch to the sums of a step; see `GradScaler.accumulate_`."""
    scale = step.held.ready("accumulate_")
    record = step.records[id(optimizer)]
    _check_settings(weight, divide_by)
    refuse(record, "accumulate_")
    step.note(optimizer)
    sums = record.sums
    if sums is None:
        sums = record.sums = MicroBatches.of(
            optimizer, drop_overflow=drop_overflow, divide_by=divide_by
        )
        record.move(At.SUMMED)
    elif (sums.drop_overflow, sums.divide_by) != (drop_overflow, divide_by):
        raise ValueError(
            f"`accumulate_(drop_overflow={drop_overflow}, divide_by={divide_by!r})`: the "
            f"micro-batches of this step began with drop_overflow="
            f"{sums.drop_overflow}, divide_by={sums.divide_by!r}. Pass the "
            "same for all of them."
        )
    step.in_between = True
    with torch.no_grad():
        _add(step, optimizer, record, sums, inverse(scale), weight)
    record.added += 1


def _add(
    step: CurrentStep,
    optimizer: torch.optim.Optimizer,
    record: Record,
    sums: MicroBatches,
    inv_scale: Tensor,
    weight: float,
) -> None:
    if not sums.filled:
        raise RuntimeError(NOT_FILLED)
    layerwise = step.held.layerwise
    if layerwise is not None:
        layerwise.after_unscale(optimizer)
    flag = None
    if sums.drop_overflow:
        own = sums.check(inv_scale)
        (flag,) = step.gradients.agreed(optimizer, {own.device: own}, own).values()
        _blame(step, record, flag)
    sums.add_(inv_scale, weight, flag)


def _blame(step: CurrentStep, record: Record, flag: Tensor) -> None:
    """Notes that this micro-batch overflowed, unless its loss was not finite."""
    numbers = range(record.losses, len(step.evidence.losses))
    record.losses = numbers.stop
    blame = step.evidence.blame(flag, step.process_group, numbers)
    overflow = flag if blame is None else blame.scaling
    before = record.overflowed
    record.overflowed = overflow if before is None else torch.maximum(before, overflow)


def _check_settings(weight: float, divide_by: Divisor) -> None:
    check_real("accumulate_", "weight", weight)
    if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(
            f"`accumulate_(weight={weight})` must be positive and finite, such as the number "
            "of samples."
        )
    if divide_by not in DIVISORS:
        raise ValueError(f"`accumulate_(divide_by={divide_by!r})` must be one of {DIVISORS}.")
