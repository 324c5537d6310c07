"""Optimizers that evaluate the loss themselves: every evaluation is unscaled before they see it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor

from gradscale.gradients.flags import read_together
from gradscale.gradients.master_weights import masters_of
from gradscale.gradients.seen import seen_gradients
from gradscale.optimizer_parameters import parameters_of
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.dividing import quotient_overflowed, unscale_now
from gradscale.scaler.order import NOT_SCALED, refuse
from gradscale.scaler.record import At, Record
from gradscale.scaler.stepping import outcome_of, step_call
from gradscale.undo.readers import steps_fused
from gradscale.undo.restore import Snapshot

Closure = Callable[[], object]

Args = tuple[object, ...]
Kwargs = Mapping[str, object]


class Abandoned(Exception):
    """Leaves an optimizer's step from within, after an evaluation that overflowed."""


class ClosureStep:
    """One step of LBFGS, SAM and whatever else calls a closure.

    snapshot;  optimizer.step(evaluate);  on overflow: restore, and the step counts as skipped

    evaluate():  loss = closure()          # scaler.scale(loss).backward() within
                 grad /= S, checked        # not finite: out of `optimizer.step` at once
                 return loss
    """

    def __init__(self, step: CurrentStep, optimizer: torch.optim.Optimizer, record: Record) -> None:
        self._step, self._optimizer, self._record = step, optimizer, record

    def take(self, closure: Closure, args: Args, kwargs: Kwargs) -> float | None:
        """Steps the optimizer, with the arguments of its `step`, the closure among them."""
        refuse(self._record, "step a closure")
        held = self._step.held
        if held.tensor is None:
            held.begin_on(self._optimizer.param_groups[0]["params"][0].device)
        result = self._take(closure, args, kwargs) if self._divide_what_is_there() else None
        self._settle()
        self._record.stepped()
        return result

    def _take(self, closure: Closure, args: Args, kwargs: Kwargs) -> float | None:
        optimizer, record = self._optimizer, self._record
        masters = masters_of(optimizer)
        if masters is not None:
            masters.take_changes()  # before the copy: weights that somebody wrote are to stay
        snapshot = Snapshot(optimizer)
        by = self._evaluation(closure)
        args = tuple([by if argument is closure else argument for argument in args])
        kwargs = {name: by if value is closure else value for name, value in kwargs.items()}
        record.evaluating = self._step.in_between = True
        try:
            with self._at_scale_one():
                return step_call(optimizer, args, kwargs)()
        except Abandoned:
            _restore(snapshot)
            return None
        # Ctrl-C, too: half a line search is no place to go on from.
        except BaseException:
            _restore(snapshot)
            record.move(At.SCALED, {})
            raise
        finally:
            record.evaluating = False

    def _divide_what_is_there(self) -> bool:
        """Unscales gradients from before the step, as SAM needs them; False if they overflowed."""
        step, optimizer, record = self._step, self._optimizer, self._record
        if record.untouched and not step.pending.divided(optimizer):
            if step.evidence.losses or step.pending.knows(optimizer):
                scale = step.held.ready("step")
                step.pending.bring_to(scale)
                unscale_now(step, optimizer, record, scale)
        return not self._overflowed()

    def _evaluation(self, closure: Closure) -> Closure:
        step, optimizer, record = self._step, self._optimizer, self._record

        def evaluate() -> object:
            record.move(At.SCALED)
            step.pending.expect_divided(optimizer)
            step.gradients.forget_divided()
            before = seen_gradients(parameters_of(optimizer))
            with self._noting_outputs() as outputs:
                loss = closure()
            if not outputs:
                # Cleared ones were not made of a loss that was not scaled.
                if any(each.parameter.grad is not None and not each.same for each in before):
                    raise RuntimeError(NOT_SCALED)
                return loss
            if record.untouched:
                unscale_now(step, optimizer, record, step.held.ready("step"))
            if self._overflowed():
                raise Abandoned
            # An optimizer that compares losses must see them as they are.
            return next((own for scaled, own in outputs if scaled is loss), loss)

        return evaluate

    def _overflowed(self) -> bool:
        record, scale = self._record, self._step.held.ready("step")
        flags = list(record.flags.values())
        if not flags:
            return False
        found, value = read_together(flags, scale)
        record.unrepresentable = False
        if not found and value < 1:
            found = quotient_overflowed(self._step, self._optimizer, scale, flags)
            record.unrepresentable = found
        return found

    def _settle(self) -> None:
        """Records what became of the step, with the flags of its last evaluation."""
        step, optimizer, record = self._step, self._optimizer, self._record
        scale = self._step.held.ready("step")
        if not record.flags:
            record.flags = {scale.device: torch.zeros((), dtype=torch.float32, device=scale.device)}
        flags = list(record.flags.values())
        skipped, value = read_together(flags, scale)
        outcome = outcome_of(step, optimizer, record, flags, scale)
        outcome.unrepresentable = record.unrepresentable
        outcome.settle(skipped, value, step.process_group)
        record.move(At.DIVIDED)
        step.pending.note(optimizer)

    def _at_scale_one(self) -> AbstractContextManager[None]:
        undo = self._step.undo
        if not undo.absorbs or steps_fused(self._optimizer):
            return nullcontext()
        return undo.carrying(self._optimizer, 1.0)

    @contextmanager
    def _noting_outputs(self) -> Generator[list[tuple[Tensor, Tensor]]]:
        # Evaluations may nest: a closure may step another optimizer, with a closure of its own.
        outer, self._step.outputs = self._step.outputs, []
        try:
            yield self._step.outputs
        finally:
            self._step.outputs = outer


def closure_in(args: Args, kwargs: Kwargs) -> Closure | None:
    """The closure among the arguments of `step`, positional or by keyword; None without one."""
    given = kwargs.get("closure")
    if given is not None:
        return cast(Closure, given)
    return next((argument for argument in args if callable(argument)), None)


def _restore(snapshot: Snapshot) -> None:
    snapshot.restore_()
    masters = masters_of(snapshot.optimizer)
    if masters is not None:
        masters.copy_back()
