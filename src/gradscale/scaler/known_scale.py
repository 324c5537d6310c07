"""What the host knows of the scale without asking the device for it.

Two things can happen at low scales only: a quotient overflows (below 1), and a back-off meets the
floor. On an accelerator the host does not see the scale, and looking out for either costs launches
in every step. A lower bound is enough to leave both out: the host knows where the scale began and
by how much a policy lowers it at most, and now and then a copy of it arrives by itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradscale.capturing import capturing
from gradscale.host_copies import HostCopies
from gradscale.policies.dynamic import Dynamic
from gradscale.policies.policy import Policy
from gradscale.policies.static import Static

COPY_AFTER = 8
"""Steps without news of the scale after which a copy is sent to the host."""

# Float32 rounds a product by 2^-24 of it at most: sixteen times that keeps a bound below it.
ROUNDING = 1 - 2.0**-20
"""More than float32 rounds off a product."""


class KnownScale:
    """A lower bound of one scale tensor; 0 where nothing is known.

    It holds for the tensor as `note` and `moved` left it. Whoever else writes into it, or puts
    another one in its place, is noticed by the tensor's version: the bound is then 0 until the next
    copy has arrived. A CUDA graph moves the scale without the host, so a scaler that was captured
    knows nothing from then on.

    Example:
        >>> scale, known = torch.full((), 4.0), KnownScale()
        >>> known.note(scale, 4.0)
        >>> known.at_least(scale)
        4.0
        >>> known.moved(scale.mul_(0.5), factor=0.5)
        >>> 1.99 < known.at_least(scale) <= 2
        True
        >>> known.at_least(scale.mul_(0.5))  # by somebody else
        0.0
    """

    def __init__(self) -> None:
        self._scale: Tensor | None = None
        self._version = -1
        self._bound = 0.0
        self._captured = False
        self._steps = 0
        self._copy: _Copy | None = None

    def note(self, scale: Tensor, value: float) -> None:
        """The host has read `value` off the scale, or written it."""
        self._scale, self._version, self._bound = scale, scale._version, value
        self._steps, self._copy = 0, None

    def at_least(self, scale: Tensor) -> float:
        """What the scale is not below. Never waits for a device."""
        if scale is not self._scale or scale._version != self._version:
            self.note(scale, 0.0)
            self._steps = COPY_AFTER
        if not self._captured and _capturing(scale):
            # A copy under way is forgotten: asking about it would break the capture.
            self._captured, self._copy = True, None
        return 0.0 if self._captured else self._bound

    def moved(self, scale: Tensor, factor: float, cap: float = math.inf) -> None:
        """`update` has changed the scale, after `at_least` was asked.

        Args:
            scale: after the change.
            factor: what it was multiplied by at least; 0 if that is not known.
            cap: what it was cut to if it was larger.
        """
        factor = factor if factor in (0, 1) else factor * ROUNDING
        self._version = scale._version
        self._bound = min(self._bound * factor, cap)
        self._steps += 1
        if self._copy is not None:
            self._copy.moved(factor, cap)
            if self._copy.arrived:
                # Both are bounds from below, so the higher one is the better.
                self._bound = max(self._bound, self._copy.at_least)
                self._copy = None
        elif self._steps >= COPY_AFTER and factor and not self._captured and _travels(scale):
            self._copy, self._steps = _Copy(scale), 0


class _Copy:
    """The scale of a moment ago, on its way to the host, and what has become of it since."""

    def __init__(self, scale: Tensor) -> None:
        self._copies = HostCopies([scale])
        self._factor, self._cap = 1.0, math.inf

    def moved(self, factor: float, cap: float) -> None:
        self._factor, self._cap = self._factor * factor, min(self._cap * factor, cap)

    @property
    def arrived(self) -> bool:
        return self._copies.arrived

    @property
    def at_least(self) -> float:
        return min(self._copies.tensors[0].item() * self._factor, self._cap)


def lowest_factor(policy: Policy, clean: bool) -> float:
    """What the policy has multiplied the scale by at least; 0 if that is not known.

    Args:
        policy: who has just decided.
        clean: whether the host knows that the step did not overflow.
    """
    if isinstance(policy, Dynamic):
        return 1.0 if clean else policy.backoff_factor
    return 1.0 if isinstance(policy, Static) else 0.0


def _travels(scale: Tensor) -> bool:
    return not scale.is_cpu and torch.accelerator.is_available()


def _capturing(scale: Tensor) -> bool:
    return scale.is_cuda and capturing()
