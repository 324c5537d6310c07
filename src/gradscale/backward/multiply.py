"""A gradient times a power of two, exact in the gradient's dtype."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

# A tensor that only the engine holds is referenced twice inside a hook: by the engine's list and
# by the Python object of the hook's argument; its storage by the tensor and by the Python storage.
ALONE = 2
REDUCED = (torch.float16, torch.bfloat16)


def multiply_gradient(grad: Tensor, by: Tensor, *, may_overwrite: bool = False) -> Tensor:
    """`grad * by`, computed in float32 at least and rounded once to the dtype of `grad`.

    Autograd-differentiable when gradients are being recorded. Sparse gradients keep their indices;
    complex ones are multiplied part by part, so that signs of zero survive.

    Args:
        grad: any dense, sparse COO, complex or subclassed tensor.
        by: a power of two, float32, shape `()`, on the same device.
        may_overwrite: the caller's word that the producer of `grad` keeps no reference of its own;
            it is then overwritten if nothing else can see it (`only_reference`).

    Example:
        >>> half = torch.tensor([2.0**-24, 1.0], dtype=torch.float16)
        >>> multiply_gradient(half, torch.tensor(2.0**20))
        tensor([0.0625,    inf], dtype=torch.float16)
    """
    if may_overwrite and only_reference(grad):
        return _on_device(grad, by, grad) if _needs_float32(grad) else grad.mul_(by)
    if grad.layout == torch.sparse_coo:
        return _on_values(grad, by)
    if grad.is_complex():
        parts = torch.view_as_real(grad.resolve_conj()) * by.to(grad.real.dtype)
        return torch.view_as_complex(parts)
    if not _needs_float32(grad):
        return grad * by
    if torch.is_grad_enabled() or type(grad) is not Tensor:
        return (grad.to(torch.float32) * by).to(grad.dtype)
    return _on_device(grad, by, torch.empty_like(grad))


def only_reference(grad: Tensor) -> bool:
    """Whether the engine alone holds `grad`, so that overwriting it changes nothing else.

    True only for plain, dense, real tensors outside `create_graph=True` whose reference counts
    show one holder of the tensor and one of its storage.
    """
    if torch.is_grad_enabled() or type(grad) is not Tensor or grad.layout != torch.strided:
        return False
    if grad.is_complex() or not grad.is_contiguous():
        return False
    references: int = cast(Any, grad)._use_count()
    holders: int = torch._C._storage_Use_Count(grad.untyped_storage()._cdata)
    return references <= ALONE and holders <= ALONE


def _needs_float32(grad: Tensor) -> bool:
    # The CPU multiplies halves by a float32 scalar in float32. An accelerator would first round
    # the scalar to the half format, where 2^20 is infinite. 8-bit formats have no product at all.
    return grad.dtype not in (torch.float32, torch.float64) and (
        grad.device.type != "cpu" or grad.dtype not in REDUCED
    )


def _on_device(grad: Tensor, by: Tensor, out: Tensor) -> Tensor:
    """One kernel: an operand of shape `(1,)` makes the common dtype float32, `out` rounds once."""
    if grad.dtype not in REDUCED:
        return out.copy_(grad.to(torch.float32) * by)
    return torch.mul(grad, by.reshape(1) if grad.dim() else by, out=out)


def _on_values(grad: Tensor, by: Tensor) -> Tensor:
    values = multiply_gradient(grad._values(), by)
    merged = grad.is_coalesced()
    return torch.sparse_coo_tensor(grad._indices(), values, grad.shape, is_coalesced=merged)
