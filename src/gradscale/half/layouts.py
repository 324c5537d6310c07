"""A widened gradient in the layout of the half-precision one: distributed, sparse or dense."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def in_layout_of(grad: Tensor, values: Tensor) -> Tensor:
    """A float32 gradient of the layout of `grad`, holding `values`."""
    if hasattr(grad, "_local_tensor"):
        from torch.distributed.tensor import DTensor

        whole = cast(Any, grad)
        return DTensor.from_local(
            values, whole.device_mesh, whole.placements, run_check=False,
            shape=grad.shape, stride=grad.stride(),
        )  # fmt: skip
    if grad.is_sparse:
        return torch.sparse_coo_tensor(
            grad._indices(), values, grad.shape,
            is_coalesced=grad.is_coalesced(), check_invariants=False,
        )  # fmt: skip
    return values
