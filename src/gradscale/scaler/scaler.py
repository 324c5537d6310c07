"""`GradScaler`: carries a policy, a plan and their state through a training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from gradscale.layerwise import Layerwise
from gradscale.layerwise.function_verdicts import FunctionVerdicts, Injected
from gradscale.layerwise.planner_argument import layerwise_of
from gradscale.outcomes.alarm import Alarm
from gradscale.outcomes.outcome import OptimizerOutcome
from gradscale.outcomes.schedule import Follower, step_if_taken
from gradscale.plans.planner_given import PlannerArgument
from gradscale.policies.policy import Policy
from gradscale.ranks import Ranks, check_process_group
from gradscale.scaler.advancing import end_step
from gradscale.scaler.books import Books
from gradscale.scaler.closures import ClosureStep, closure_in
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.dividing import unscale_now
from gradscale.scaler.eager import eager
from gradscale.scaler.forgotten_backward import look_for_gradients
from gradscale.scaler.gradient_verbs import GradientVerbs
from gradscale.scaler.held_scale import HeldScale
from gradscale.scaler.order import refuse
from gradscale.scaler.record import DIVIDED
from gradscale.scaler.scaling import scale_without_loss, scaled
from gradscale.scaler.settings import (
    TORCH_NUMBERS,
    check_callback,
    choose_policy,
    present_device,
)
from gradscale.scaler.stepping import divided_first, step_call, step_of_its_own, take_or_skip
from gradscale.undo.degrees import Degrees, Way
from gradscale.undo.readers import steps_fused, takes_scaler
from gradscale.undo.undo import Undo

Outputs = TypeVar("Outputs")


class GradScaler(GradientVerbs):
    """Drop-in for `torch.amp.GradScaler`: every policy, every optimizer, nothing silent.

        scaler.scale(loss).backward()   # gradients at S times their value
        scaler.unscale_(optimizer)      # optional, to clip: before it, norms are S times too large
        scaler.step(optimizer)          # divides, checks, steps or skips
        scaler.update()                 # the policy chooses the next S

    Where torch's scaler is right the results are the same bits. Where it differs: the quotient is
    checked too, bad data never lowers the scale, the scale is never zero, a skip is visible.

    Args:
        device: a name, as in torch, or a `torch.device`. Without CUDA, ``"cuda"`` falls back to the
            accelerator or CPU that is there, with a warning; torch switches scaling off.
        init_scale: as in torch; these four make up the default policy `Dynamic`.
        growth_factor: see `Dynamic`.
        backoff_factor: see `Dynamic`.
        growth_interval: see `Dynamic`.
        enabled: False makes every method a pass-through, as in torch.
        policy: who chooses the scale, instead of the four numbers.
        undo: where the scale is undone: in the ``"gradient"``; in the ``"learning_rate"`` (SGD) or
            the ``"moments"`` (Adam and its kin), which saves a pass over the gradients; in
            whichever of the two the ``"optimizer"`` has; or `Degrees` of an optimizer of your own.
            Fused optimizers undo it themselves, in any case.
        sync_free: skip bad steps on the device, without a host read, whatever the optimizer.
        layerwise: True, or a planner: every part of the network gets its own scale.
        injected: what to do about `autograd.Function`s whose backward returns a gradient of its
            own, such as the auxiliary loss of a router, which no loss scaler multiplies: ``"warn"``
            looks for them in the first step and names them once, ``"scale"`` multiplies what they
            add by the scale, ``"ignore"`` is for functions that do so themselves.
        process_group: the ranks that must decide alike, as a group or a device mesh; all ranks if
            `layerwise`. Sharded parameters (DTensor, FSDP1) are recognized. Without a group, with
            several ranks, bad data counts as overflow: who cannot ask must not differ.
        on_skip: called with the `OptimizerOutcome` of every skipped step; for fused optimizers on
            an accelerator one or more steps later, when the flag has reached the host.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if a number is out of range, or both numbers and a policy are given.

    Example:
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> scaler = GradScaler("cpu")
        >>> scaler.scale(model(torch.ones(2, 4)).mean()).backward()
        >>> scaler.step(optimizer)
        >>> scaler.update()
        >>> scaler.last_step.skipped, scaler.get_scale()
        (False, 65536.0)
    """

    def __init__(
        self,
        device: str | torch.device = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
        *,
        policy: Policy | None = None,
        undo: Way | Degrees = "gradient",
        sync_free: bool = False,
        layerwise: Layerwise | PlannerArgument | None = False,
        injected: Injected = "warn",
        process_group: Ranks | None = None,
        on_skip: Callable[[OptimizerOutcome], object] | None = None,
    ) -> None:
        numbers = (init_scale, growth_factor, backoff_factor, growth_interval)
        chosen = choose_policy(policy, enabled, dict(zip(TORCH_NUMBERS, numbers, strict=True)))
        device = present_device(device) if enabled else device
        super().__init__(device, enabled=False)  # pyright: ignore[reportArgumentType]
        self._enabled = enabled
        self._undo = Undo(undo, sync_free)
        check_process_group("GradScaler", process_group)
        plan = layerwise_of(layerwise, process_group)
        self._held = HeldScale(chosen, plan, FunctionVerdicts(injected))
        self._step = CurrentStep(self._held, self._undo, process_group)
        self._books = Books(sync_free)
        if on_skip is not None:
            self.on_skip(on_skip)
        self._step.begin()

    @eager
    def scale(self, outputs: Outputs, *, inputs: object = None) -> Outputs:
        """Multiplies a loss, or a nesting of lists and tuples of them, by the scale.

        Half-precision losses are promoted to float32 first, where the product cannot overflow.
        Gradients left over from before the last `update` are brought to the current scale.

        Args:
            outputs: tensors of any shape.
            inputs: the batch, kept until the step ends, so that a bad one can be named
                (`nonfinite_input`).

        Returns:
            The same nesting, scaled; `outputs` itself if scaling is disabled.

        Raises:
            ValueError: if something in `outputs` is no tensor.
        """
        if not self._enabled:
            return outputs
        return scaled(self._step, outputs, inputs)

    @eager
    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the optimizer's gradients by the scale, once a step; `step` does it otherwise.

        Raises:
            RuntimeError: if called twice in one step, or after `step`.
        """
        if not self._enabled:
            return
        step = self._step
        scale = step.held.tensor
        if scale is None:
            scale = scale_without_loss(step, optimizer, "unscale_")
        record = step.records[id(optimizer)]
        if not record.untouched:
            refuse(record, "unscale_")
        unscale_now(step, optimizer, record, scale)

    @eager
    def step(
        self, optimizer: torch.optim.Optimizer, *args: object, **kwargs: object
    ) -> float | None:
        """Divides and checks the gradients, then steps the optimizer unless one was not finite.

        A closure (LBFGS, SAM) scales its loss itself, ``scaler.scale(loss).backward()``, and
        returns the loss. The gradients of every evaluation are divided and checked before the
        optimizer sees them; if one overflows, the step is abandoned, parameters and optimizer
        state are restored, and the step counts as skipped.

        Args:
            optimizer: any torch optimizer; one without gradients makes an ordinary step.
            args: passed on to `optimizer.step`, a closure among them.
            kwargs: passed on to `optimizer.step`.

        Returns:
            What `optimizer.step` returned; None if it was skipped. `last_step` tells them apart.

        Raises:
            AssertionError: if no backward pass has run, and there is no gradient.
            RuntimeError: if called twice in one step, or if a closure does not scale its loss.
        """
        if not self._enabled:
            return step_call(optimizer, args, kwargs)()
        closure = closure_in(args, kwargs) if args or kwargs else None
        step = self._step
        if closure is None and step.held.tensor is None:
            scale_without_loss(step, optimizer, "step")
        step.open()
        record = step.records[id(optimizer)]
        at, fused = record.at, steps_fused(optimizer)
        if at > DIVIDED:  # no place before is refused
            refuse(record, "step")
        if closure is None and not (step.backward_ran and step.bare is None):
            look_for_gradients(step, optimizer, record)
        if fused and takes_scaler(optimizer):
            call = step_call(optimizer, args, {**kwargs, "grad_scaler": self})
            return step_of_its_own(step, optimizer, record, call)
        if at < DIVIDED and closure is None and divided_first(step, optimizer, record):
            self.unscale_(optimizer)
        if closure is not None:
            return ClosureStep(step, optimizer, record).take(closure, args, kwargs)
        call = step_call(optimizer, args, kwargs) if args or kwargs else optimizer.step
        return take_or_skip(step, optimizer, record, call, fused)

    @eager
    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Ends the step: the policy sees what happened and chooses the next scale.

        A step lost to bad data (a non-finite loss, parameter or input) leaves the policy untouched.

        Args:
            new_scale: sets the scale instead; a finite normal number above 0, or a tensor of one
                element, which is brought into that range if it is on an accelerator.

        Raises:
            AssertionError: if no optimizer stepped or was unscaled since the last `update`.
            ValueError: if `new_scale` is zero, negative, subnormal, infinite or NaN.
        """
        if self._enabled:
            end_step(self._step, self._books, new_scale)

    def on_skip(self, callback: Callable[[OptimizerOutcome], object]) -> None:
        """Calls `callback` with the outcome of every skipped step from now on."""
        check_callback(f"on_skip({callback!r})", callback)
        self._books.ledger.on_skip.append(callback)

    def on_alarm(self, callback: Callable[[Alarm], object]) -> None:
        """Calls `callback` when steps are skipped again and again; `raise` in it to stop the run.

        After 20 skips of an optimizer in a row (100 for overflow, which a first scale may take
        some of), after ten times as many, and before the scale reaches its floor. A warning with
        the same words follows; the error comes out of `update()`, after the step has ended.

        Example:
            >>> from gradscale import GradScaler
            >>> from gradscale.outcomes import Alarm
            >>> def stop(alarm: Alarm) -> None:
            ...     raise SystemExit(alarm.message)
            >>> GradScaler("cpu").on_alarm(stop)
        """
        check_callback(f"on_alarm({callback!r})", callback)
        self._books.alarm.on_alarm.append(callback)

    def name_parameters(self, model: torch.nn.Module) -> None:
        """Lets outcomes and plans name this model's parts.

        Where nobody calls it, names are learnt when they are first asked for: from the optimizer,
        from `half_precision`, from a watch, or by looking for the module that owns the parameters.
        After a step lost to bad data its buffers are looked at, too: those that the forward pass
        has left infinite or NaN are named in a warning.
        """
        self._step.models.know(model)
        self._step.names.know(model)
        self._held.functions.naming.know(model)

    def step_scheduler(
        self,
        scheduler: Follower,
        *args: object,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: object,
    ) -> bool:
        """Calls `scheduler.step(...)` unless its optimizer skipped the last step; see `schedule`.

        Example:
            >>> from gradscale import GradScaler
            >>> model = torch.nn.Linear(4, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
            >>> scaler = GradScaler("cpu")
            >>> scaler.scale(model(torch.full((2, 4), torch.inf)).mean()).backward()
            >>> scaler.step(optimizer)
            >>> scaler.update()
            >>> scaler.step_scheduler(scheduler), scheduler.get_last_lr()
            (False, [0.1])
        """
        if not self._enabled:
            scheduler.step(*args, **kwargs)
            return True
        return step_if_taken(self._step.outcome, scheduler, *args, optimizer=optimizer, **kwargs)
