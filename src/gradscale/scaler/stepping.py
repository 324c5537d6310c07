"""How an optimizer's gradients are divided and its step is taken or skipped."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from gradscale.gradients.flags import combined, inverse, read_together
from gradscale.gradients.pending import PendingGradients
from gradscale.gradients.step_gradients import StepGradients
from gradscale.gradients.unscale import Flags
from gradscale.outcomes.outcome import Evidence, OptimizerOutcome
from gradscale.scaler.fused import handed_over
from gradscale.scaler.reporting import ReportingScaler


class SteppingScaler(ReportingScaler):
    """A scaler that knows how unfused and fused optimizers step."""

    _evidence: Evidence
    _gradients: StepGradients
    _pending: PendingGradients

    def _unscale_grads_(
        self,
        optimizer: torch.optim.Optimizer,
        inv_scale: Tensor,
        found_inf: Tensor,
        allow_fp16: bool,
    ) -> Flags:
        self._pending.note(optimizer)
        with torch.no_grad():
            return self._gradients.divide_(optimizer, inv_scale, found_inf)

    def _check_inf_per_device(self, optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
        scale, _ = self._check_scale_growth_tracker("_check_inf_per_device")
        self._pending.note(optimizer)
        with torch.no_grad():
            flags = self._gradients.check(optimizer, inverse(scale))
        self._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = flags
        return flags

    def _maybe_opt_step(
        self,
        optimizer: torch.optim.Optimizer,
        optimizer_state: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> float | None:
        flags = list(optimizer_state["found_inf_per_device"].values())
        scale = cast(Tensor, self._scale)
        outcome = OptimizerOutcome(optimizer, flags, scale, self._evidence)
        skipped, value = read_together(flags, scale)
        if not skipped and value < 1:
            skipped = outcome.unrepresentable = self._quotient_overflowed(optimizer, flags)
        outcome.settle(skipped, value, self.process_group)
        optimizer_state["outcome"] = outcome
        self.last_step.add(outcome)
        return None if skipped else optimizer.step(*args, **kwargs)

    def _quotient_overflowed(self, optimizer: torch.optim.Optimizer, flags: list[Tensor]) -> bool:
        with torch.no_grad():
            found = self._gradients.check(optimizer, torch.ones_like(cast(Tensor, self._scale)))
        overflowed = any(flag.item() for flag in found.values())
        if overflowed:
            flags[0].fill_(1.0)
        return overflowed

    def _fused_opt_step(
        self,
        optimizer: torch.optim.Optimizer,
        optimizer_state: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> float | None:
        divided = optimizer_state["stage"] is OptState.UNSCALED
        flags: Flags = optimizer_state["found_inf_per_device"]
        scale = cast(Tensor, self._scale)
        on_cpu = scale.device.type == "cpu"
        if not divided:
            flags = self._check_inf_per_device(optimizer)
        elif not on_cpu or scale.item() < 1:
            with torch.no_grad():
                again = self._gradients.check(optimizer, torch.ones_like(scale))
            for device, flag in flags.items():
                torch.maximum(flag, again.get(device, flag), out=flag)
        found_inf = combined(list(flags.values()), scale.device)
        at = scale if on_cpu else scale.clone()
        outcome = OptimizerOutcome(optimizer, [found_inf], at, self._evidence)
        if on_cpu:
            outcome.settle(bool(found_inf.item()), scale.item(), self.process_group)
        optimizer_state["outcome"] = outcome
        self.last_step.add(outcome)
        with handed_over(optimizer, None if divided else at, found_inf):
            result = optimizer.step(*args, **kwargs)
        if not divided:
            self._gradients.mark_divided(optimizer, outcome)
        return result
