"""Gradients that outlive `update()`: brought to the current scale before more are added to them.

Between two `update()` calls all gradients of an optimizer are scaled by the same S. What is still in
`.grad` when the next loss is scaled was divided already, or sits at the scale of before. Adding to
it as it stands would mix scales: torch's scaler turns 1 + 1 into 1.125 that way.
"""

from __future__ import annotations

from weakref import ref

import torch
from torch import Tensor

from gradscale.unscale import gradient_values, group_gradients


class PendingGradients:
    """Remembers the optimizers and the scale at which each left its gradients."""

    def __init__(self) -> None:
        self._optimizers: dict[int, ref[torch.optim.Optimizer]] = {}
        self._left_at: dict[int, Tensor | None] = {}
        self._fresh = True

    def note(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer whose gradients this scaler handles."""
        key = id(optimizer)
        known = self._optimizers.get(key)
        if known is None or known() is not optimizer:
            self._optimizers[key] = ref(optimizer)
            self._left_at.pop(key, None)

    def leave(self, divided: dict[int, Tensor | None], scale: Tensor) -> None:
        """Called by `update()` before the scale changes.

        Args:
            divided: by `id(optimizer)` of those that stepped: None if its gradients were divided by
                the scale for certain, else the flag that is above 0 where they were not (a fused
                optimizer that skipped).
            scale: the scale of the step that ends.
        """
        self._fresh = True
        kept: Tensor | None = None
        for key in list(self._optimizers):
            if self._optimizers[key]() is None:
                del self._optimizers[key]
                self._left_at.pop(key, None)
            elif key not in divided:
                kept = scale.clone() if kept is None else kept
                self._left_at[key] = kept
            else:
                flag = divided[key]
                self._left_at[key] = None if flag is None else torch.where(flag > 0, scale, 1.0)

    def bring_to(self, scale: Tensor) -> None:
        """Called by `scale()`: multiplies what is left in `.grad` up to `scale`, once a step."""
        if not self._fresh:
            return
        self._fresh = False
        for key, left_at in self._left_at.items():
            optimizer = self._optimizers[key]()
            if optimizer is None:
                continue
            gradients = [
                values
                for group in optimizer.param_groups
                for parameter in group["params"]
                if parameter.grad is not None and (values := gradient_values(parameter)) is not None
            ]
            if gradients:
                factor = scale if left_at is None else scale / left_at
                _multiply_(gradients, factor)


def _multiply_(gradients: list[Tensor], factor: Tensor) -> None:
    with torch.no_grad():
        for device, by_dtype in group_gradients(gradients).items():
            on_device = factor.to(device=device, non_blocking=True)
            for grads in by_dtype.values():
                torch._foreach_mul_(grads, on_device)
