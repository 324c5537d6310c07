"""What a compiled step does to its gradients: each a function of tensors, without a host read."""

from __future__ import annotations

from collections.abc import Sequence, Set

import torch
from torch import Tensor

from gradscale.gradients.clip import clip_coefficient
from gradscale.gradients.norm import SMALLEST_NORM
from gradscale.histogram import count_exponents
from gradscale.policies.policy import Need


def divided(gradient: Tensor, factor: Tensor) -> Tensor:
    """`gradient * factor`, taken in float32 at least and rounded once to the gradient's dtype."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return (gradient.to(wide) * factor.to(wide)).to(gradient.dtype)


def clipping_factor(
    gradients: Sequence[Tensor], inv_scale: Tensor, max_norm: float
) -> tuple[Tensor, Tensor]:
    """What unscales and clips in one product, and the norm of the unscaled gradients.

    Args:
        gradients: at the loss scale.
        inv_scale: 1/S, float32 0-d.
        max_norm: the norm they may have.

    Returns:
        The factor, float32 0-d, and the norm, 0-d; see `clip_coefficient`.
    """
    norm, coefficient = _clipping(gradients, torch.float64, inv_scale, max_norm)
    if gradients[0].device.type == "cpu":
        # As `gradient_norm`: in float32 if its squares fit. It reads the norm; here both are made.
        narrow, kept = _clipping(gradients, torch.float32, inv_scale, max_norm)
        fits = (narrow >= SMALLEST_NORM) & (narrow < torch.inf)
        coefficient = torch.where(fits, kept, coefficient)
        norm = torch.where(fits, narrow.to(norm.dtype), norm)
    wide = any(gradient.dtype is torch.float64 for gradient in gradients)
    return inv_scale * coefficient, norm.to(torch.float64 if wide else torch.float32)


def any_not_finite(gradients: Sequence[Tensor]) -> Tensor:
    """Float32 0-d, 0 or 1: whether an element of one of them is infinite or NaN."""
    finite = torch.stack([torch.isfinite(gradient).all() for gradient in gradients])
    return finite.all().logical_not().to(torch.float32)


def measured(gradients: Sequence[Tensor], needs: Set[Need]) -> tuple[Tensor | None, Tensor | None]:
    """The largest finite magnitude and the histogram of unscaled gradients, where needed."""
    amax = counts = None
    # Real and imaginary parts one by one, as the scaler's own pass sees them.
    gradients = [torch.view_as_real(g) if g.is_complex() else g for g in gradients]
    if "amax" in needs:
        filled = [gradient for gradient in gradients if gradient.numel()]
        each = torch.stack([gradient.abs().amax().to(torch.float32) for gradient in filled])
        # A tensor with a non-finite element counts as zero: its step is no measurement.
        amax = torch.where(each < torch.inf, each, 0.0).amax()
    if "exponents" in needs:
        counts = torch.stack([count_exponents(gradient) for gradient in gradients]).sum(0)
    return amax, counts


def _clipping(
    gradients: Sequence[Tensor], dtype: torch.dtype, inv_scale: Tensor, max_norm: float
) -> tuple[Tensor, Tensor]:
    """The unscaled norm, summed in `dtype` or wider, and its coefficient."""
    norms = [
        torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, dtype))
        for gradient in gradients
        if gradient.numel()
    ]
    widest = norms[0].dtype
    for norm in norms[1:]:
        widest = torch.promote_types(widest, norm.dtype)
    norm = torch.linalg.vector_norm(torch.stack([norm.to(widest) for norm in norms]))
    true = norm * inv_scale.to(widest)
    return true, clip_coefficient(true, max_norm)
