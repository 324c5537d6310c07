"""Gradients that were there before a backward pass added to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradscale.gradients.master_weights import trained_by
from gradscale.gradients.unscale import Flags


class LeftOver(NamedTuple):
    """What an optimizer's gradients were as a step began, which nobody had cleared.

    Attributes:
        flags: by device, above 0 if one was not finite.
        seen: parameters, their gradients, and how often each had been written.
    """

    flags: Flags
    seen: Sequence[tuple[Tensor, Tensor, int]]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, flags: Flags) -> LeftOver:
        """Those of one optimizer, as they are now."""
        filled = [(p, p.grad) for p in trained_by(optimizer)]
        return cls(flags, [(p, g, g._version) for p, g in filled if g is not None])

    @property
    def still_there(self) -> bool:
        """Whether nobody has cleared them since."""
        return any(p.grad is grad and grad._version == version for p, grad, version in self.seen)
