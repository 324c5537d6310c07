"""What a step is lost to, where only the device knows that it is lost: optimizer by optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from gradscale.gradients.flags import combined
from gradscale.gradients.left_over import LeftOver
from gradscale.gradients.master_weights import trained_by
from gradscale.outcomes.evidence import Blame
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.record import Record


def blamed_on_device(step: CurrentStep, found_inf: Tensor) -> Blame | None:
    """What the flag of a step comes from; each outcome is told its own part of it.

    Args:
        step: the one that ends.
        found_inf: of all its optimizers, float32 0-d.

    Returns:
        None if nobody can tell.
    """
    evidence = step.evidence
    if len(step.records) < 2 or len(evidence.losses) < 2:
        stale = _stale(evidence.left_over.values(), found_inf)
        blame = evidence.blame(found_inf, step.process_group, stale=stale)
        for outcome in step.outcome:
            outcome.blame = blame
        return blame
    return _together([_own(step, key, record, found_inf) for key, record in step.records.items()])


def _own(step: CurrentStep, key: int, record: Record, like: Tensor) -> Blame:
    """That of one optimizer, by the losses that its gradients come from."""
    flags = [*record.flags.values(), *([] if record.overflowed is None else [record.overflowed])]
    found_inf = combined(flags, like.device)
    optimizer, left = step.pending.optimizer(key), step.evidence.left_over.get(key)
    numbers = None if optimizer is None else step.evidence.reaching(trained_by(optimizer))
    stale = None if left is None else _stale([left], like)
    blame = step.evidence.blame(found_inf, step.process_group, numbers, stale)
    if record.outcome is not None:
        record.outcome.blame = blame
    return Blame(found_inf) if blame is None else blame


def _together(blames: Sequence[Blame]) -> Blame:
    device = blames[0].scaling.device

    def largest(flags: Iterable[Tensor | None]) -> Tensor | None:
        there = [flag for flag in flags if flag is not None]
        return combined(there, device) if there else None

    return Blame(
        combined([blame.scaling for blame in blames], device),
        largest(blame.loss for blame in blames),
        largest(blame.stale for blame in blames),
    )


def _stale(left: Iterable[LeftOver], like: Tensor) -> Tensor | None:
    flags = [flag for each in left for flag in each.flags.values()]
    return combined(flags, like.device) if flags else None
