"""Steps counted on the device, where a captured step can count itself."""

from __future__ import annotations

import torch
from torch import Tensor


class StepCount:
    """How many steps were asked for and how many skipped, as one tensor.

    Attributes:
        counts: int64 of shape `(2,)`, changed in place.

    Example:
        >>> steps = StepCount("cpu")
        >>> for found_inf in (0.0, 1.0):
        ...     steps.count(torch.tensor(found_inf))
        >>> steps.counts
        tensor([2, 1])
    """

    def __init__(self, device: torch.device | str) -> None:
        self.counts: Tensor = torch.zeros(2, dtype=torch.int64, device=device)

    def count(self, found_inf: Tensor) -> None:
        """Adds a step, skipped if `found_inf` is set."""
        found = (found_inf > 0).to(torch.int64)
        self.counts.add_(torch.stack([torch.ones_like(found), found]))
