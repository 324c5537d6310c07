"""Float32 masters rounded into half-precision parameters, in as few launches as torch has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def narrow_(pairs: Sequence[tuple[Tensor, Tensor]], *, saturate: bool = False) -> None:
    """Writes `round(master)` into each parameter, to nearest, ties to even.

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
                limit = torch.finfo(parameter.dtype).max
                parameter.copy_(master.clamp(-limit, limit))
            return
        parameters, masters = zip(*pairs, strict=True)
        torch._foreach_copy_(parameters, masters)  # pyright: ignore[reportPrivateImportUsage]
