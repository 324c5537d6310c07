"""The scaler that a user asked for, built once the host's device is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gradscale.ranks import all_ranks, distributed
from gradscale.scaler import GradScaler


@dataclass(frozen=True)
class WantedScaler:
    """A scaler that is there, or the arguments of one.

    With several ranks, all of them decide alike unless `process_group` says who: the ranks of a
    trainer train one model.
    """

    given: GradScaler | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def build(self, device: str) -> GradScaler:
        """The scaler given, or a new one.

        Args:
            device: of the host, used where the user named none.
        """
        if self.given is not None:
            return self.given
        arguments: dict[str, Any] = {"device": device, "process_group": all_ranks()}
        return GradScaler(**{**arguments, **self.arguments})


def device_of(host: object) -> str:
    """The kind of device that a host trains on; where it does not say, the accelerator's."""
    device = getattr(host, "device", None)
    if isinstance(device, torch.device):
        return device.type
    if isinstance(device, str) and device:
        return device.partition(":")[0]
    accelerator = torch.accelerator.current_accelerator()
    return "cpu" if accelerator is None else accelerator.type


def join_ranks(scaler: GradScaler) -> None:
    """Has a scaler that was made before there were ranks decide with all of them.

    Called before the first backward pass, where no step is under way.
    """
    if scaler.process_group is None and distributed():
        scaler.process_group = all_ranks()
