"""How gradients are clipped and unscaled together, in as few passes as possible."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from gradscale.accelerators import widest_float
from gradscale.gradients.clip import (
    clamp_groups_,
    known_coefficient,
    sum_duplicates_,
    true_norm,
)
from gradscale.gradients.flags import combined, inverse
from gradscale.gradients.norm import Norm, gradient_norm
from gradscale.gradients.unscale import collect_from, multiply_and_check_, not_finite
from gradscale.scaler.accumulating import AccumulatingScaler
from gradscale.scaler.eager import eager
from gradscale.scaler.given_up import refuse_mixed
from gradscale.scaler.settings import check_clip, distinct_parameters, listed
from gradscale.undo.degrees import degrees_once

SQUARES_FIT = 2.0**63
"""Gradients below it have finite squares, and sums of squares, in float32."""
SUMS_FIT = 2.0**104
"""Sums of millions of gradients below it are finite in float32."""


class _Clipping(NamedTuple):
    """What a norm comes to, each 0-d.

    Attributes:
        norm: of the gradients at S.
        true: of the unscaled ones.
        coefficient: what clips them.
        factor: what clips and unscales them.
    """

    norm: Norm
    true: Tensor
    coefficient: Tensor
    factor: Tensor


class ClippingScaler(AccumulatingScaler):
    """A scaler that clips."""

    @eager
    def clip_grad_norm_(
        self,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        foreach: bool | None = None,
    ) -> Tensor:
        """Clips the norm of an optimizer's gradients, and unscales them in the same pass.

            grad *= min(1, max_norm / (norm(grad / S) + 1e-6)) / S

        As `unscale_` and `torch.nn.utils.clip_grad_norm_` after it, in three passes over the
        gradients instead of five, and in one with a fused optimizer: that one divides by
        ``S / coefficient`` while it steps, and `.grad` stays as it is until then. Norms of sharded
        gradients (DTensor) are those of the whole. A step whose norm is not finite is skipped, and
        its gradients keep the values that tell why; no norm of finite gradients overflows.

        Args:
            optimizer: whose gradients; several optimizers are clipped by their common norm.
            max_norm: of the true, unscaled gradients.
            norm_type: the order of the norm, or ``inf``. If it is not positive, they are unscaled
                first.
            error_if_nonfinite: raise instead of skipping the step. Waits for the device.
            foreach: as in torch.

        Returns:
            The norm of the unscaled gradients before clipping, 0-d, on the device.

        Raises:
            RuntimeError: after `step`; if they were clipped and stay scaled; and as asked for.

        Example:
            >>> from gradscale import GradScaler
            >>> model = torch.nn.Linear(3, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> scaler = GradScaler("cpu")
            >>> scaler.scale(model(torch.tensor([[2.0, 4.0, 4.0]])).sum() / 3).backward()
            >>> round(scaler.clip_grad_norm_(optimizer, 1.0).item(), 3)
            2.028
            >>> scaler.step(optimizer)
            >>> scaler.update()
        """
        optimizers = listed("clip_grad_norm_", optimizer)
        parameters = distinct_parameters(optimizers)
        check_clip("clip_grad_norm_", "max_norm", max_norm)
        if not self._enabled:
            return torch.nn.utils.clip_grad_norm_(
                parameters, max_norm, norm_type, error_if_nonfinite, foreach
            )
        scale, _ = self._check_scale_growth_tracker("clip_grad_norm_")
        with torch.no_grad():
            # The other orders see no infinity, or (0) do not grow with the scale.
            together = norm_type > 0
            scaled = self._ready_to_clip("clip_grad_norm_", optimizers, len(parameters), together)
            norm = gradient_norm(parameters, float(norm_type), foreach)
            if norm is None:
                norm = Norm(torch.zeros((), device=scale.device), torch.float32)
            inv_scale = inverse(scale) if scaled else torch.ones_like(scale)
            true = true_norm(norm, inv_scale)
            if error_if_nonfinite and not math.isfinite(true.item()):
                raise RuntimeError(
                    f"`clip_grad_norm_(error_if_nonfinite=True)`: the norm of order {norm_type} is "
                    f"{true.item()}. Leave it False: `step` skips this step and `update` lowers "
                    "the scale."
                )
            coefficient = known_coefficient(true, max_norm).to(scale.device, non_blocking=True)
            if not scaled:
                self._multiply_(parameters, coefficient)
                self._flag_all(optimizers, not_finite(true))
                return true.to(norm.dtype)
            clipping = _Clipping(norm, true, coefficient, inv_scale * coefficient)
            for each in optimizers:
                self._clip_scaled(each, clipping, alone=len(optimizers) == 1)
        return true.to(norm.dtype)

    @eager
    def clip_grad_value_(
        self,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
        clip_value: float,
    ) -> None:
        """Clamps an optimizer's unscaled gradients to ``[-clip_value, clip_value]``.

        As `unscale_` and `torch.nn.utils.clip_grad_value_` after it, in four passes instead of six.
        Gradients that stay scaled until the step (fused optimizers, `undo`) are clamped to
        ``S * clip_value``. An infinite gradient is not clamped: it is an overflow, and skipped.

        Args:
            optimizer: whose gradients; may be several.
            clip_value: of the true, unscaled gradients.

        Raises:
            RuntimeError: after `step`; if they were clipped and stay scaled.

        Example:
            >>> from gradscale import GradScaler
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> scaler = GradScaler("cpu")
            >>> scaler.scale(model(torch.tensor([[0.25, 4.0]])).sum()).backward()
            >>> scaler.clip_grad_value_(optimizer, 1.0)
            >>> model.weight.grad.tolist()
            [[0.25, 1.0]]
        """
        optimizers = listed("clip_grad_value_", optimizer)
        parameters = distinct_parameters(optimizers)
        check_clip("clip_grad_value_", "clip_value", clip_value)
        if not self._enabled:
            torch.nn.utils.clip_grad_value_(parameters, clip_value)
            return
        scale, _ = self._check_scale_growth_tracker("clip_grad_value_")
        with torch.no_grad():
            scaled = self._ready_to_clip("clip_grad_value_", optimizers, len(parameters))
            if scaled and not all(map(self._stays_scaled, optimizers)):
                for each in optimizers:
                    self.unscale_(each)
                scaled = False
            for each in optimizers if scaled else ():
                self._check_only(each)
            at = scale if scaled else torch.ones_like(scale)
            bound = at.to(widest_float(scale.device)) * clip_value
            records = map(self._record, optimizers)
            flags = [flag for r in records for flag in r["found_inf_per_device"].values()]
            bound = torch.where(combined(flags, scale.device) > 0, math.inf, bound)
            sum_duplicates_(parameters)
            clamp_groups_(collect_from(parameters), bound)

    def _record(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return self._per_optimizer_states[id(optimizer)]

    def _stays_scaled(self, optimizer: torch.optim.Optimizer) -> bool:
        return self._undo != "gradient" or getattr(optimizer, "_step_supports_amp_scaling", False)

    def _ready_to_clip(
        self,
        name: str,
        optimizers: Sequence[torch.optim.Optimizer],
        distinct: int,
        together: bool = True,
    ) -> bool:
        """Whether the gradients are all at the scale still; else all of them are unscaled now."""
        for optimizer in optimizers:
            record = self._record(optimizer)
            if record["stage"] is OptState.STEPPED:
                raise RuntimeError(
                    f"`{name}(optimizer)` is being called after step(). Call it before, or call "
                    "update() first to begin the next step."
                )
            refuse_mixed(record, name)
            if "scaled" in record or "grad_scale" in record:
                raise RuntimeError(
                    f"`{name}(optimizer)`: its gradients are clipped already, and stay scaled "
                    "until step(). Clip once a step."
                )
            if "micro_batches" in record:
                self._deliver(optimizer, record)
        owned = sum(len(group["params"]) for each in optimizers for group in each.param_groups)
        deferred = together and owned == distinct and all(map(self._deferrable, optimizers))
        if not deferred:
            for optimizer in optimizers:
                if self._record(optimizer)["stage"] is OptState.READY:
                    self.unscale_(optimizer)
        return deferred

    def _deferrable(self, optimizer: torch.optim.Optimizer) -> bool:
        return (
            self._record(optimizer)["stage"] is OptState.READY
            and "evaluating" not in self._record(optimizer)
            and self._gradients.deferrable(optimizer)
            and not self._gradients.widens(optimizer)
        )

    def _clip_scaled(
        self,
        optimizer: torch.optim.Optimizer,
        clipping: _Clipping,
        alone: bool,
    ) -> None:
        """Clips gradients at S: dividing them, or leaving that to the optimizer."""
        record, scale = self._record(optimizer), cast(Tensor, self._scale)
        norm, true, coefficient, factor = clipping
        if not self._stays_scaled(optimizer):
            self._divide(optimizer, record, factor)
            if not alone:
                self._flag_all([optimizer], not_finite(true))
            return
        self._pending.note(optimizer)
        fits = true < math.inf
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            record["grad_scale"] = factor.reciprocal()
        else:
            record["degrees"], record["scaled"] = degrees_once(optimizer, self._undo), True
            if record["degrees"].state:
                largest = SQUARES_FIT if record["degrees"].squares else SUMS_FIT
                fits = fits & (norm.value < largest)
            self._multiply_([p for g in optimizer.param_groups for p in g["params"]], coefficient)
        flag = fits.logical_not().to(device=scale.device, dtype=torch.float32, non_blocking=True)
        record["found_inf_per_device"] = self._gradients.agreed(
            optimizer, {scale.device: flag}, scale
        )
        record["stage"] = OptState.UNSCALED
        if self._layerwise is not None:
            self._layerwise.after_unscale(optimizer)

    def _check_only(self, optimizer: torch.optim.Optimizer) -> None:
        record, scale = self._record(optimizer), cast(Tensor, self._scale)
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            self._check_inf_per_device(optimizer)
            record["grad_scale"] = scale.clone()
        else:
            self._leave_scaled(optimizer, record)
        record["stage"] = OptState.UNSCALED
        if self._layerwise is not None:
            self._layerwise.after_unscale(optimizer)

    def _multiply_(self, parameters: Iterable[Tensor], coefficient: Tensor) -> None:
        if coefficient.device.type == "cpu" and coefficient.item() == 1:
            return
        for device, by_dtype in collect_from(parameters).items():
            unused = torch.zeros((), device=device)
            factor = coefficient.to(device, non_blocking=True)
            for grads in by_dtype.values():
                multiply_and_check_(grads, unused, factor)

    def _flag_all(self, optimizers: Iterable[torch.optim.Optimizer], flag: Tensor) -> None:
        """Optimizers that share a norm share its fate: without it none of them can be clipped."""
        for optimizer in optimizers:
            flags = self._record(optimizer)["found_inf_per_device"]
            for device, own in flags.items():
                flags[device] = torch.maximum(own, flag.to(device, non_blocking=True))
