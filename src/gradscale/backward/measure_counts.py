"""One pass over a tensor: its largest magnitude, what is zero or not finite, and its octaves."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.backward.measure_cpu import AT_LEAST, count_on_cpu
from gradscale.backward.measure_rows import count_by_torch
from gradscale.triton_kernels import can_read


def count_into(row: Tensor, tensor: Tensor, *, ceil: bool = False) -> None:
    """Adds what `tensor` holds to `row`; the host waits for no accelerator.

    On CUDA a Triton kernel reads the tensor once; everywhere else it is plain torch.

    Args:
        row: see `measure_rows`; shape `(WIDTH,)`, on the tensor's device; changed in place.
        tensor: any shape, floating or complex (counted by components), dense, sparse (what is
            stored counts, an implicit zero does not) or distributed (this rank's shard). float64
            is rounded to float32 first.
        ceil: powers of two count in the octave below them; see `measure_rows`.

    Example:
        >>> from gradscale.backward.measure_rows import NONFINITE, OCTAVES, ZERO, empty_counts
        >>> rows = empty_counts(1)
        >>> count_into(rows[0], torch.tensor([0.0, 3.0, float("inf")]))
        >>> rows[0, ZERO].item(), rows[0, NONFINITE].item(), rows[0, OCTAVES:].sum().item()
        (1, 1, 1)
    """
    flat = stored_values(tensor)
    if flat.numel() == 0:
        return
    if can_read(flat):
        from gradscale.backward.measure_kernel import count_on_gpu

        count_on_gpu(row, flat, ceil=ceil)
    elif not (_suits_cpu(flat) and count_on_cpu(row, flat, ceil=ceil)):
        count_by_torch(row, flat, ceil=ceil)


def _suits_cpu(flat: Tensor) -> bool:
    """Whether the quick form may try: a fake tensor or float64 is none of its business."""
    plain = type(flat) is Tensor and flat.device.type == "cpu" and flat.dtype != torch.float64
    return plain and flat.numel() >= AT_LEAST


def stored_values(tensor: Tensor) -> Tensor:
    """The real numbers that a tensor stores, as one flat dense tensor.

    Args:
        tensor: any floating or complex tensor, of any layout.

    Returns:
        Shape `(stored,)`; a view wherever the memory is dense, whatever the order of its axes.
    """
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()  # type: ignore[operator]
    if tensor.layout == torch.sparse_coo:
        tensor = tensor._values()
    elif tensor.layout != torch.strided:
        tensor = tensor.values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return _in_memory_order(tensor)


def _in_memory_order(tensor: Tensor) -> Tensor:
    # Counting does not care for order, so a permuted but dense tensor needs no copy.
    if tensor.is_contiguous():
        return tensor.view(-1)
    axes = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(axes).reshape(-1)


def moments_into(row: Tensor, tensor: Tensor) -> None:
    """Adds the sums that `Adaptive` needs to `row`, over the finite elements.

    Args:
        row: shape `(4,)`, float64: the sums of ``x``, of ``x^2``, of ``ln|x|`` and of
            ``(ln|x|)^2``; the latter two over non-zero elements. Changed in place.
        tensor: as for `count_into`; not rounded.

    Example:
        >>> row = torch.zeros(4, dtype=torch.float64)
        >>> moments_into(row, torch.tensor([1.0, -2.0, 0.0]))
        >>> row[:2].tolist()
        [-1.0, 5.0]
    """
    values, logs = with_logarithms(stored_values(tensor))
    sums = values.sum(), values.square().sum(), logs.sum(), logs.square().sum()
    row += torch.stack(sums)


def with_logarithms(flat: Tensor) -> tuple[Tensor, Tensor]:
    """The finite values in float64, 0 for the others, and the logarithms of their magnitudes."""
    values = flat.to(torch.float64)
    values = torch.where(torch.isfinite(values), values, 0.0)
    # ln 1 = 0: a zero adds nothing to the logarithmic sums.
    return values, torch.log(torch.where(values == 0, 1.0, values.abs()))
