"""Whether a step was skipped, asked of it by gradients that are left over."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class StepFate(Protocol):
    """What became of an optimizer's step; on the device until somebody reads it."""

    @property
    def settled(self) -> bool:
        """Whether reading `skipped` is free."""
        ...

    @property
    def skipped(self) -> bool:
        """Whether the optimizer did not step."""
        ...

    def left_at(self) -> Tensor:
        """What the gradients are multiplied by after the step: S if the device skipped it."""
        ...
