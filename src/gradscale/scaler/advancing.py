"""How a step ends: the policy sees what happened, unless bad data was to blame."""

from __future__ import annotations

from torch import Tensor

from gradscale.gradients.flags import combined
from gradscale.outcomes.evidence import Blame
from gradscale.scaler.blaming import blamed_on_device
from gradscale.scaler.books import Books
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.forgotten_backward import warn_of_nothing_trained
from gradscale.scaler.order import NO_CHECKS, TWO_SCALES, refuse
from gradscale.scaler.patience import TRIAL
from gradscale.scaler.settings import scale_to_set


def end_step(step: CurrentStep, books: Books, new_scale: float | Tensor | None) -> None:
    """Ends the step under way; see `GradScaler.update`."""
    scale = step.held.ready("update")
    if step.in_between or new_scale is not None:
        _refuse_in_between(step, new_scale)
    if step.bare is not None:
        warn_of_nothing_trained(step)
    # Where nothing stepped, the outcome is still that of the step before, which has been counted.
    ended = step.so_far if step.closed else step.outcome
    if new_scale is not None:
        new = scale_to_set(new_scale)
        step.pending.leave(step.records, scale)
        step.held.set_to(scale, new)
    else:
        step.outcome = ended
        _advance(step, books, scale)
    try:
        if books.ledger.add(ended):
            books.take_news(step)
        books.compare_replicas(step)
    finally:  # a callback may raise: the step has ended all the same
        step.begin()
    if books.meter is not None:
        books.note_numbers(step)


def give_up(step: CurrentStep, books: Books) -> None:
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
        step.begin()


def _refuse_in_between(step: CurrentStep, new_scale: float | Tensor | None) -> None:
    """Refuses to change the scale while gradients at the present one are still added up."""
    for record in step.records.values():
        refuse(record, "update")
    if new_scale is not None and step.backward_ran:
        if all(record.untouched for record in step.records.values()):
            raise RuntimeError(TWO_SCALES.format(new_scale=new_scale))


def _advance(step: CurrentStep, books: Books, scale: Tensor) -> None:
    held = step.held
    flags: list[Tensor] = []
    settled, skipped, blamed, dropped = True, False, False, False
    for record in step.records.values():
        flags += record.flags.values()
        if record.overflowed is not None:  # of a step that was taken without some micro-batches
            flags.append(record.overflowed)
            dropped = True
        outcome = record.outcome
        if outcome is None or not outcome.settled:
            settled = False
        elif outcome.skipped:
            skipped, blamed = True, blamed or outcome.blames_scale
    if not flags:
        raise AssertionError(NO_CHECKS)
    # The usual step of a CPU: its one flag is taken as it is, without a launch.
    alone = len(flags) == 1 and flags[0].is_cpu and scale.is_cpu
    found_inf = flags[0] if alone else combined(flags, scale.device)
    # Whether bad data is to blame: known to the host, or as a flag.
    blame, ignore, at_fault = None, None, found_inf
    if not settled:
        books.note_unsettled(step, scale)
    patience = books.device_patience
    if not settled or patience is not None:
        blame = blamed_on_device(step, found_inf)
        if not settled:
            at_fault, ignore = _shown_to_policy(step, found_inf, blame)
    # Where the device decides nobody knows, so the next step looks what was left, too.
    step.after_skip = skipped or not settled
    observation = step.gradients.observation(at_fault)
    step.outcome.show(observation)
    step.pending.leave(step.records, scale)
    # Before the policy decides: what was measured was measured at this scale.
    if held.layerwise is not None:
        held.layerwise.update(step.outcome)
    elif held.functions.wanted:
        held.functions.end_step()
    if patience is not None and blame is not None:
        patience.count(found_inf, blame, scale)
    # Lost to bad data in all its optimizers: the policy is not to see such a step.
    if blamed or not (settled and skipped):
        held.decide(scale, observation, ignore, settled and not (skipped or dropped))
    if patience is not None and blame is not None:
        patience.act(scale, max(TRIAL, held.floor), held.backoff_factor)
        step.depends = patience.depends


def _shown_to_policy(
    step: CurrentStep, found_inf: Tensor, blame: Blame | None
) -> tuple[Tensor, Tensor | None]:
    """Of a step that the host does not know: the flag to decide by, and whether to ignore it."""
    at_fault, ignore = found_inf, None
    if blame is not None:
        at_fault, ignore = blame.scaling, found_inf > blame.scaling
    records = step.records.values()
    unknown = [each for each in records if each.outcome is None or not each.outcome.settled]
    # Flags of quotients that their dtype does not hold: no scale helps, so unless another gradient
    # overflowed, the policy is not asked.
    beyond = [each.beyond for each in unknown if each.beyond is not None]
    if beyond:
        lost = combined(beyond, found_inf.device) > at_fault
        ignore = lost if ignore is None else ignore | lost
    return at_fault, ignore
