"""How an optimizer's step is taken or skipped, on gradients that were divided or are kept at S."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor

from gradscale.callers import level_of_caller
from gradscale.gradients.flags import combined, read_together
from gradscale.outcomes.outcome import OptimizerOutcome
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.dividing import check_fused, keep, quotient_overflowed, with_quotients
from gradscale.scaler.fused import step_deciding
from gradscale.scaler.record import Record
from gradscale.undo.select import mark_taken, prepared, selected

StepCall = Callable[[], float | None]
"""An optimizer's own `step`, with all that it is given."""


def step_call(
    optimizer: torch.optim.Optimizer, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> StepCall:
    """The optimizer's own step with these arguments, to be called or not."""
    return partial(cast("Callable[..., float | None]", optimizer.step), *args, **kwargs)


def divided_first(step: CurrentStep, optimizer: torch.optim.Optimizer, record: Record) -> bool:
    """Whether gradients that are as backward left them are to be divided before the step."""
    if record.sums is not None:
        return True
    return not (step.undo.by_itself(optimizer) and step.gradients.deferrable(optimizer))


def take_or_skip(
    step: CurrentStep,
    optimizer: torch.optim.Optimizer,
    record: Record,
    call: StepCall,
    fused: bool,
) -> float | None:
    """Steps an optimizer, which may be fused, unless a gradient of it is not finite."""
    if fused:
        result = _fused_step(step, optimizer, record, call)
    elif step.undo.sync_free and prepared(optimizer):
        result = _selected_step(step, optimizer, record, call)
    else:
        if step.undo.absorbs and record.untouched:
            keep(step, optimizer, record)
        result = host_step(step, optimizer, record, call)
    record.stepped()
    return result


def outcome_of(
    step: CurrentStep,
    optimizer: torch.optim.Optimizer,
    record: Record,
    flags: list[Tensor],
    scale: Tensor,
) -> OptimizerOutcome:
    """The outcome of an optimizer's step, entered where everybody looks for it."""
    outcome = OptimizerOutcome(optimizer, flags, scale, step.evidence)
    if record.added:
        # Of the class where there were none: an outcome is made in every step.
        outcome.micro_batches, outcome.dropped_micro_batches = record.added, record.dropped
    record.outcome = outcome
    step.outcome.add(outcome)
    return outcome


def host_step(
    step: CurrentStep, optimizer: torch.optim.Optimizer, record: Record, call: StepCall
) -> float | None:
    """A step that the host decides, with one read; torch's `_maybe_opt_step`."""
    held, undo = step.held, step.undo
    if undo.absorbs:
        undo.accept(optimizer)  # before anything is entered
    flags = list(record.flags.values())
    scale = held.ready("step")
    outcome = outcome_of(step, optimizer, record, flags, scale)
    skipped, value = read_together(flags, scale)
    # The transfer that had to be made brings the scale along: its bound is exact again.
    if not scale.is_cpu:
        held.known.note(scale, value)
    # From a scale of 1 on no quotient is larger than the gradient that was checked.
    if not skipped and value < 1 and not record.kept:
        skipped = outcome.unrepresentable = quotient_overflowed(step, optimizer, scale, flags)
    outcome.settle(skipped, value, step.process_group)
    if skipped:
        return None
    if undo.absorbs:
        with undo.carrying(optimizer, value if record.kept else 1.0):
            return call()
    result = call()
    if undo.sync_free:
        mark_taken(optimizer)
    return result


def _selected_step(
    step: CurrentStep, optimizer: torch.optim.Optimizer, record: Record, call: StepCall
) -> float | None:
    """A step that the device takes or leaves: nothing is read on the host."""
    scale = step.held.ready("step")
    flags = record.flags
    if step.held.at_least(scale) < 1:
        flags = with_quotients(step, optimizer, scale, record)
    found_inf = combined(list(flags.values()), scale.device)
    outcome_of(step, optimizer, record, [found_inf], scale.clone())
    with selected(optimizer, found_inf):
        return call()


def _fused_step(
    step: CurrentStep, optimizer: torch.optim.Optimizer, record: Record, call: StepCall
) -> float | None:
    """A step that the optimizer's own kernel takes or leaves, dividing on the way."""
    scale = step.held.ready("step")
    on_cpu = scale.is_cpu
    # On an accelerator `update` changes the scale before anybody reads this one.
    at = scale if on_cpu else scale.clone()
    divisor = record.divisor
    if record.untouched:
        flags, divisor = check_fused(step, optimizer, record), at
    elif divisor is None and step.held.at_least(scale) < 1:
        flags = with_quotients(step, optimizer, scale, record)
    else:
        flags = record.flags
    found_inf = combined(list(flags.values()), scale.device)
    outcome = outcome_of(step, optimizer, record, [found_inf], at)
    if on_cpu:
        outcome.unrepresentable = record.beyond is not None and bool(record.beyond)
        outcome.settle(bool(found_inf.item()), scale.item(), step.process_group)
    result = step_deciding(optimizer, divisor, found_inf, call)
    if divisor is not None:
        step.gradients.mark_divided(optimizer, outcome)
    return result


def step_of_its_own(
    step: CurrentStep, optimizer: torch.optim.Optimizer, record: Record, call: StepCall
) -> float | None:
    """A step by torch's older contract: the optimizer asks the scaler, divides and decides.

    Args:
        step: the one under way.
        optimizer: whose `step` takes `grad_scaler`.
        record: of it.
        call: its step, given the scaler.
    """
    warnings.warn(
        f"`{type(optimizer).__name__}.step` takes `grad_scaler`: torch is going to stop passing "
        "it. It will set `grad_scale` and `found_inf` on the optimizer instead.",
        FutureWarning,
        stacklevel=level_of_caller(),
    )
    result = call()
    scale = step.held.ready("step")
    flags = list(record.flags.values())
    if flags:  # the optimizer had them checked
        found_inf = combined(flags, scale.device)
        outcome = outcome_of(step, optimizer, record, [found_inf], scale.clone())
        if scale.is_cpu:
            outcome.settle(bool(found_inf.item()), scale.item(), step.process_group)
    record.stepped()
    return result
