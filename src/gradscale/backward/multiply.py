"""A gradient times a power of two, exact in the gradient's dtype."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

REDUCED = (torch.float16, torch.bfloat16)


class _Holders(NamedTuple):
    """Who holds a tensor: Python objects, C++ objects, and tensors its storage."""

    python: int
    engine: int
    storage: int

    @classmethod
    def of(cls, grads: list[Tensor], output: int) -> _Holders:
        python = sys.getrefcount(grads[output])
        engine: int = cast(Any, grads[output])._use_count()
        storage: int = torch._C._storage_Use_Count(grads[output].untyped_storage()._cdata)
        return cls(python, engine, storage)


def _held_as_in_a_hook() -> _Holders:
    """Counts for a tensor held once by C++, by one tuple and by one list; torch versions differ."""
    owner = torch.zeros(1, device="cpu", requires_grad=True)
    owner.grad = torch.zeros(1, device="cpu")
    given = (owner.grad,)
    return _Holders.of(list(given), 0)


UNSHARED = _held_as_in_a_hook()


def multiply_gradient(grad: Tensor, by: Tensor, *, may_overwrite: bool = False) -> Tensor:
    """`grad * by`, computed in float32 at least and rounded once to the dtype of `grad`.

    Autograd-differentiable when gradients are being recorded. Sparse gradients keep their indices;
    complex ones are multiplied part by part, so that signs of zero survive.

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
    if grad.layout == torch.sparse_coo:
        return _on_values(grad, by)
    if grad.is_complex():
        parts = torch.view_as_real(grad.resolve_conj()) * by.to(grad.real.dtype)
        return torch.view_as_complex(parts)
    if not _needs_float32(grad):
        # Two tensors without dimensions promote: a half one becomes float32.
        return (grad * by).to(grad.dtype)
    if torch.is_grad_enabled() or type(grad) is not Tensor:
        return (grad.to(torch.float32) * by).to(grad.dtype)
    return _on_device(grad, by, torch.empty_like(grad))


def is_unshared(grads: list[Tensor | None], output: int) -> bool:
    """Whether `grads[output]` can be overwritten without anybody noticing.

    Asked inside a hook about a copy of the list it was given. True only for plain, dense, real
    tensors outside `create_graph=True` that one tuple, this list and the engine hold, and whose
    storage no other tensor shares. Memory lent by something else than torch does not show.
    """
    kind, grad = type(grads[output]), cast(list[Tensor], grads)
    if torch.is_grad_enabled() or kind is not Tensor or grad[output].layout != torch.strided:
        return False
    if grad[output].is_complex() or not grad[output].is_contiguous():
        return False
    holders = _Holders.of(grad, output)
    return all(found <= alone for found, alone in zip(holders, UNSHARED, strict=True))


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
