"""A gradient times a power of two, exact in the gradient's dtype."""

from __future__ import annotations

import sys
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor

from gradscale.backward.memory_layout import in_its_layout

REDUCED = (torch.float16, torch.bfloat16)


# To ask whether 64 KiB of float32 may be overwritten takes longer than to write them elsewhere.
WORTH_ASKING = 1 << 14


class _Counted(Protocol):
    def _use_count(self) -> int: ...


def _holders(grad: Tensor) -> tuple[int, int, int]:
    """Who holds a tensor: Python objects, C++ objects, and tensors its storage."""
    storage = torch._C._storage_Use_Count(grad.untyped_storage()._cdata)
    return sys.getrefcount(grad), cast(_Counted, grad)._use_count(), storage


def _held_as_in_a_hook() -> tuple[int, int, int]:
    """Counts for a tensor held once by C++, by a tuple and by a name; versions differ."""

    def asked(grad: Tensor) -> tuple[int, int, int]:
        return _holders(grad)

    owner = torch.zeros(1, device="cpu", requires_grad=True)
    owner.grad = torch.zeros(1, device="cpu")
    given = (owner.grad,)
    grad = given[0]
    return asked(grad)


UNSHARED = _held_as_in_a_hook()


def multiply_gradient(grad: Tensor, by: Tensor, *, may_overwrite: bool = False) -> Tensor:
    """`grad * by`, computed in float32 at least and rounded once to the dtype of `grad`.

    Autograd-differentiable when gradients are being recorded. Sparse gradients keep their indices,
    expanded ones stay expanded (`in_its_layout`); complex ones are multiplied part by part, so that
    signs of zero survive.

    Args:
        grad: any dense, sparse COO, complex or subclassed tensor.
        by: a power of two, float32, shape `()`, on the same device.
        may_overwrite: overwrite `grad`, which nothing else may hold (`is_unshared`).

    Example:
        >>> half = torch.tensor([2.0**-24, 1.0], dtype=torch.float16)
        >>> multiply_gradient(half, torch.tensor(2.0**20))
        tensor([0.0625,    inf], dtype=torch.float16)
    """
    if may_overwrite and grad.layout == torch.strided and not grad.is_complex():
        return _on_device(grad, by, grad) if _needs_float32(grad) else grad.mul_(by)
    return in_its_layout(grad, partial(_product, by=by))


def _product(grad: Tensor, by: Tensor) -> Tensor:
    if grad.dtype is torch.float32:  # nearly always; sparse ones keep their indices
        return grad * by
    if grad.layout == torch.sparse_coo:
        return _on_values(grad, by)
    if grad.is_complex():
        parts = torch.view_as_real(grad.resolve_conj()) * by.to(grad.real.dtype)
        return torch.view_as_complex(parts)
    if not _needs_float32(grad):
        # Two tensors without dimensions promote: a half one becomes float32.
        return grad * by if grad.dim() else (grad * by).to(grad.dtype)
    if torch.is_grad_enabled() or type(grad) is not Tensor:
        return (grad.to(torch.float32) * by).to(grad.dtype)
    return _on_device(grad, by, torch.empty_like(grad))


def is_unshared(grad: Tensor) -> bool:
    """Whether a gradient can be overwritten without anybody noticing.

    Asked inside a hook about a tensor that the tuple given to the hook holds, and one name. True
    only for plain, dense, real tensors outside `create_graph=True` that besides only the engine
    holds, and whose storage no other tensor shares. Memory lent by something else than torch does
    not show.
    """
    if type(grad) is not Tensor or torch.is_grad_enabled() or grad.layout is not torch.strided:
        return False
    if grad.is_complex() or not grad.is_contiguous():
        return False
    python, engine, storage = _holders(grad)
    return python <= UNSHARED[0] and engine <= UNSHARED[1] and storage <= UNSHARED[2]


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
    return torch.sparse_coo_tensor(
        grad._indices(),
        values,
        grad.shape,
        is_coalesced=grad.is_coalesced(),
        check_invariants=False,
    )
