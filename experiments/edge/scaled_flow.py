"""A scale for each step of an ODE's solver: mixed precision for neural ODEs as published.

Celledoni et al. 2025 (arXiv 2510.23498) multiply the adjoint that enters a step's backward pass by
a power of two that brings its maximum to a target, and divide what leaves it, the adjoint and the
weights' gradients, before float32 sums them. Ours: the scale is chosen anew for every step from the
adjoint's maximum, where theirs follows it by halving and doubling with recomputation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

TARGET = 2.0**10  # one over float16's epsilon, as published


@dataclass
class StepScale:
    """What `_Enter` chose and `_Leave` divides by: they belong to one evaluation."""

    exponent: int = 0


class _Enter(torch.autograd.Function):
    """Identity; its backward pass runs first and multiplies by the scale it chooses."""

    @staticmethod
    def forward(ctx: Any, velocity: Tensor, scale: StepScale) -> Tensor:
        ctx.scale = scale
        return velocity.view_as(velocity)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        amax = float(gradients[0].abs().max())
        usable = 0 < amax < math.inf
        ctx.scale.exponent = round(math.log2(TARGET / amax)) if usable else 0
        return gradients[0] * 2.0**ctx.scale.exponent, None


class _Leave(torch.autograd.Function):
    """Identity of state and weights; its backward pass runs last and divides, in float32."""

    @staticmethod
    def forward(ctx: Any, scale: StepScale, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.scale = scale
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(gradient.float() * 2.0**-ctx.scale.exponent for gradient in gradients)


class ScaledFlow(nn.Module):
    """A flow with the same values, and a scale of its own in every backward pass through it."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, time: Tensor, state: Tensor) -> Tensor:
        """What the flow says at `time` of a state `(n, width)`, float32."""
        scale = StepScale()
        names, weights = zip(*self.flow.named_parameters(), strict=True)
        state, *given = _Leave.apply(scale, state, *weights)
        velocity = functional_call(self.flow, dict(zip(names, given, strict=True)), (time, state))
        return _Enter.apply(velocity, scale)
