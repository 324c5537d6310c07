"""The gradients of one step: divided once, checked, measured, agreed on by all ranks."""

from __future__ import annotations

from collections.abc import Set

import torch
from torch import Tensor

from gradscale.gradients.clip import sum_duplicates_
from gradscale.gradients.master_weights import masters_of
from gradscale.gradients.step_fate import StepFate
from gradscale.gradients.unscale import (
    Flags,
    Groups,
    check_groups,
    collect_gradients,
    exponent_counts,
    finite_amax,
    unscale_groups_,
)
from gradscale.optimizer_parameters import parameters_of
from gradscale.policies.policy import Need, Observation
from gradscale.ranks import Ranks, groups_of, reduce_max_, reduce_sum_


class StepGradients:
    """What the optimizers of one step own, from the first `unscale_` to `update()`.

    Args:
        needs: what the policy wants measured.
        process_group: ranks that decide alike, beside those of sharded parameters; or None.
    """

    def __init__(self, needs: Set[Need], process_group: Ranks | None) -> None:
        self.needs = needs
        self.process_group = process_group
        self._divided: list[tuple[torch.optim.Optimizer, StepFate | None]] = []
        self._measured: list[tuple[torch.optim.Optimizer, dict[str, Tensor]]] = []

    def mark_divided(
        self, optimizer: torch.optim.Optimizer, outcome: StepFate | None = None
    ) -> None:
        """Notes that an optimizer's gradients are divided; by an `outcome`, unless skipped."""
        self._divided.append((optimizer, outcome))

    def forget(self, optimizer: torch.optim.Optimizer) -> None:
        """Called when its step is given up: what it had divided and measured counts no more."""
        self._divided = [pair for pair in self._divided if pair[0] is not optimizer]
        self._measured = [pair for pair in self._measured if pair[0] is not optimizer]

    def forget_divided(self) -> None:
        """Called before another backward pass of the same step: what it fills is scaled again."""
        self._divided.clear()

    def shared(self, optimizer: torch.optim.Optimizer) -> set[int]:
        """The ids of its parameters that another optimizer of this step has divided already.

        Reads the host if that other one is fused, shares parameters, and is not on the CPU.
        """
        shared: set[int] = set()
        for other, outcome in self._divided:
            if other is optimizer:
                continue
            common = set(map(id, parameters_of(other))) & set(map(id, parameters_of(optimizer)))
            if common and not (outcome is not None and outcome.skipped):
                shared |= common
        return shared

    def deferrable(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether its gradients may stay scaled until it steps.

        Not if the policy measures them, or if another optimizer has divided some of them.
        """
        return not self.needs and not (self._divided and self.shared(optimizer))

    def divide_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor
    ) -> Flags:
        """Multiplies by `inv_scale` what is not divided yet; flags by device what is not finite."""
        if self.needs:
            sum_duplicates_(parameters_of(optimizer))  # what is measured is the sum of their parts
        # Nearly every step: one optimizer after another, nothing shared, nothing to measure.
        if not self._divided and not self.needs and masters_of(optimizer) is None:
            groups, _ = collect_gradients(optimizer)
            return self.agreed(optimizer, unscale_groups_(groups, inv_scale, found_inf), found_inf)
        shared, masters = self.shared(optimizer), masters_of(optimizer)
        flags, widened = ({}, set()) if masters is None else masters.widen_(inv_scale, found_inf)
        fresh, others = collect_gradients(optimizer, shared | widened)
        _merge(flags, unscale_groups_(fresh, inv_scale, found_inf))
        # Another optimizer has divided these; checked here, too, both of them skip.
        if others and shared:
            one = torch.ones_like(inv_scale)
            _merge(flags, unscale_groups_(others, one, found_inf))
        if self.needs:
            measured = collect_gradients(optimizer, shared)[0] if widened else fresh
            self._measure(optimizer, measured, found_inf.device)
        return self.agreed(optimizer, flags, found_inf)

    def check(
        self, optimizer: torch.optim.Optimizer, like: Tensor, factor: Tensor | None = None
    ) -> Flags:
        """Flags gradients that are, or times `factor` would be, not finite.

        Changes nothing, except that gradients in half precision become float32 ones of the masters.

        Args:
            optimizer: whose gradients.
            like: a tensor on the device that communicates.
            factor: float32 0-d; None for one that no finite gradient overflows with.
        """
        flags: Flags = {}
        widened: set[int] = set()
        masters = masters_of(optimizer)
        if masters is not None:
            one, none = torch.ones_like(like), torch.zeros_like(like)
            flags, widened = masters.widen_(one, none, factor)
        groups, _ = collect_gradients(optimizer, widened)
        _merge(flags, check_groups(groups, factor))
        return self.agreed(optimizer, flags, like)

    def observation(self, found_inf: Tensor) -> Observation:
        """What the policy may see of this step."""
        if not self.needs:
            return Observation(found_inf)
        found = [measured for _, measured in self._measured]
        amaxes = [measured["amax"] for measured in found if "amax" in measured]
        counts = [measured["exponents"] for measured in found if "exponents" in measured]
        return Observation(
            found_inf,
            # One network to the policy, however many optimizers train it.
            torch.stack(amaxes).amax() if amaxes else None,
            torch.stack(counts).sum(0) if counts else None,
        )

    def agreed(self, optimizer: torch.optim.Optimizer, flags: Flags, like: Tensor) -> Flags:
        """The flags on which all ranks that share this optimizer's step agree.

        Args:
            optimizer: whose ranks.
            flags: this rank's, by device; may be empty.
            like: a tensor on the device that communicates.
        """
        if not flags:
            flags = {like.device: torch.zeros((), dtype=torch.float32, device=like.device)}
        groups = groups_of(optimizer, self.process_group)
        if groups:
            # One flag a rank: ranks may hold their gradients on different numbers of devices.
            total = torch.stack([flag.to(like.device) for flag in flags.values()]).amax()
            reduce_max_([total], groups)
            flags = {device: total.to(device) for device in flags}
        return flags

    def measure(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        """Measures divided gradients for the policy, if it needs that."""
        if self.needs:
            sum_duplicates_(parameters_of(optimizer))
            self._measure(optimizer, collect_gradients(optimizer)[0], device)

    def _measure(
        self, optimizer: torch.optim.Optimizer, groups: Groups, device: torch.device
    ) -> None:
        measured: dict[str, Tensor] = {}
        ranks = groups_of(optimizer, self.process_group)
        if "amax" in self.needs:
            measured["amax"] = finite_amax(groups, device)
            reduce_max_([measured["amax"]], ranks)
        if "exponents" in self.needs:
            measured["exponents"] = exponent_counts(groups, device)
            reduce_sum_([measured["exponents"]], ranks)
        self._measured.append((optimizer, measured))


def _merge(flags: Flags, more: Flags) -> None:
    for device, flag in more.items():
        flags[device] = torch.maximum(flags[device], flag) if device in flags else flag
