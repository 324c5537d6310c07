"""The dtypes and layouts in which gradients come."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FLOAT_DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e5m2,
    torch.float8_e4m3fn,
]

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "0-d": lambda x: x[0, 0, 0],
    "empty": lambda x: x[:0],
    "permuted": lambda x: x.permute(2, 0, 1),
    "strided": lambda x: x[:, ::2, 1:],
    "expanded": lambda x: x[:1].expand(5, -1, -1),
    "coo": lambda x: x.to_sparse(),
    "csr": lambda x: x[0].to_sparse_csr(),
}
"""Of a tensor of three dimensions."""
