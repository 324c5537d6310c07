"""Clipping by norm and by value, before the scale is undone: the fewest passes over the gradients.

| reads and writes of all gradients | torch: `unscale_`, `clip_grad_norm_`, `step` | here |
|---|--:|--:|
| unfused optimizer | 2 + 1 + 2 = 5 | norm 1, divide and clip 2 = 3 |
| fused optimizer, which divides by itself | 2 + 1 + 2 (+1 to check again) | norm 1 |
| scale left in the gradient (`undo="learning_rate"` or `"moments"`) | | norm 1, clip 2 = 3 |
| the same on the CPU, if nothing is clipped | | norm 1 |
| the policy needs ``amax`` or ``exponents`` | 5 | 5, and what it measures |

The passes of the optimizer itself are not counted. The check costs nothing: a norm is finite
exactly if every gradient is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gradscale.gradients.norm import Norm
from gradscale.gradients.unscale import Groups


def true_norm(norm: Norm, inv_scale: Tensor) -> Tensor:
    """The norm of the unscaled gradients, 0-d, of the dtype in which it was summed.

    Args:
        norm: of the gradients as they are.
        inv_scale: 1/S, float32 0-d.
    """
    inverse = inv_scale.to(device=norm.value.device, non_blocking=True)
    return norm.value * inverse.to(norm.value.dtype)


def clip_coefficient(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of this norm are multiplied by: torch's rule, and 1 if it is not finite.

        min(1, max_norm / (norm + 1e-6))

    Such a step is skipped anyway, and its gradients stay as they are, to name the culprits; torch
    turns the finite ones into zeros and the others into NaN.

    Args:
        norm: of the unscaled gradients, 0-d.
        max_norm: the norm they may have.

    Example:
        >>> norms = torch.tensor(0.5), torch.tensor(4.0), torch.tensor(math.inf)
        >>> [round(clip_coefficient(norm, 1.0).item(), 4) for norm in norms]
        [1.0, 0.25, 1.0]
    """
    # Torch's own 1e-6, so that clipped gradients are the same bits.
    coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return torch.where(norm < math.inf, coefficient, 1.0).to(torch.float32)


def known_coefficient(norm: Tensor, max_norm: float) -> Tensor:
    """`clip_coefficient`, in half as many kernels where the host knows the norm: on the CPU."""
    if not norm.is_cpu:
        return clip_coefficient(norm, max_norm)
    # To read a number of the CPU is cheaper than the two kernels that choose without reading.
    if not math.isfinite(norm.item()):
        return torch.ones((), dtype=torch.float32, device=norm.device)
    return (max_norm / (norm + 1e-6)).clamp_(max=1.0).to(torch.float32)


def sum_duplicates_(parameters: Iterable[Tensor]) -> None:
    """Makes sparse gradients hold each element once: what is bounded is the sum of its parts."""
    for parameter in parameters:
        grad = parameter.grad
        if grad is not None and grad.is_sparse and not grad.is_coalesced():
            parameter.grad = grad.coalesce()


def clamp_groups_(groups: Groups, bound: Tensor) -> None:
    """Clamps every gradient to [-bound, bound] in place, in one pass; an infinite one leaves it.

    Args:
        groups: gradients by device and dtype.
        bound: float32 0-d.
    """
    for device, by_dtype in groups.items():
        for dtype, grads in by_dtype.items():
            # A bound that float16 does not hold becomes inf there, and clamps nothing that it
            # holds.
            high = bound.to(device=device, dtype=dtype, non_blocking=True)
            low = -high
            for grad in grads:
                torch.clamp(grad, low, high, out=grad)
