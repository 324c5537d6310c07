"""A step for which no backward pass has run, or none that reached what the optimizer trains."""

from __future__ import annotations

import warnings

import torch

from gradscale.callers import level_of_caller
from gradscale.gradients.master_weights import trained_by
from gradscale.optimizer_parameters import parameters_of
from gradscale.ranks import distributed
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.order import NO_BACKWARD
from gradscale.scaler.record import Record


def look_for_gradients(step: CurrentStep, optimizer: torch.optim.Optimizer, record: Record) -> None:
    """Before an optimizer steps: refuses a step without `backward()`, and what that gives away.

    An optimizer whose parameters took no part makes an ordinary step: only where a loss with a
    graph was scaled and no backward pass began at it, or where nothing at all was trained in the
    first step of a loop, has somebody made a mistake.

    Raises:
        AssertionError: as torch's, if there is no gradient, and no backward pass has run.
    """
    if record.sums is not None:
        return
    step.note(optimizer)  # refuses what is none
    trained = (*parameters_of(optimizer), *trained_by(optimizer))
    empty = all(parameter.grad is None for parameter in trained)
    if step.backward_ran:
        # A rank may own no part of a sharded network.
        record.empty = empty and bool(trained) and not distributed()
    elif any(graph is not None for graph in step.evidence.graphs):
        if empty:
            raise AssertionError(NO_BACKWARD.format(optimizer=type(optimizer).__name__))
        if step.bare is not None:
            warnings.warn(
                f"`scaler.step({type(optimizer).__name__})`: there are gradients, but no "
                "backward() began at a loss that `scaler.scale` returned, so that they are "
                "divided by a scale at which they are not. Write "
                "`scaler.scale(loss).backward()` in place of `loss.backward()`.",
                stacklevel=level_of_caller(),
            )


def warn_of_nothing_trained(step: CurrentStep) -> None:
    """At the end of the first step: says so if backward() reached no parameter of any optimizer."""
    records = step.records.values()
    if records and all(record.empty for record in records):
        warnings.warn(
            "`scaler.step(optimizer)`: backward() has run, and no parameter of the optimizer has a "
            "gradient, so that nothing is trained. Make the optimizer of the parameters of this "
            "model, after whatever replaces them; see that the loss is not detached from them, and "
            "call `optimizer.zero_grad()` before backward(), not after it.",
            stacklevel=level_of_caller(),
        )
