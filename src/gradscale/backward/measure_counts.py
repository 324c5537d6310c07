"""One pass over a tensor: its largest magnitude, what is zero or not finite, and its octaves.

The result is one row of int64, so that many tensors fill one matrix that reaches the host in a
single copy:

    row[AMAX]        float32 bits of the largest finite magnitude, which order as it does
    row[ZERO]        how many elements are zero
    row[NONFINITE]   how many are infinite or NaN
    row[OCTAVES:]    how many lie in each octave (`gradscale.histogram`)

The other counts follow: non-zero is the sum of the octaves, and because bins are whole octaves the
subnormals of a format are the sum of the bins below its smallest normal number.

An octave is ``[2**k, 2**(k + 1))``, or on request ``(2**k, 2**(k + 1)]``. A format flushes what is
at most half its smallest subnormal, a power of two, so the latter tells exactly what would be lost
of a tensor that has lost nothing yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.backward.measure_cpu import AT_LEAST, count_on_cpu
from gradscale.histogram import EXPONENT_BINS, magnitude_bits, octave_bins
from gradscale.triton_kernels import can_read

AMAX, ZERO, NONFINITE, OCTAVES = 0, 1, 2, 3
WIDTH = OCTAVES + EXPONENT_BINS
_INF_BITS = 0x7F800000


def empty_counts(rows: int, device: torch.device | str = "cpu") -> Tensor:
    """A matrix of `rows` rows that have counted nothing yet: shape `(rows, WIDTH)`, int64."""
    return torch.zeros(rows, WIDTH, dtype=torch.int64, device=device)


def count_into(row: Tensor, tensor: Tensor, *, ceil: bool = False) -> None:
    """Adds what `tensor` holds to `row`; the host waits for no accelerator.

    On CUDA a Triton kernel reads the tensor once; everywhere else it is plain torch.

    Args:
        row: shape `(WIDTH,)`, int64, on the tensor's device; changed in place.
        tensor: any shape, floating or complex (counted by components), dense, sparse (what is
            stored counts, an implicit zero does not) or distributed (this rank's shard). float64
            is rounded to float32 first.
        ceil: powers of two count in the octave below them; see the module.

    Example:
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
    elif not (_suits_cpu(flat) and count_on_cpu(row, flat, **_COLUMNS, ceil=ceil)):
        count_by_torch(row, flat, ceil=ceil)


_COLUMNS = {"amax": AMAX, "zero": ZERO, "octaves": OCTAVES}


def _suits_cpu(flat: Tensor) -> bool:
    """Whether the quick form may try: a fake tensor or float64 is none of its business."""
    plain = type(flat) is Tensor and flat.device.type == "cpu" and flat.dtype != torch.float64
    return plain and flat.numel() >= AT_LEAST


def count_by_torch(row: Tensor, flat: Tensor, *, ceil: bool = False) -> None:
    """The plain-torch form of `count_into` for a non-empty tensor of real numbers."""
    bits = magnitude_bits(flat)
    nonfinite = bits >= _INF_BITS
    # The smallest float32 is a power of two without an octave below it, and stays.
    octaves = octave_bins((bits - 1).clamp(min=1) if ceil else bits)
    columns = torch.where(nonfinite, NONFINITE, octaves + OCTAVES)
    columns = torch.where(bits == 0, ZERO, columns).to(torch.int64)
    row.scatter_add_(0, columns, torch.ones_like(columns))
    amax = torch.where(nonfinite, 0, bits).max()
    row[AMAX].copy_(torch.maximum(row[AMAX], amax))


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
    flat = stored_values(tensor).to(torch.float64)
    flat = torch.where(torch.isfinite(flat), flat, 0.0)
    # ln 1 = 0: a zero adds nothing to the logarithmic sums.
    logs = torch.log(torch.where(flat == 0, 1.0, flat.abs()))
    row += torch.stack([flat.sum(), flat.square().sum(), logs.sum(), logs.square().sum()])
