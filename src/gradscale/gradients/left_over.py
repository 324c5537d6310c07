"""Gradients that were there before a backward pass added to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gradscale.gradients.master_weights import trained_by
from gradscale.gradients.seen import SeenGradient, seen_gradients
from gradscale.gradients.unscale import Flags


class LeftOver(NamedTuple):
    """What an optimizer's gradients were as a step began, which nobody had cleared.

    Attributes:
        flags: by device, above 0 if one was not finite.
        seen: those that there were.
    """

    flags: Flags
    seen: Sequence[SeenGradient]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, flags: Flags) -> LeftOver:
        """Those of one optimizer, as they are now."""
        filled = [parameter for parameter in trained_by(optimizer) if parameter.grad is not None]
        return cls(flags, seen_gradients(filled))

    @property
    def still_there(self) -> bool:
        """Whether nobody has cleared them since."""
        return any(each.same for each in self.seen)
