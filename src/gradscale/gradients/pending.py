"""Gradients that outlive `update()`: brought to the current scale before more are added to them.

Between two `update()` calls all gradients of an optimizer are scaled by the same S. What is still
in `.grad` when the next loss is scaled was divided already, or sits at the scale of before. Adding
to it as it stands would mix scales: torch's scaler turns 1 + 1 into 1.125 that way.

Known are the optimizers that this scaler has unscaled or stepped before. Those whose gradients are
None (`zero_grad()`, the usual case) cost a look at each parameter, those with zeros one pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol
from weakref import ref

import torch
from torch import Tensor

from gradscale.gradients.left_over import LeftOver
from gradscale.gradients.master_weights import masters_of
from gradscale.gradients.step_fate import StepFate
from gradscale.gradients.unscale import (
    Flags,
    Groups,
    check_groups,
    collect_gradients,
    multiply_and_check_,
)
from gradscale.optimizer_parameters import parameters_of


class Handled(Protocol):
    """What a step that ends knows of one optimizer."""

    @property
    def untouched(self) -> bool:
        """Whether its gradients are where the backward pass has left them."""
        ...

    def left_at(self, scale: Tensor) -> Tensor | StepFate | None:
        """The scale of its gradients after the step; None if they were divided for certain."""
        ...


class PendingGradients:
    """Remembers the optimizers and the scale at which each left its gradients."""

    def __init__(self) -> None:
        self._optimizers: dict[int, ref[torch.optim.Optimizer]] = {}
        self._left_at: dict[int, Tensor | StepFate | None] = {}
        self._fresh = False

    def note(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer whose gradients this scaler handles."""
        key = id(optimizer)
        known = self._optimizers.get(key)
        if known is None or known() is not optimizer:
            self._optimizers[key] = ref(optimizer)
            self._left_at.pop(key, None)

    def knows(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether this scaler has handled its gradients before."""
        known = self._optimizers.get(id(optimizer))
        return known is not None and known() is optimizer

    def optimizer(self, key: int) -> torch.optim.Optimizer | None:
        """The optimizer of this id; None if there is none any more."""
        known = self._optimizers.get(key)
        return None if known is None else known()

    def divided(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether its gradients are left over from a step before, and were divided then."""
        key = id(optimizer)
        return self._fresh and self.knows(optimizer) and self._left_at.get(key, optimizer) is None

    def expect_divided(self, optimizer: torch.optim.Optimizer) -> None:
        """Called in mid-step: its gradients are divided, and may be added to from now on."""
        self.note(optimizer)
        self._left_at[id(optimizer)] = None
        self._fresh = True

    def leave(self, records: Mapping[int, Handled], scale: Tensor) -> None:
        """Called by `update()` before the scale changes.

        Args:
            records: of the step that ends, by `id(optimizer)`.
            scale: the scale of the step that ends.
        """
        kept: Tensor | None = None
        # A copy, because those that are gone are taken out on the way.
        for key, reference in list(self._optimizers.items()):
            if reference() is None:
                del self._optimizers[key]
                self._left_at.pop(key, None)
                continue
            record = records.get(key)
            if record is None or record.untouched:
                # A second `update` without a `scale` between finds the gradients where they were.
                if not (self._fresh and key in self._left_at):
                    kept = scale.clone() if kept is None else kept
                    self._left_at[key] = kept
            else:
                self._left_at[key] = record.left_at(scale)
        self._fresh = True

    def bring_to(self, scale: Tensor, after_skip: bool = False) -> dict[int, LeftOver]:
        """Called by `scale()`: multiplies what is left in `.grad` up to `scale`, once a step.

        Args:
            scale: of the step that begins.
            after_skip: whether the step before was skipped, as far as anybody knows.

        Returns:
            What was left after a skip, by `id(optimizer)`, and whether it was finite.
        """
        if not self._fresh:
            return {}
        found: dict[int, LeftOver] = {}
        self._fresh = False
        left, self._left_at = self._left_at, {}
        # What one optimizer has divided is divided, whatever another that shares it has left.
        done: set[int] = set()
        for key, left_at in sorted(left.items(), key=lambda item: item[1] is not None):
            optimizer = self._optimizers[key]()
            if optimizer is None:
                continue
            masters = masters_of(optimizer)
            if masters is not None:
                masters.agree()
            groups, _ = collect_gradients(optimizer, done)
            # Of one optimizer nothing is shared, and a set of ids costs more than all the rest.
            if len(left) > 1:
                done.update(map(id, parameters_of(optimizer)))
            if groups:
                if left_at is not None and not isinstance(left_at, Tensor):
                    # What a fused step has left is known on the device alone, and is answered
                    # there.
                    left_at = left_at.left_at()
                factor = scale if left_at is None else scale / left_at
                if not (factor.device.type == "cpu" and factor.item() == 1):
                    flags = _multiply_(groups, factor)
                else:
                    flags = check_groups(groups) if after_skip else {}
                if after_skip:
                    found[key] = LeftOver.of(optimizer, flags)
        return found


def _multiply_(groups: Groups, factor: Tensor) -> Flags:
    """Multiplies in place; the flags say what was not finite before."""
    flags: Flags = {}
    with torch.no_grad():
        for device, by_dtype in groups.items():
            flags[device] = torch.zeros((), dtype=torch.float32, device=device)
            for grads in by_dtype.values():
                # Through the check-and-unscale kernel, whose factor is float32 for every dtype.
                multiply_and_check_(grads, flags[device], factor.to(device))
    return flags
