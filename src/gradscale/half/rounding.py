"""Values rounded to half precision, and back: masters to their parameters, tensors in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

HALVES = (torch.float16, torch.bfloat16)


def local(tensor: Tensor) -> Tensor:
    """The part of a distributed tensor that lives here; any other tensor as it is."""
    return getattr(tensor, "_local_tensor", tensor)


def floating(tensor: Tensor) -> bool:
    """Whether a tensor holds real floating-point numbers, of which half precision is a rounding."""
    return tensor.dtype in (*HALVES, torch.float32, torch.float64)


def rounded_to(values: Tensor, dtype: torch.dtype, *, saturate: bool) -> Tensor:
    """Values in a dtype, to nearest, ties to even; at the end of its range clamped, or infinite."""
    if saturate:
        # Before the cast, which would make infinite what is to be clamped.
        limit = torch.finfo(dtype).max
        values = values.clamp(-limit, limit)
    return values.to(dtype)


def narrow_(pairs: Sequence[tuple[Tensor, Tensor]], *, saturate: bool = False) -> None:
    """Writes `round(master)` into each parameter, in as few launches as torch has.

    Args:
        pairs: parameters and their masters.
        saturate: clamp to the largest finite value instead of infinity, as OpenSeq2Seq does with
            its weights. By default a weight that leaves the range becomes infinite and is seen.

    Example:
        >>> half, master = torch.zeros(2, dtype=torch.float16), torch.tensor([1.0, 1e6])
        >>> narrow_([(half, master)])
        >>> half.tolist()
        [1.0, inf]
        >>> narrow_([(half, master)], saturate=True)
        >>> half.tolist()
        [1.0, 65504.0]
    """
    if not pairs:
        return
    with torch.no_grad():
        if saturate:
            for parameter, master in pairs:
                parameter.copy_(rounded_to(master, parameter.dtype, saturate=True))
            return
        # The multi-tensor copy rounds as `copy_` does; there is none that clamps on the way.
        parameters, masters = zip(*pairs, strict=True)
        torch._foreach_copy_(parameters, masters)  # pyright: ignore[reportPrivateImportUsage]


def convert_(tensor: Tensor, dtype: torch.dtype, *, saturate: bool = False) -> None:
    """Changes a parameter's or buffer's dtype in place: whoever holds it sees the new values."""
    with torch.no_grad():
        value = rounded_to(tensor.detach(), dtype, saturate=saturate)
        if not is_traceable_wrapper_subclass(tensor):
            tensor.data = value
            return
        # Assigning to `.data` of a DTensor leaves what it wraps as it was.
        if isinstance(tensor, Parameter):
            value = Parameter(value, requires_grad=tensor.requires_grad)
        torch.utils.swap_tensors(tensor, value)
