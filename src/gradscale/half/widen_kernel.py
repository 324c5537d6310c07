"""The Triton kernel behind `widen`: all gradients in one launch, one read and one write each.

A program walks over one piece of one tensor. Where the pieces are comes in a table, copied to the
device without waiting for it. Importing this module needs Triton, which comes with torch for CUDA.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache
from struct import pack, unpack

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradscale.half.widening import Widening, in_memory_order
from gradscale.triton_kernels import launching_on

_BLOCK = 2048
_MIN_PIECE = 16 * _BLOCK
_MAX_PIECES = 4096
# Bytes: the widest load of a thread is 128 bits.
_ALIGNMENT = 16


def widen_on_gpu(
    jobs: Sequence[Widening],
    factor: Tensor | None,
    flag: Tensor | None,
    later: Tensor | None = None,
) -> None:
    """Fills the targets of `jobs`: `float32(source) * factor * 2^-exponent`.

    Not for a stream that is being captured: a replay would read the table from host memory that is
    somebody else's by then.

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
    table, aligned = piece_table(whole)
    with launching_on(device):
        # Memory freed below is reused in the order of this stream, the table's after the kernel.
        widen_kernel[(len(table),)](
            _sent(table, device), factor, later, flag,  # type: ignore[arg-type]
            IS_HALF=whole[0].source.dtype == torch.float16,  # type: ignore[arg-type]
            ALIGNED=aligned, BLOCK=_BLOCK,  # type: ignore[arg-type]
        )  # fmt: skip


def _dense(job: Widening) -> Widening:
    if job.source.is_contiguous() and job.target.is_contiguous():
        return job  # nearly all are, and this is asked of every tensor in every step
    same = job.source.stride() == job.target.stride()
    if same and in_memory_order(job.source) is not None:
        return job
    return job._replace(
        source=torch.empty_like(job.target, dtype=job.source.dtype).copy_(job.source)
    )


def piece_table(jobs: Sequence[Widening]) -> tuple[Tensor, bool]:
    """Where the pieces are, and whether all of them begin at a multiple of 16 bytes.

    Returns:
        A row per piece, int64: address of the source, address of the target, elements, and the
        float32 bits of ``2**-exponent``.
    """
    # Through a buffer: torch.tensor() takes nested lists apart ten times slower.
    numbers = array("q")
    for source, target, exponent in jobs:
        numbers.extend((source.data_ptr(), target.data_ptr(), source.numel(), _bits(exponent)))
    rows = torch.frombuffer(numbers, dtype=torch.int64).view(-1, 4)
    aligned = not bool(((rows[:, 0] | rows[:, 1]) % _ALIGNMENT).any())
    numel = rows[:, 2]
    total = int(numel.sum())
    # Whole blocks, so that only a tensor's last piece has an end to mask.
    piece = max(_MIN_PIECE, -(-total // (_MAX_PIECES * _BLOCK)) * _BLOCK)
    pieces = (numel + (piece - 1)) // piece
    table = rows.repeat_interleave(pieces, dim=0)
    if len(table) > len(rows):
        # The row of each tensor's first piece, and then the element at which each piece begins.
        begins = (pieces.cumsum(0) - pieces).repeat_interleave(pieces)
        first = (torch.arange(len(table), device="cpu") - begins) * piece
        # Addresses count bytes: 2 an element of the source, 4 of the target.
        table[:, 0] += 2 * first
        table[:, 1] += 4 * first
        table[:, 2] = (table[:, 2] - first).clamp_(max=piece)
    return table, aligned


@cache
def _bits(exponent: int) -> int:
    """The float32 bits of ``2**-exponent``."""
    return unpack("<i", pack("<f", 2.0**-exponent))[0]


def _sent(table: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return table
    return table.pin_memory().to(device, non_blocking=True)


@triton.jit
def widen_kernel(
    table, factor, later, flag,  # type: ignore[no-untyped-def]
    IS_HALF: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One piece: both ends of a product are checked while it is in registers."""
    row = table + 4 * tl.program_id(0).to(tl.int64)
    if IS_HALF:
        source = tl.load(row).to(tl.pointer_type(tl.float16))
    else:
        source = tl.load(row).to(tl.pointer_type(tl.bfloat16))
    target = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        # The compiler cannot know it of an address that was loaded, and would go by elements.
        source = tl.multiple_of(source, 16)
        target = tl.multiple_of(target, 16)
    numel = tl.load(row + 2)
    by = tl.load(row + 3).to(tl.int32).to(tl.float32, bitcast=True)
    if factor is not None:
        by *= tl.load(factor)
    largest = tl.zeros((BLOCK,), dtype=tl.int32)
    whole = numel // BLOCK * BLOCK
    for first in range(0, whole, BLOCK):
        offsets = first + tl.arange(0, BLOCK)
        value = tl.load(source + offsets).to(tl.float32)
        tl.store(target + offsets, value * by)
        if flag is not None:
            largest = tl.maximum(largest, _magnitude_bits(value, by, later))
    if whole < numel:
        offsets = whole + tl.arange(0, BLOCK)
        value = tl.load(source + offsets, mask=offsets < numel, other=0.0).to(tl.float32)
        tl.store(target + offsets, value * by, mask=offsets < numel)
        if flag is not None:
            largest = tl.maximum(largest, _magnitude_bits(value, by, later))
    if flag is not None:
        # Bits compare as integers: all exponents of inf and NaN, and no others, reach 0x7F800000.
        tl.store(flag, 1.0, mask=tl.max(largest, axis=0) >= 0x7F800000)  # type: ignore[operator]


@triton.jit
def _magnitude_bits(value, by, later):  # type: ignore[no-untyped-def]
    """The larger of what was read, and of what will become of it."""
    after = value * by
    if later is not None:
        after *= tl.load(later)
    before = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.maximum(before, after.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
