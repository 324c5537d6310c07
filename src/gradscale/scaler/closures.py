"""Optimizers that evaluate the loss themselves: every evaluation is unscaled before they see it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from gradscale.gradients.flags import inverse, read_together
from gradscale.gradients.master_weights import masters_of
from gradscale.scaler.clipping import ClippingScaler
from gradscale.undo.carry import carried
from gradscale.undo.degrees import degrees_once
from gradscale.undo.restore import Snapshot

Closure = Callable[[], Any]


class Abandoned(Exception):
    """Leaves an optimizer's step from within, after an evaluation that overflowed."""


class ClosureScaler(ClippingScaler):
    """A scaler that steps LBFGS, SAM and whatever else calls a closure.

    snapshot;  optimizer.step(evaluate);  on overflow: restore, and the step counts as skipped

    evaluate():  loss = closure()          # scaler.scale(loss).backward() within
                 grad /= S, checked        # not finite: out of `optimizer.step` at once
                 return loss
    """

    def _closure_step(
        self,
        optimizer: torch.optim.Optimizer,
        record: dict[str, Any],
        closure: Closure,
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> Any:
        if "evaluating" in record:
            raise RuntimeError(
                "`step(optimizer, closure)` was called inside that optimizer's own closure. The "
                "closure computes the loss and calls `scaler.scale(loss).backward()`, no more."
            )
        if self._scale is None:
            self._lazy_init_scale_growth_tracker(_device_of(optimizer))
        if not self._divide_what_is_there(optimizer, record):
            self._settle(optimizer, record)
            return None
        masters = masters_of(optimizer)
        if masters is not None:
            masters.take_changes()  # before the copy: weights that somebody wrote are to stay
        snapshot = Snapshot(optimizer)
        evaluate = self._evaluation(optimizer, record, closure)
        args, kwargs = _replaced(args, kwargs, closure, evaluate)
        record["evaluating"] = self._in_between = True
        try:
            with self._at_scale_one(optimizer):
                result = optimizer.step(*args, **kwargs)
        except Abandoned:
            _restore(snapshot)
            self._settle(optimizer, record)
            return None
        except BaseException:
            _restore(snapshot)
            record["stage"] = OptState.READY
            record["found_inf_per_device"] = {}
            raise
        finally:
            del record["evaluating"]
        self._settle(optimizer, record)
        return result

    def _divide_what_is_there(
        self, optimizer: torch.optim.Optimizer, record: dict[str, Any]
    ) -> bool:
        """Unscales gradients from before the step, as SAM needs them; False if they overflowed."""
        known_divided = self._pending.divided(optimizer)
        if record["stage"] is OptState.READY and not known_divided:
            scaled = bool(self._evidence.losses) or self._pending.knows(optimizer)
            if scaled:
                self._pending.bring_to(cast(Tensor, self._scale))
                self.unscale_(optimizer)
        elif "scaled" in record or "grad_scale" in record:
            raise RuntimeError(
                "`step(optimizer, closure)` after `clip_grad_norm_` or `clip_grad_value_`: they "
                "left the gradients scaled for a step without a closure. Clip inside the closure, "
                "after backward()."
            )
        return not self._overflowed(optimizer, record)

    def _evaluation(
        self, optimizer: torch.optim.Optimizer, record: dict[str, Any], closure: Closure
    ) -> Closure:
        def evaluate() -> Any:
            record["stage"] = OptState.READY
            self._pending.expect_divided(optimizer)
            self._gradients.forget_divided()
            before = _gradients_of(optimizer)
            with self._noting_outputs() as outputs:
                loss = closure()
            if not outputs:
                if _changed(optimizer, before):
                    raise RuntimeError(
                        "`step(optimizer, closure)`: the closure ran backward() on a loss that was "
                        "not scaled. Write `scaler.scale(loss).backward()` in it, and return "
                        "`loss`."
                    )
                return loss
            if record["stage"] is OptState.READY:
                self._divide(optimizer, record, inverse(cast(Tensor, self._scale)))
            if self._overflowed(optimizer, record):
                raise Abandoned
            # An optimizer that compares losses must see them as they are.
            return next((own for scaled, own in outputs if scaled is loss), loss)

        return evaluate

    def _overflowed(self, optimizer: torch.optim.Optimizer, record: dict[str, Any]) -> bool:
        flags = list(record["found_inf_per_device"].values())
        if not flags:
            return False
        found, scale = read_together(flags, cast(Tensor, self._scale))
        record["unrepresentable"] = False
        if not found and scale < 1:
            found = record["unrepresentable"] = self._quotient_overflowed(optimizer, flags)
        return found

    def _settle(self, optimizer: torch.optim.Optimizer, record: dict[str, Any]) -> None:
        """Records what became of the step, with the flags of its last evaluation."""
        scale = cast(Tensor, self._scale)
        if not record["found_inf_per_device"]:
            record["found_inf_per_device"] = {scale.device: torch.zeros((), device=scale.device)}
        flags = list(record["found_inf_per_device"].values())
        skipped, value = read_together(flags, scale)
        outcome = self._outcome(optimizer, record, flags, scale)
        outcome.unrepresentable = record.get("unrepresentable", False)
        outcome.settle(skipped, value, self.process_group)
        record["divided"] = True
        self._pending.note(optimizer)

    def _at_scale_one(self, optimizer: torch.optim.Optimizer) -> Any:
        if self._undo == "gradient" or getattr(optimizer, "_step_supports_amp_scaling", False):
            return nullcontext()
        return carried(optimizer, degrees_once(optimizer, self._undo), 1.0)

    @contextmanager
    def _noting_outputs(self) -> Generator[list[tuple[Tensor, Tensor]]]:
        outer, self._outputs = self._outputs, []
        try:
            yield self._outputs
        finally:
            self._outputs = outer


def closure_in(args: Sequence[Any], kwargs: dict[str, Any]) -> Closure | None:
    """The closure among the arguments of `step`, positional or by keyword; None without one."""
    given = kwargs.get("closure")
    if given is not None:
        return given
    return next((argument for argument in args if callable(argument)), None)


def _replaced(
    args: Sequence[Any], kwargs: dict[str, Any], closure: Closure, by: Closure
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of `optimizer.step`, with another closure in the place of the user's."""
    return (
        [by if argument is closure else argument for argument in args],
        {name: by if value is closure else value for name, value in kwargs.items()},
    )


def _device_of(optimizer: torch.optim.Optimizer) -> torch.device:
    return optimizer.param_groups[0]["params"][0].device


def _gradients_of(optimizer: torch.optim.Optimizer) -> dict[int, tuple[ref[Tensor], int]]:
    """Which gradient each parameter has, and its version; holds none of them alive."""
    return {
        id(p): (ref(p.grad), p.grad._version)
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None
    }


def _changed(optimizer: torch.optim.Optimizer, before: dict[int, tuple[ref[Tensor], int]]) -> bool:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            grad = parameter.grad
            if grad is None:
                continue
            known = before.get(id(parameter))
            if known is None or known[0]() is not grad or known[1] != grad._version:
                return True
    return False


def _restore(snapshot: Snapshot) -> None:
    snapshot.restore_()
    masters = masters_of(snapshot.optimizer)
    if masters is not None:
        masters.copy_back()
