"""A gradient as it is now, to tell later whether anybody has written it since."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from weakref import ref

from torch import Tensor


class SeenGradient(NamedTuple):
    """The gradient that a parameter had; holds the parameter alive, not the gradient.

    Attributes:
        parameter: whose gradient it is.
        gradient: None if there was none.
        version: how often it had been written.
    """

    parameter: Tensor
    gradient: ref[Tensor] | None
    version: int

    @property
    def same(self) -> bool:
        """Whether it is the same tensor, written by nobody since; or still none."""
        now = self.parameter.grad
        if now is None or self.gradient is None:
            return now is self.gradient
        return now is self.gradient() and _version(now) == self.version


def seen_gradients(parameters: Iterable[Tensor]) -> list[SeenGradient]:
    """The gradients of these parameters.

    Example:
        >>> import torch
        >>> parameter = torch.ones(1, requires_grad=True)
        >>> (before,) = seen_gradients([parameter])
        >>> parameter.sum().backward()
        >>> before.same, seen_gradients([parameter])[0].same
        (False, True)
    """
    return [
        SeenGradient(p, None if p.grad is None else ref(p.grad), _version(p.grad))
        for p in parameters
    ]


def _version(gradient: Tensor | None) -> int:
    # What was made in inference mode counts no writes.
    return -1 if gradient is None or gradient.is_inference() else gradient._version
