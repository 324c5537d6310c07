"""`GradScaler`: carries a policy, a plan and their state through a training step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.amp.grad_scaler import OptState, _refresh_per_optimizer_state

from gradscale.gradients.flags import inverse
from gradscale.gradients.pending import PendingGradients
from gradscale.outcomes.alarm import FloorAlarm
from gradscale.outcomes.ledger import Ledger
from gradscale.outcomes.outcome import OptimizerOutcome, StepOutcome
from gradscale.policies.policy import Policy
from gradscale.scaler.closures import ClosureScaler, closure_in
from gradscale.scaler.eager import eager
from gradscale.scaler.given_up import refuse_mixed
from gradscale.scaler.known_scale import KnownScale
from gradscale.scaler.settings import (
    TORCH_NUMBERS,
    build_layerwise,
    check_undo,
    choose_policy,
    present_device,
)
from gradscale.undo.degrees import Degrees, Way


class GradScaler(ClosureScaler):
    """Drop-in for `torch.amp.GradScaler`: every policy, every optimizer, nothing silent.

        scaler.scale(loss).backward()   # gradients at S times their value
        scaler.unscale_(optimizer)      # optional, to clip: before it, norms are S times too large
        scaler.step(optimizer)          # divides, checks, steps or skips
        scaler.update()                 # the policy chooses the next S

    Where torch's scaler is right the results are the same bits. Where it differs: the quotient is
    checked too, bad data never lowers the scale, the scale is never zero, a skip is visible.

    Args:
        device: as in torch. Without CUDA, ``"cuda"`` falls back to the accelerator or CPU that is
            there, with a warning; torch switches scaling off.
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
        process_group: the ranks that must decide alike, as a group or a device mesh; all ranks if
            `layerwise`. Sharded parameters (DTensor) are recognized without it. Without it, with
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
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
        *,
        policy: Policy | None = None,
        undo: Way | Degrees = "gradient",
        sync_free: bool = False,
        layerwise: Any = False,
        process_group: Any = None,
        on_skip: Callable[[OptimizerOutcome], object] | None = None,
    ) -> None:
        numbers = (init_scale, growth_factor, backoff_factor, growth_interval)
        self.policy = choose_policy(policy, enabled, dict(zip(TORCH_NUMBERS, numbers, strict=True)))
        device = present_device(device) if enabled else device
        super().__init__(device, enabled=False)
        self._enabled = enabled
        first = getattr(self.policy, "init_scale", None)
        self._init_scale = float(self.policy.init().scale if first is None else first)
        self._init_growth_tracker = 0
        self._scale = self._growth_tracker = self._state = self._loaded = None
        self._per_optimizer_states = defaultdict(_refresh_per_optimizer_state)
        self.process_group = process_group
        self.last_step = StepOutcome()
        self._names = {}
        self._ledger = Ledger()
        if on_skip is not None:
            self.on_skip(on_skip)
        self._alarm = FloorAlarm()
        self._pending, self._known = PendingGradients(), KnownScale()
        self._undo, self._sync_free = check_undo(undo, sync_free), sync_free
        self._layerwise = build_layerwise(layerwise, process_group) if enabled else None
        self._begin_step()

    @eager
    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the optimizer's gradients by the scale, once a step; `step` does it otherwise.

        Raises:
            RuntimeError: if called twice in one step, or after `step`.
        """
        if not self._enabled:
            return
        scale = self._scale
        if scale is None:
            scale, _ = self._check_scale_growth_tracker("unscale_")
        record = self._per_optimizer_states[id(optimizer)]
        if record["stage"] is OptState.UNSCALED:
            refuse_mixed(record, "unscale_")
            raise RuntimeError(
                "`unscale_(optimizer)` has already been called on this optimizer since the last "
                "update(). Call it once, after the last backward()."
            )
        if record["stage"] is OptState.STEPPED:
            raise RuntimeError(
                "`unscale_(optimizer)` is being called after step(). Call it before, or call "
                "update() first to begin the next step."
            )
        if "micro_batches" in record:
            self._deliver(optimizer, record)
        else:
            self._divide(optimizer, record, inverse(scale))

    @eager
    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
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
            RuntimeError: if called twice in one step, or if a closure does not scale its loss.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        closure = closure_in(args, kwargs) if args or kwargs else None
        if closure is None and self._scale is None:
            self._check_scale_growth_tracker("step")
        if self._step_closed:
            self.last_step, self._step_closed = StepOutcome(), False
        record = self._per_optimizer_states[id(optimizer)]
        if record["stage"] is OptState.STEPPED:
            raise RuntimeError(
                "`step(optimizer)` has already been called since the last update(). Call update() "
                "once a step, also if an exception came between the two."
            )
        refuse_mixed(record, "step")
        if closure is not None:
            result = self._closure_step(optimizer, record, closure, args, kwargs)
            record["stage"] = OptState.STEPPED
            return result
        if record["stage"] is OptState.READY:
            if "micro_batches" in record:
                self._deliver(optimizer, record)
            elif self._carries(optimizer):
                self._leave_scaled(optimizer, record)
            elif not (
                getattr(optimizer, "_step_supports_amp_scaling", False)
                and self._gradients.deferrable(optimizer)
            ):
                self.unscale_(optimizer)
        result = self._take_step(optimizer, record, *args, **kwargs)
        record["stage"] = OptState.STEPPED
        return result
