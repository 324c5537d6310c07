"""Scaled-dot-product attention: rounded products around a softmax in float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor

from gradscale.emulation.direction_formats import as_operand, as_result

if TYPE_CHECKING:
    from gradscale.emulation.rounding import Rounding


@dataclass(frozen=True)
class AttentionOptions:
    """The arguments of `scaled_dot_product_attention` that are no tensors."""

    dropout: float = 0.0
    causal: bool = False
    scale: float | None = None
    grouped: bool = False

    def scale_for(self, query: Tensor) -> float:
        """The factor on the scores."""
        return 1 / math.sqrt(query.shape[-1]) if self.scale is None else self.scale


Saved: TypeAlias = "tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]"
"""Query, key, value, the probabilities, and what dropout kept of them."""


class AttentionContext(Protocol):
    """What the forward pass leaves to the backward pass."""

    rounding: Rounding
    options: AttentionOptions
    mask_shape: torch.Size | None
    saved_tensors: Saved
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Torch's own, which takes None, too."""


class EmulatedAttention(torch.autograd.Function):
    """Attention as fused kernels compute it: scores and their gradient stay in float32.

        P  = softmax(scale * round(Q) round(K)^T + mask)        O  = round(round(P) round(V))
        dP = round8(dO) round(V)^T                              dV = round(round(P)^T round8(dO))
        dS = P * (dP - sum(dP * P))                             dQ = round(scale * round8(dS) K)

    where `round8` is the backward format. A row in which everything is masked gives zeros. It
    cannot be differentiated twice, as torch's fused kernels cannot.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: AttentionContext,
        rounding: Rounding,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: AttentionOptions,
    ) -> Tensor:
        """The output, shape `(..., targets, value features)`, in the dtype of `query`."""
        with rounding.silenced():
            output, probabilities, kept = attend(rounding, query, key, value, mask, options)
        ctx.rounding, ctx.options = rounding, options
        ctx.mask_shape = None if mask is None or mask.dtype == torch.bool else mask.shape
        ctx.save_for_backward(query, key, value, probabilities, kept)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: AttentionContext, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The gradients of query, key, value and a floating mask."""
        # A backward() inside autocast would cast these float32 products back to half.
        device = grad.device.type
        with ctx.rounding.silenced(), torch.autocast(device, enabled=False):
            found = attend_backward(ctx.rounding, grad, ctx.saved_tensors, ctx.options)
        query, key, value, mask = found
        if ctx.mask_shape is None or not ctx.needs_input_grad[4]:
            return None, query, key, value, None, None
        mask = mask.sum_to_size(ctx.mask_shape).to(query.dtype)
        return None, query, key, value, mask, None


def attend(
    rounding: Rounding,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: AttentionOptions,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The output, the float32 probabilities before dropout, and what dropout kept (scaled)."""
    formats = rounding.precision
    q, k, v = (as_operand(tensor, formats.forward) for tensor in (query, key, value))
    if options.grouped:
        k, v = (_repeat_heads(tensor, query) for tensor in (k, v))
    # The order of the fused kernels: the scale after the product, in float32, where it cannot
    # make a score underflow or overflow that the kernel's accumulator holds.
    scores = (q @ k.transpose(-2, -1)).mul_(options.scale_for(query))
    probabilities = torch.softmax(_masked(scores, mask, options), -1)
    if options.causal or mask is not None:
        # A row without a target: softmax of nothing but -inf is NaN, and kernels return zeros.
        probabilities = probabilities.nan_to_num_(0.0)
    kept = None
    weights = probabilities
    if options.dropout > 0:
        keep = torch.full_like(probabilities, 1 - options.dropout)
        kept = torch.bernoulli(keep) / (1 - options.dropout)
        weights = probabilities * kept
    # P is an operand, too, and rounded as one.
    output = formats.forward.round(weights) @ v
    return as_result(output, formats.forward_result, query.dtype), probabilities, kept


def attend_backward(
    rounding: Rounding,
    grad: Tensor,
    saved: Saved,
    options: AttentionOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value and, in float32, of the scores."""
    formats = rounding.precision
    query, key, value, probabilities, kept = saved
    q, k, v = (as_operand(tensor, formats.forward) for tensor in (query, key, value))
    if options.grouped:
        k, v = (_repeat_heads(tensor, query) for tensor in (k, v))
    rounded = as_operand(grad, formats.backward)
    weights = probabilities if kept is None else probabilities * kept
    for_value = formats.forward.round(weights).transpose(-2, -1) @ rounded
    for_weights = rounded @ v.transpose(-2, -1)
    if kept is not None:
        for_weights = for_weights * kept
    # The softmax's own gradient, for which nothing is rounded: it never leaves the kernel.
    mean = (for_weights * probabilities).sum(-1, keepdim=True)
    for_scores = (for_weights - mean) * probabilities
    scale = options.scale_for(query)
    # The scale comes after the product, as in the forward pass.
    operand = formats.backward.round(for_scores)
    for_query = (operand @ k) * scale
    for_key = (operand.transpose(-2, -1) @ q) * scale
    wide = formats.backward_result
    return (
        as_result(_fold_to(for_query, query), wide, query.dtype),
        as_result(_fold_to(for_key, key), wide, key.dtype),
        as_result(_fold_to(for_value, value), wide, value.dtype),
        for_scores,
    )


def _masked(scores: Tensor, mask: Tensor | None, options: AttentionOptions) -> Tensor:
    if options.causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill_(future, -math.inf)
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(mask.logical_not(), -math.inf)
    return scores + mask


def _repeat_heads(tensor: Tensor, query: Tensor) -> Tensor:
    return tensor.repeat_interleave(query.shape[-3] // tensor.shape[-3], -3)


def _fold_to(part: Tensor, like: Tensor) -> Tensor:
    """Sum over what was repeated or broadcast."""
    # Grouped queries: heads of one key side by side, as `repeat_interleave` laid them.
    if part.dim() > 2 and part.shape[-3] != like.shape[-3] and like.shape[-3] > 1:
        part = part.unflatten(-3, (like.shape[-3], -1)).sum(-3)
    return part if part.shape == like.shape else part.sum_to_size(like.shape)


def attention(
    rounding: Rounding,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` under `rounding`, with the arguments of the original.

    Raises:
        RuntimeError: if both a mask and `is_causal` are given, as the original does.
    """
    if attn_mask is not None and is_causal:
        raise RuntimeError(
            "`scaled_dot_product_attention(attn_mask=..., is_causal=True)` takes one of the two. "
            "Merge the causal mask into `attn_mask`."
        )
    options = AttentionOptions(dropout_p, is_causal, scale, enable_gqa)
    return EmulatedAttention.apply(rounding, query, key, value, attn_mask, options)
