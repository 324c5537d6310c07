"""Optimizers that evaluate the loss themselves: every evaluation is unscaled before they see it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast
from weakref import ref

import torch
from torch import Tensor

from gradscale.gradients.flags import inverse, read_together
from gradscale.gradients.master_weights import masters_of
from gradscale.optimizer_parameters import parameters_of
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.dividing import divide, quotient_overflowed, unscale_now
from gradscale.scaler.held_scale import HeldScale
from gradscale.scaler.order import NOT_SCALED, refuse
from gradscale.scaler.record import At, Record
from gradscale.scaler.stepping import outcome_of, step_call
from gradscale.undo.readers import steps_fused
from gradscale.undo.restore import Snapshot
from gradscale.undo.undo import Undo

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

    def __init__(
        self,
        held: HeldScale,
        step: CurrentStep,
        undo: Undo,
        optimizer: torch.optim.Optimizer,
        record: Record,
    ) -> None:
        self._held, self._step, self._undo = held, step, undo
        self._optimizer, self._record = optimizer, record

    def take(self, closure: Closure, args: Args, kwargs: Kwargs) -> float | None:
        """Steps the optimizer, with the arguments of its `step`, the closure among them."""
        refuse(self._record, "step a closure")
        if self._held.tensor is None:
            self._held.begin_on(_device_of(self._optimizer))
        result = None
        if self._divide_what_is_there():
            result = self._take(closure, args, kwargs)
        self._settle()
        self._record.stepped()
        return result

    def _take(self, closure: Closure, args: Args, kwargs: Kwargs) -> float | None:
        optimizer, record = self._optimizer, self._record
        masters = masters_of(optimizer)
        if masters is not None:
            masters.take_changes()  # before the copy: weights that somebody wrote are to stay
        snapshot = Snapshot(optimizer)
        args, kwargs = _replaced(args, kwargs, closure, self._evaluation(closure))
        record.evaluating = self._step.in_between = True
        try:
            with self._at_scale_one():
                return step_call(optimizer, args, kwargs)()
        except Abandoned:
            _restore(snapshot)
            return None
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
                step.pending.bring_to(self._held.ready("step"))
                unscale_now(self._held, step, optimizer, record)
        return not self._overflowed()

    def _evaluation(self, closure: Closure) -> Closure:
        step, optimizer, record = self._step, self._optimizer, self._record

        def evaluate() -> object:
            record.move(At.SCALED)
            step.pending.expect_divided(optimizer)
            step.gradients.forget_divided()
            before = _gradients_of(optimizer)
            with self._noting_outputs() as outputs:
                loss = closure()
            if not outputs:
                if _changed(optimizer, before):
                    raise RuntimeError(NOT_SCALED)
                return loss
            if record.untouched:
                divide(self._held, step, optimizer, record, inverse(self._held.ready("step")))
            if self._overflowed():
                raise Abandoned
            # An optimizer that compares losses must see them as they are.
            return next((own for scaled, own in outputs if scaled is loss), loss)

        return evaluate

    def _overflowed(self) -> bool:
        record, scale = self._record, self._held.ready("step")
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
        scale = self._held.ready("step")
        if not record.flags:
            record.flags = {scale.device: torch.zeros((), device=scale.device)}
        flags = list(record.flags.values())
        skipped, value = read_together(flags, scale)
        outcome = outcome_of(step, optimizer, record, flags, scale)
        outcome.unrepresentable = record.unrepresentable
        outcome.settle(skipped, value, step.process_group)
        record.move(At.DIVIDED)
        step.pending.note(optimizer)

    def _at_scale_one(self) -> AbstractContextManager[None]:
        if not self._undo.absorbs or steps_fused(self._optimizer):
            return nullcontext()
        return self._undo.carrying(self._optimizer, 1.0)

    @contextmanager
    def _noting_outputs(self) -> Generator[list[tuple[Tensor, Tensor]]]:
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


def _replaced(args: Args, kwargs: Kwargs, closure: Closure, by: Closure) -> tuple[Args, Kwargs]:
    """The arguments of `optimizer.step`, with another closure in the place of the user's."""
    return (
        tuple([by if argument is closure else argument for argument in args]),
        {name: by if value is closure else value for name, value in kwargs.items()},
    )


def _device_of(optimizer: torch.optim.Optimizer) -> torch.device:
    return optimizer.param_groups[0]["params"][0].device


def _gradients_of(optimizer: torch.optim.Optimizer) -> dict[int, tuple[ref[Tensor], int]]:
    """Which gradient each parameter has, and its version; holds none of them alive."""
    return {
        id(p): (ref(p.grad), p.grad._version)
        for p in parameters_of(optimizer)
        if p.grad is not None
    }


def _changed(optimizer: torch.optim.Optimizer, before: dict[int, tuple[ref[Tensor], int]]) -> bool:
    for parameter in parameters_of(optimizer):
        grad, known = parameter.grad, before.get(id(parameter))
        if grad is None:
            continue
        if known is None or known[0]() is not grad or known[1] != grad._version:
            return True
    return False


def _restore(snapshot: Snapshot) -> None:
    snapshot.restore_()
    masters = masters_of(snapshot.optimizer)
    if masters is not None:
        masters.copy_back()
