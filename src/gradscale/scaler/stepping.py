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
from gradscale.undo.carry import carried
from gradscale.undo.degrees import Degrees, Way, degrees_once
from gradscale.undo.select import mark_taken, prepared, selected

SQUARES_OVERFLOW = 2.0**65
"""Times a gradient of 2^63 or more, it overflows: its square would not be finite."""
SUMS_OVERFLOW = 2.0**24
"""Times a gradient of 2^104 or more, it overflows: momentum would, summing millions of them."""
LOW = 2.0**60
"""Up to this scale gradients that reach 2^104 scaled are beyond 2^44 themselves."""


class SteppingScaler(ReportingScaler):
    """A scaler that knows how unfused and fused optimizers step.

    What a step needs to know of an optimizer is in its record, beside torch's entries: `divided`
    (its gradients are), `scaled` (they stay at S until after its step), `grad_scale` (what a fused
    optimizer divides by) and `degrees` (how its numbers follow the scale).
    """

    _evidence: Evidence
    _gradients: StepGradients
    _pending: PendingGradients
    _undo: Way | Degrees = "gradient"
    _sync_free = False

    def _unscale_grads_(
        self,
        optimizer: torch.optim.Optimizer,
        inv_scale: Tensor,
        found_inf: Tensor,
        allow_fp16: bool,
    ) -> Flags:
        self._pending.note(optimizer)
        # `torch.no_grad()`, without the five calls that it makes each step.
        before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # pyright: ignore[reportPrivateUsage]
        try:
            return self._gradients.divide_(optimizer, inv_scale, found_inf)
        finally:
            torch._C._set_grad_enabled(before)  # pyright: ignore[reportPrivateUsage]

    def _divide(
        self, optimizer: torch.optim.Optimizer, record: dict[str, Any], factor: Tensor
    ) -> None:
        """Multiplies the gradients by 1/S, or by 1/S and more, and notes what they are now."""
        found_inf = torch.zeros_like(factor)
        record["found_inf_per_device"] = self._unscale_grads_(optimizer, factor, found_inf, True)
        record["stage"], record["divided"] = OptState.UNSCALED, True
        self._gradients.mark_divided(optimizer)
        if self._layerwise is not None:
            self._layerwise.after_unscale(optimizer)

    def _check_inf_per_device(self, optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
        scale, _ = self._check_scale_growth_tracker("_check_inf_per_device")
        self._pending.note(optimizer)
        fits = self._scale_at_least(scale) >= 1
        with torch.no_grad():
            flags = self._gradients.check(optimizer, scale, None if fits else inverse(scale))
        self._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = flags
        return flags

    def _scale_at_least(self, scale: Tensor) -> float:
        """A bound from below that costs nothing: no quotient overflows from 1 on."""
        return scale.item() if scale.is_cpu else self._known.at_least(scale)

    def _carries(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the optimizer's own numbers absorb the scale."""
        return (
            self._undo != "gradient"
            and not getattr(optimizer, "_step_supports_amp_scaling", False)
            and self._gradients.deferrable(optimizer)
        )

    def _leave_scaled(self, optimizer: torch.optim.Optimizer, record: dict[str, Any]) -> None:
        """Checks gradients that the optimizer will take as they are."""
        degrees = degrees_once(optimizer, self._undo)
        scale = cast(Tensor, self._scale)
        # On an accelerator a factor means the check that writes nothing: that is what this saves.
        factor = None if scale.is_cpu and scale.item() >= 1 else inverse(scale)
        least = 0.0
        if degrees.squares:
            least = SQUARES_OVERFLOW
        elif degrees.state and (factor is not None or scale.item() > LOW):
            least = SUMS_OVERFLOW
        if least:
            factor = torch.full_like(scale, least) if factor is None else factor.clamp(min=least)
        self._pending.note(optimizer)
        with torch.no_grad():
            flags = self._gradients.check(optimizer, scale, factor)
        record |= {"found_inf_per_device": flags, "degrees": degrees, "scaled": True}

    def _outcome(
        self,
        optimizer: torch.optim.Optimizer,
        record: dict[str, Any],
        flags: list[Tensor],
        scale: Tensor,
    ) -> OptimizerOutcome:
        outcome = OptimizerOutcome(optimizer, flags, scale, self._evidence)
        if "dropped" in record:
            outcome.dropped_micro_batches = record["dropped"]
        record["outcome"] = outcome
        self.last_step.add(outcome)
        return outcome

    def _take_step(
        self, optimizer: torch.optim.Optimizer, record: dict[str, Any], *args: Any, **kwargs: Any
    ) -> float | None:
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            return self._fused_opt_step(optimizer, record, *args, **kwargs)
        if self._undo != "gradient":
            record.setdefault("degrees", degrees_once(optimizer, self._undo))
        elif self._sync_free and prepared(optimizer):
            return self._selected_opt_step(optimizer, record, *args, **kwargs)
        return self._maybe_opt_step(optimizer, record, *args, **kwargs)

    def _maybe_opt_step(
        self,
        optimizer: torch.optim.Optimizer,
        optimizer_state: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> float | None:
        flags = list(optimizer_state["found_inf_per_device"].values())
        scale = cast(Tensor, self._scale)
        outcome = self._outcome(optimizer, optimizer_state, flags, scale)
        skipped, value = read_together(flags, scale)
        if not scale.is_cpu:
            self._known.note(scale, value)
        scaled = "scaled" in optimizer_state
        if not skipped and value < 1 and not scaled:
            skipped = outcome.unrepresentable = self._quotient_overflowed(optimizer, flags)
        outcome.settle(skipped, value, self.process_group)
        if skipped:
            return None
        degrees: Degrees | None = optimizer_state.get("degrees")
        if degrees is None:
            result = optimizer.step(*args, **kwargs)
            if self._sync_free:
                mark_taken(optimizer)
            return result
        with carried(optimizer, degrees, value if scaled else 1.0):
            return optimizer.step(*args, **kwargs)

    def _quotient_overflowed(self, optimizer: torch.optim.Optimizer, flags: list[Tensor]) -> bool:
        with torch.no_grad():
            found = self._gradients.check(optimizer, cast(Tensor, self._scale))
        overflowed = any(flag.item() for flag in found.values())
        if overflowed:
            flags[0].fill_(1.0)
        return overflowed

    def _selected_opt_step(
        self, optimizer: torch.optim.Optimizer, record: dict[str, Any], *args: Any, **kwargs: Any
    ) -> float | None:
        """A step that the device takes or leaves: nothing is read on the host."""
        scale = cast(Tensor, self._scale)
        flags: Flags = record["found_inf_per_device"]
        if self._scale_at_least(scale) < 1:
            flags = self._with_quotients(optimizer, record)
        found_inf = combined(list(flags.values()), scale.device)
        self._outcome(optimizer, record, [found_inf], scale.clone())
        with selected(optimizer, found_inf):
            return optimizer.step(*args, **kwargs)

    def _with_quotients(self, optimizer: torch.optim.Optimizer, record: dict[str, Any]) -> Flags:
        """The flags, also of divided gradients that are not finite, though they were before.

        Those are no fault of the scale, so the record keeps them apart, under "beyond".
        """
        scale = cast(Tensor, self._scale)
        flags: Flags = record["found_inf_per_device"]
        with torch.no_grad():
            again = self._gradients.check(optimizer, scale)
        both = {d: torch.maximum(flag, again.get(d, flag)) for d, flag in flags.items()}
        after, before = (combined(list(f.values()), scale.device) for f in (both, flags))
        record["beyond"] = after - before
        return both

    def _fused_opt_step(
        self,
        optimizer: torch.optim.Optimizer,
        optimizer_state: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> float | None:
        scale = cast(Tensor, self._scale)
        on_cpu = scale.device.type == "cpu"
        at = scale if on_cpu else scale.clone()
        divisor: Tensor | None = optimizer_state.get("grad_scale")
        flags: Flags = optimizer_state["found_inf_per_device"]
        if optimizer_state["stage"] is not OptState.UNSCALED:
            flags, divisor = self._check_inf_per_device(optimizer), at
        elif divisor is None and self._scale_at_least(scale) < 1:
            flags = self._with_quotients(optimizer, optimizer_state)
        found_inf = combined(list(flags.values()), scale.device)
        outcome = self._outcome(optimizer, optimizer_state, [found_inf], at)
        if on_cpu:
            outcome.unrepresentable = bool(optimizer_state.get("beyond", False))
            outcome.settle(bool(found_inf.item()), scale.item(), self.process_group)
        with handed_over(optimizer, divisor, found_inf):
            result = optimizer.step(*args, **kwargs)
        if divisor is not None:
            self._gradients.mark_divided(optimizer, outcome)
        return result
