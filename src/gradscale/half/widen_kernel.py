"""The Triton kernel behind `widen`: all gradients in one launch, one read and one write each.

A program walks over one piece of one tensor. Where the pieces are comes in a table, copied to the
device without waiting for it. Importing this module needs Triton, which comes with torch for CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradscale.half.widen import Widening, in_memory_order

_BLOCK = 2048
_MIN_PIECE = 16 * _BLOCK
_MAX_PIECES = 4096


def widen_on_gpu(
    jobs: Sequence[Widening],
    factor: Tensor | None,
    flag: Tensor | None,
    later: Tensor | None = None,
) -> None:
    """Fills the targets of `jobs`: `float32(source) * factor * 2^-exponent`.

    Args:
        jobs: dense tensors on one device, sources of one dtype; those with gaps in memory are
            copied first.
        factor: float32 0-d on the device; None for 1.
        flag: float32 0-d on the device, set to 1 if something is not finite before or after; None
            not to check.
        later: float32 0-d on the device: also flag what will not be finite times this.
    """
    whole = [_dense(job) for job in jobs if job.source.numel()]
    if not whole:
        return
    device = whole[0].target.device
    table, powers = _table(whole)
    table, powers = _sent(table, device), _sent(powers, device)
    one = torch.ones((), device=device)
    factor = one if factor is None else factor
    later = one if later is None else later
    found = torch.zeros((), device=device) if flag is None else flag
    is_half = whole[0].source.dtype == torch.float16
    widen_kernel[(len(table),)](
        table, powers, factor, later, found,  # type: ignore[arg-type]
        IS_HALF=is_half, BLOCK=_BLOCK,  # type: ignore[arg-type]
    )  # fmt: skip


def _dense(job: Widening) -> Widening:
    same = job.source.stride() == job.target.stride()
    if same and in_memory_order(job.source) is not None:
        return job
    return job._replace(
        source=torch.empty_like(job.target, dtype=job.source.dtype).copy_(job.source)
    )


def _table(jobs: Sequence[Widening]) -> tuple[Tensor, Tensor]:
    """Per piece: address of the source, address of the target, elements; and 2^-exponent."""
    total = sum(job.source.numel() for job in jobs)
    piece = max(_MIN_PIECE, -(-total // (_MAX_PIECES * _BLOCK)) * _BLOCK)
    rows: list[tuple[int, int, int]] = []
    powers: list[float] = []
    for source, target, exponent in jobs:
        numel = source.numel()
        read, write = source.data_ptr(), target.data_ptr()
        for first in range(0, numel, piece):
            rows.append((read + 2 * first, write + 4 * first, min(piece, numel - first)))
            powers.append(2.0**-exponent)
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(powers, dtype=torch.float32)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


@triton.jit
def widen_kernel(table, powers, factor, later, flag, IS_HALF: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One piece: both ends of a product are checked while it is in registers."""
    piece = tl.program_id(0).to(tl.int64)
    if IS_HALF:
        source = tl.load(table + 3 * piece).to(tl.pointer_type(tl.float16))
    else:
        source = tl.load(table + 3 * piece).to(tl.pointer_type(tl.bfloat16))
    target = tl.load(table + 3 * piece + 1).to(tl.pointer_type(tl.float32))
    numel = tl.load(table + 3 * piece + 2)
    then = tl.load(later)
    by = tl.load(factor) * tl.load(powers + piece)
    bad = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(0, numel, BLOCK):
        offsets = first + tl.arange(0, BLOCK)
        inside = offsets < numel
        value = tl.load(source + offsets, mask=inside, other=0.0).to(tl.float32)
        product = value * by
        tl.store(target + offsets, product, mask=inside)
        # Bits compare as integers: all exponents of inf and NaN, and no others, reach 0x7F800000.
        before = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        after = (product * then).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        bad = tl.maximum(bad, tl.where(tl.maximum(before, after) >= 0x7F800000, 1, 0))
    tl.store(flag, 1.0, mask=tl.max(bad, axis=0) > 0)  # type: ignore[operator]
