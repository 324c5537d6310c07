"""Where the scale is undone, as a part that a scaler asks: in the gradient, or in the optimizer."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from gradscale.argument_checks import check_switch
from gradscale.gradients.flags import inverse
from gradscale.undo.carry import carried
from gradscale.undo.degrees import Degrees, Way, check_way, degrees_once
from gradscale.undo.readers import read_by_others, steps_fused

SQUARES_FIT = 2.0**63
"""Gradients below it have finite squares, and sums of squares, in float32: 2^126 leaves 3 for sums.

Moments average squares, so nothing adds up beyond that but Adagrad's sum, which grows slowly.
"""
SUMS_FIT = 2.0**104
"""Sums of gradients below it are finite in float32: 2^24 of them stay below 2^128."""
SQUARES_OVERFLOW = 2.0**128 / SQUARES_FIT
"""Times a gradient that does not fit squared, it overflows: a check with this factor flags it."""
SUMS_OVERFLOW = 2.0**128 / SUMS_FIT
"""Times a gradient that momentum could not sum up, it overflows."""
LOW = 2.0**60
"""Up to this scale gradients that reach 2^104 scaled are beyond 2^44 themselves.

Such a run is lost already, so the CPU, where the check costs a pass, leaves it out.
"""


class Undo:
    """Where the scale of a gradient is undone, and what becomes of a step that must not be taken.

    Args:
        way: ``"gradient"``: it is divided. Otherwise the optimizer's own numbers absorb the scale.
        sync_free: steps are taken back on the device instead of being decided by the host.

    Attributes:
        absorbs: whether an optimizer's own numbers absorb the scale.

    Raises:
        ValueError: if there is no such way, or both are asked for.
        TypeError: if `way` is neither a name nor `Degrees`, or `sync_free` no bool.

    Example:
        >>> parameter = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([parameter], lr=0.5)
        >>> parameter.grad = torch.tensor([8.0])  # at a scale of 8
        >>> with Undo("learning_rate").carrying(optimizer, 8.0):
        ...     optimizer.step()
        >>> parameter.item()
        0.5
    """

    def __init__(self, way: Way | Degrees = "gradient", sync_free: bool = False) -> None:
        check_switch("GradScaler", "sync_free", sync_free)
        check_way(way)
        if sync_free and way != "gradient":
            raise ValueError(
                f"`GradScaler(undo={way!r}, sync_free=True)`: an optimizer's settings are numbers "
                "on the host, which must read the scale to follow it. Leave one of the two out."
            )
        self.way: Way | Degrees = way
        self.sync_free = sync_free
        self.absorbs = way != "gradient"

    def by_itself(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer undoes the scale while it steps, and nobody else finds it there."""
        return (self.absorbs or steps_fused(optimizer)) and not read_by_others(optimizer)

    def accept(self, optimizer: torch.optim.Optimizer) -> Degrees:
        """How this optimizer's numbers follow the gradient.

        Raises:
            ValueError: if the scale cannot be undone in this optimizer.
        """
        return degrees_once(optimizer, self.way)

    def check_factor(self, optimizer: torch.optim.Optimizer, scale: Tensor) -> Tensor | None:
        """What to multiply gradients by that stay at S, to see whether its numbers hold them.

        Args:
            optimizer: which will step on them.
            scale: S, float32 0-d.

        Returns:
            Float32 0-d; None if no finite gradient is too large.

        Raises:
            ValueError: if the scale cannot be undone in this optimizer.
        """
        degrees = self.accept(optimizer)
        # On an accelerator a factor means the check that writes nothing: that is what this saves.
        factor = None if scale.is_cpu and scale.item() >= 1 else inverse(scale)
        least = 0.0
        if degrees.squares:
            least = SQUARES_OVERFLOW
        elif degrees.state and (factor is not None or scale.item() > LOW):
            least = SUMS_OVERFLOW
        if not least:
            return factor
        return torch.full_like(scale, least) if factor is None else factor.clamp(min=least)

    def norm_fits(self, optimizer: torch.optim.Optimizer, norm: Tensor) -> Tensor | None:
        """Whether its numbers hold gradients of this norm, as a flag; None if they hold any.

        Raises:
            ValueError: if the scale cannot be undone in this optimizer.
        """
        degrees = self.accept(optimizer)
        if not degrees.state:
            return None
        return norm < (SQUARES_FIT if degrees.squares else SUMS_FIT)

    def carrying(
        self, optimizer: torch.optim.Optimizer, scale: float
    ) -> AbstractContextManager[None]:
        """For one step on gradients at `scale`: its numbers are at that scale too.

        Args:
            optimizer: whose `step` is called within.
            scale: of the gradients in `.grad`; 1 if they are divided.
        """
        return carried(optimizer, self.accept(optimizer), scale)
