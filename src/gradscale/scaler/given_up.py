"""A step that was begun and given up, noticed when a new backward pass fills the gradients again.

`unscale_`, clipping or `step` divides gradients, then an exception, Ctrl-C or ``continue`` leaves
the loop before `update()`. To take the gradients of the next pass for divided ones would step with
gradients S times too large. What a backward pass changes is seen exactly: each optimizer whose
gradients are divided already is looked at when the pass begins and when it has ended.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradscale.gradients.master_weights import trained_by
from gradscale.gradients.seen import SeenGradient, seen_gradients
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.record import At, Record

Counts = tuple[int, int]
"""How many losses and inputs a step had before a loss was scaled."""


class DividedBefore(NamedTuple):
    """An optimizer's gradients before a backward pass, of which it expects none any more."""

    key: int
    record: Record
    optimizer: torch.optim.Optimizer
    seen: list[SeenGradient]

    @property
    def touched(self) -> bool:
        """Whether a gradient was made, replaced or added to."""
        return not all(each.same for each in self.seen)

    @property
    def empty(self) -> bool:
        """Whether there was no gradient: `zero_grad()` had begun a new step."""
        return all(each.gradient is None for each in self.seen)


def look_for_new_step(step: CurrentStep, earlier: Counts, number: int, gradient: Tensor) -> None:
    """Called as the backward pass of a loss begins; looks again when the pass has ended.

    Args:
        step: the one under way.
        earlier: what it had before this loss was scaled.
        number: of the loss.
        gradient: of the loss.
    """
    step.note_backward(number, gradient)
    found: list[DividedBefore] = []
    for key, record in step.records.items():
        optimizer = step.pending.optimizer(key) if record.complete else None
        if optimizer is not None:
            seen = seen_gradients(trained_by(optimizer))
            found.append(DividedBefore(key, record, optimizer, seen))

    def ended() -> None:
        touched = [each for each in found if each.record.complete and each.touched]
        if touched:
            _begin_anew(step, earlier, touched)

    if found:
        # At the end of this pass, and of no other: the engine forgets it then.
        torch.autograd.Variable._execution_engine.queue_callback(ended)


def _begin_anew(step: CurrentStep, earlier: Counts, touched: list[DividedBefore]) -> None:
    """Forgets what a step that was given up had done to these optimizers' gradients."""
    for each in touched:
        if not each.empty:
            each.record.move(At.MIXED)
            continue
        del step.records[each.key]
        step.gradients.forget(each.optimizer)
    if not step.records:
        step.evidence.forget(*earlier)
