"""What a training step leaves behind, on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor


class StepResult(NamedTuple):
    """The few scalars of one step, none of them read by the host.

    Attributes:
        loss: 0-d, unscaled: the mean over the micro-batches.
        found_inf: float32 0-d, 1 if the step was skipped.
        norm: 0-d, of the unscaled gradients before clipping; None unless they are clipped.
        counted: what each backward pass has counted, if this is a measuring step.
    """

    loss: Tensor
    found_inf: Tensor
    norm: Tensor | None
    counted: tuple[Tensor, ...] = ()


Captured = Callable[[Sequence[object]], StepResult]
"""A step of a list of batches that the host only starts."""
