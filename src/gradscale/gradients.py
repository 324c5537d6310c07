"""The gradients of one step: whose they are, divided once, checked, measured, agreed on by all ranks."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor

from gradscale.policies.policy import Need, Observation
from gradscale.ranks import reduce_max_, reduce_sum_, sharding_groups
from gradscale.unscale import (
    Groups,
    check_groups,
    exponent_counts,
    finite_amax,
    gradient_values,
    group_gradients,
    multiplied,
    unscale_groups_,
)

Flags = dict[torch.device, Tensor]


class StepGradients:
    """What the optimizers of one step own, from the first `unscale_` to `update()`.

    Args:
        needs: what the policy wants measured.
        process_group: ranks that decide alike, beside those of distributed gradients; or None.
    """

    def __init__(self, needs: Set[Need], process_group: Any) -> None:
        self._needs = needs
        self._process_group = process_group
        self._owned: dict[int, list[Tensor]] = {}
        self._measured: list[dict[str, Tensor]] = []

    def owned_by(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """The optimizer's parameters that have a gradient."""
        if id(optimizer) not in self._owned:
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            self._owned[id(optimizer)] = [p for p in parameters if p.grad is not None]
        return self._owned[id(optimizer)]

    def shares(self, optimizer: torch.optim.Optimizer) -> set[int]:
        """The ids of parameters that another optimizer of this step has divided already."""
        others = [owned for key, owned in self._owned.items() if key != id(optimizer)]
        if not others:
            return set()
        divided = {id(parameter) for owned in others for parameter in owned}
        return divided.intersection(map(id, self.owned_by(optimizer)))

    def divide_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor
    ) -> Flags:
        """Multiplies by `inv_scale` what is not divided yet; flags what is not finite, by device."""
        fresh, divided = self._groups(optimizer)
        flags = unscale_groups_(fresh, inv_scale, found_inf)
        if divided:
            flag = flags.get(found_inf.device, found_inf)
            flags.update(unscale_groups_(divided, torch.ones_like(inv_scale), flag))
        self._measure(fresh)
        return self._agreed(optimizer, flags, found_inf)

    def check(self, optimizer: torch.optim.Optimizer, scale: Tensor) -> Flags:
        """Flags gradients that are, or divided by `scale` would be, not finite; writes nothing."""
        fresh, _ = self._groups(optimizer)
        inv_scale = scale.reciprocal()
        flags = check_groups(fresh, inv_scale)
        if self._needs:
            self._measure(multiplied(fresh, inv_scale) if "exponents" in self._needs else fresh)
            if "exponents" not in self._needs:
                self._measured[-1]["amax"].mul_(inv_scale)
        return self._agreed(optimizer, flags, scale)

    def quotient_overflowed(self, optimizer: torch.optim.Optimizer, scale: Tensor) -> bool:
        """Whether a gradient that was divided is not finite. One pass, one host read."""
        one = torch.ones_like(scale)
        values = (gradient_values(parameter) for parameter in self.owned_by(optimizer))
        groups = group_gradients(value for value in values if value is not None)
        flags = self._agreed(optimizer, unscale_groups_(groups, one, one - 1), scale)
        return any(flag.item() for flag in flags.values())

    def observation(self, found_inf: Tensor) -> Observation:
        """What the policy may see of this step."""
        amaxes = [measured["amax"] for measured in self._measured if "amax" in measured]
        counts = [measured["exponents"] for measured in self._measured if "exponents" in measured]
        return Observation(
            found_inf,
            torch.stack(amaxes).amax() if amaxes else None,
            torch.stack(counts).sum(0) if counts else None,
        )

    def _groups(self, optimizer: torch.optim.Optimizer) -> tuple[Groups, Groups]:
        owned = self.owned_by(optimizer)
        shared = self.shares(optimizer)
        fresh: list[Tensor] = []
        divided: list[Tensor] = []
        for parameter in owned:
            values = gradient_values(parameter)
            if values is not None:
                (divided if id(parameter) in shared else fresh).append(values)
        return group_gradients(fresh), group_gradients(divided)

    def _agreed(self, optimizer: torch.optim.Optimizer, flags: Flags, like: Tensor) -> Flags:
        if not flags:
            flags = {like.device: torch.zeros((), dtype=torch.float32, device=like.device)}
        groups = sharding_groups(self.owned_by(optimizer))
        if self._process_group is not None:
            groups.append(self._process_group)
        if groups:
            reduce_max_(flags.values(), groups)
        return flags

    def _measure(self, groups: Groups) -> None:
        if not self._needs:
            return
        device = next(iter(groups), torch.device("cpu"))
        measured: dict[str, Tensor] = {}
        if "amax" in self._needs:
            measured["amax"] = finite_amax(groups, device)
        if "exponents" in self._needs:
            measured["exponents"] = exponent_counts(groups, device)
        if self._process_group is not None:
            reduce_max_([measured["amax"]] if "amax" in measured else [], [self._process_group])
            sums = [measured["exponents"]] if "exponents" in measured else []
            reduce_sum_(sums, [self._process_group])
        self._measured.append(measured)
