"""The Triton kernel behind `count_into`: one read of the tensor, a histogram per program.

Every program walks over its share of the tensor with a histogram of its own and adds it to the row
once, at the end, so that the number of atomics does not grow with the tensor. Importing this module
needs Triton, which comes with torch for CUDA; `count_into` does so only where it is installed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradscale.triton_kernels import launching_on

_BLOCK = 4096
_BLOCKS_PER_PROGRAM = 16
_MAX_PROGRAMS = 2048


def count_on_gpu(row: Tensor, flat: Tensor, *, ceil: bool = False) -> None:
    """Adds what `flat` holds to `row`, as `count_by_torch` does, in one kernel.

    Args:
        row: shape `(WIDTH,)`, int64, contiguous; changed in place.
        flat: shape `(numel,)`, contiguous, a real floating dtype, at least one element.
        ceil: powers of two count in the octave below them.
    """
    if flat.dtype.itemsize == 1 or flat.dtype == torch.float64:
        # The kernel reads 16- and 32-bit floats; 8-bit and 64-bit ones are rare enough to convert.
        flat = _to_float32(flat)
    numel = flat.numel()
    programs = min(-(-numel // (_BLOCK * _BLOCKS_PER_PROGRAM)), _MAX_PROGRAMS)
    with launching_on(flat.device):
        count_kernel[(programs,)](
            flat, row, numel, BLOCK=_BLOCK, CEIL=ceil  # type: ignore[arg-type]
        )  # fmt: skip


def _to_float32(flat: Tensor) -> Tensor:
    single = flat.to(torch.float32)
    if flat.dtype != torch.float64:
        return single
    limit = torch.finfo(torch.float32).max
    return torch.where(torch.isfinite(flat), single.clamp(-limit, limit), single)


@triton.jit
def count_kernel(values, row, numel, BLOCK: tl.constexpr, CEIL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Column numbers are those of `measure_counts`: 0 amax, 1 zero, 2 non-finite, 3… octaves."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    # A histogram needs a power of two of columns; the last one takes what lies past the end.
    total = tl.zeros((512,), dtype=tl.int32)
    largest = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(start, numel, step):
        offsets = first + tl.arange(0, BLOCK)
        inside = offsets < numel
        loaded = tl.load(values + offsets, mask=inside, other=0.0).to(tl.float32)
        bits = loaded.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        nonfinite = bits >= 0x7F800000
        placed = bits
        if CEIL:
            placed = tl.maximum(bits - 1, 1)
        leading = (placed.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
        octave = tl.where(placed >> 23 > 0, (placed >> 23) - 127 + 149, leading)
        columns = tl.where(bits == 0, 1, tl.where(nonfinite, 2, octave + 3))
        total += tl.histogram(tl.where(inside, columns, 511), 512)
        largest = tl.maximum(largest, tl.where(nonfinite, 0, bits))
    index = tl.arange(0, 512)
    tl.atomic_add(row + index, total.to(tl.int64), mask=(index < 280) & (total > 0))
    amax = tl.max(largest, axis=0)
    tl.atomic_max(row, amax.to(tl.int64))  # type: ignore[union-attr]
