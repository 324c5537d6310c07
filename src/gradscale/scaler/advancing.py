"""How a step ends: the policy sees what happened, unless bad data was to blame."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gradscale.gradients.flags import combined
from gradscale.scaler.books import Books
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.held_scale import HeldScale
from gradscale.scaler.order import NO_CHECKS, TWO_SCALES, refuse
from gradscale.scaler.record import Record, Records
from gradscale.scaler.settings import scale_to_set


class _Found(NamedTuple):
    """What the records of a step say.

    Attributes:
        flags: of gradients that are not finite.
        beyond: flags of quotients that their dtype does not hold.
        settled: whether the host knows what became of every optimizer.
        skipped: whether it knows that one was skipped.
        blamed: whether one of those was skipped because of the scale.
        dropped: whether micro-batches may have been left out.
    """

    flags: list[Tensor]
    beyond: list[Tensor]
    settled: bool
    skipped: bool
    blamed: bool
    dropped: bool


def end_step(
    held: HeldScale, step: CurrentStep, books: Books, new_scale: float | Tensor | None
) -> None:
    """Ends the step under way; see `GradScaler.update`."""
    scale = held.ready("update")
    if step.in_between or new_scale is not None:
        _refuse_in_between(step, new_scale)
    ended = step.so_far
    if new_scale is not None:
        new = scale_to_set(new_scale)
        step.pending.leave(step.records, scale)
        held.set_to(scale, new)
    else:
        step.outcome = ended
        _advance(held, step, scale)
    try:
        books.enter(ended, held)
    finally:  # a callback may raise: the step has ended all the same
        step.end(held.policy, held.layerwise)
    books.note_numbers(step, held.layerwise)


def give_up(held: HeldScale, step: CurrentStep, books: Books) -> None:
    """Gives up the step under way; see `GradScaler.abandon`."""
    for key in step.records:
        optimizer = step.pending.optimizer(key)
        if optimizer is not None:
            optimizer.zero_grad()
    ended = step.so_far
    try:
        if len(ended):
            books.ledger.add(ended)
    finally:
        step.end(held.policy, held.layerwise)


def _refuse_in_between(step: CurrentStep, new_scale: float | Tensor | None) -> None:
    """Refuses to change the scale while gradients at the present one are still added up."""
    for record in step.records.values():
        refuse(record, "update")
    if new_scale is not None and step.backward_ran:
        if all(record.untouched for record in step.records.values()):
            raise RuntimeError(TWO_SCALES.format(new_scale=new_scale))


def _advance(held: HeldScale, step: CurrentStep, scale: Tensor) -> None:
    found = _gathered(step.records)
    if not found.flags:
        raise AssertionError(NO_CHECKS)
    alone = len(found.flags) == 1 and found.flags[0].is_cpu and scale.is_cpu
    found_inf = found.flags[0] if alone else combined(found.flags, scale.device)
    # Whether bad data is to blame: known to the host, or as a flag.
    ignore = None
    if found.settled:
        step.evidence.release()
    else:
        scaling = step.evidence.blamed(found_inf, step.process_group)
        if scaling is not None:
            found_inf, ignore = scaling, found_inf > scaling
    if found.beyond:  # no scale helps; unless another gradient overflowed, the policy is not asked
        lost = combined(found.beyond, scale.device) > found_inf
        ignore = lost if ignore is None else ignore | lost
    observation = step.gradients.observation(found_inf)
    step.outcome.show(observation)
    step.pending.leave(step.records, scale)
    if held.layerwise is not None:
        held.layerwise.update(step.outcome)
    if not (found.settled and found.skipped and not found.blamed):
        clean = found.settled and not (found.skipped or found.dropped)
        held.decide(scale, observation, ignore, clean)


def _gathered(records: Records) -> _Found:
    flags: list[Tensor] = []
    beyond: list[Tensor] = []
    settled, skipped, blamed, dropped = True, False, False, False
    for record in records.values():
        flags += record.flags.values()
        if record.overflowed is not None:  # of a step that was taken without some micro-batches
            flags.append(record.overflowed)
            dropped = True
        outcome = record.outcome
        if outcome is None or not outcome.settled:
            settled = False
            beyond += _beyond(record)
        elif outcome.skipped:
            skipped, blamed = True, blamed or outcome.blames_scale
    return _Found(flags, beyond, settled, skipped, blamed, dropped)


def _beyond(record: Record) -> list[Tensor]:
    return [] if record.beyond is None else [record.beyond]
