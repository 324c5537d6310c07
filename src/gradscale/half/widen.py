"""Half-precision gradients to float32 ones: divided and checked in one pass over memory.

    target = float32(source) * inv_scale * 2^-exponent

What lies below the half-precision minimum once divided survives, because the product is float32.
The pass reads 2 bytes and writes 4 per element, where a conversion followed by torch's unscale
moves 14. On CUDA one kernel walks over all tensors; on the CPU, blocks that fit into the cache are
converted and then divided where they are. Without Triton, and while a CUDA graph is captured, it is
the conversion followed by the unscale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from gradscale.capturing import capturing
from gradscale.gradients.unscale import Flags, multiply_and_check_, tensor_amax
from gradscale.half.widening import Widening, in_memory_order
from gradscale.triton_kernels import can_read

BLOCK = 1 << 17
"""Elements that are converted and divided together on the CPU: 768 KiB, within an L2 cache."""

PORTION = 1 << 25
"""Elements whose half and float32 gradients exist at the same time; the halves go afterwards."""


def widen_reference(source: Tensor, scale: float, exponent: int = 0) -> tuple[Tensor, bool]:
    """The float32 gradient, in float64 arithmetic, and whether it is not finite before or after.

    The slow, obvious version: the oracle of `widen`.
    """
    quotient = (source.to(torch.float64) / scale / 2.0**exponent).to(torch.float32)
    finite = bool(torch.isfinite(source).all() and torch.isfinite(quotient).all())
    return quotient, not finite


def widen(
    sources: list[tuple[Tensor, int]],
    inv_scale: Tensor | None,
    found_inf: Tensor | None,
    take: Callable[[int, Tensor], None],
    divided_later: Tensor | None = None,
) -> Flags:
    """Converts gradients, divides them, and flags those that are not finite.

    Args:
        sources: half-precision gradients, each with the exponent at which it is stored. Each is
            replaced by the result, so that the list keeps no half gradient alive.
        inv_scale: float32 0-d; None to convert only, without a division and without a check.
        found_inf: float32 0-d, the flag of its own device; None together with `inv_scale`.
        take: is given the place in `sources` and the float32 gradient as soon as it is there, and
            may let go of the half one.
        divided_later: float32 0-d: also flag what will not be finite times this.

    Returns:
        A flag per device that holds gradients, 0 or 1.
    """
    flags: Flags = {}
    # All portions first: below, each source gives way to its result.
    for places in list(_portions(sources)):
        device = sources[places[0]][0].device
        jobs = [Widening(s, _target(s), k) for s, k in (sources[place] for place in places)]
        flag = _flag_on(device, flags, found_inf)
        factor = None if inv_scale is None else inv_scale.to(device, non_blocking=True)
        later = None if divided_later is None else divided_later.to(device, non_blocking=True)
        pass_over(jobs, factor, flag, later)
        for place, job in zip(places, jobs, strict=True):
            # The half is let go of here; what stands in its place is at no exponent of its own.
            sources[place] = job.target, 0
            take(place, job.target)
        # Or the halves of this portion would live on while the next one's targets are made.
        del jobs
    return flags


def _target(source: Tensor) -> Tensor:
    return torch.empty_like(source, dtype=torch.float32)


def _flag_on(device: torch.device, flags: Flags, found_inf: Tensor | None) -> Tensor | None:
    if found_inf is None:
        return None
    if device not in flags:
        same = device == found_inf.device
        flags[device] = (
            found_inf if same else found_inf.to(device=device, copy=True, non_blocking=True)
        )
    return flags[device]


def _portions(sources: Sequence[tuple[Tensor, int]]) -> Iterator[list[int]]:
    """Places of tensors on one device and of one dtype, about `PORTION` elements together."""
    by_kind: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, (source, _) in enumerate(sources):
        by_kind.setdefault((source.device, source.dtype), []).append(place)
    for places in by_kind.values():
        portion: list[int] = []
        size = 0
        for place in places:
            portion.append(place)
            size += sources[place][0].numel()
            if size >= PORTION:
                yield portion
                portion, size = [], 0
        if portion:
            yield portion


def pass_over(
    jobs: list[Widening],
    factor: Tensor | None,
    flag: Tensor | None,
    later: Tensor | None = None,
) -> None:
    """Fills the targets of jobs on one device, from sources of one dtype; see `widen`."""
    if _by_kernel(jobs[0]):
        from gradscale.half.widen_kernel import widen_on_gpu

        widen_on_gpu(jobs, factor, flag, later)
        return
    # A launch has one factor for all of its tensors.
    for exponent in sorted({job.exponent for job in jobs}):
        by = _times_power(factor, -exponent, jobs[0].target.device)
        of_exponent = [job for job in jobs if job.exponent == exponent]
        on_cpu = jobs[0].source.device.type == "cpu"
        for targets, pieces in _blocks(of_exponent) if on_cpu else _whole(of_exponent):
            torch._foreach_copy_(targets, pieces)  # pyright: ignore[reportPrivateImportUsage]
            if by is not None:
                # Torch's kernel writes a flag whether somebody wants it or not.
                unused = (
                    torch.zeros((), dtype=torch.float32, device=by.device) if flag is None else flag
                )
                multiply_and_check_(targets, unused, by)
    # What a factor of at most 1 multiplies cannot overflow; on the CPU it costs nothing to ask.
    if flag is not None and later is not None and (later.device.type != "cpu" or later.item() > 1):
        largest = tensor_amax([job.target for job in jobs]) * later
        # Not `largest == inf`, which a NaN is not.
        torch.maximum(flag, (largest < math.inf).logical_not().to(flag.dtype), out=flag)


def _times_power(factor: Tensor | None, exponent: int, device: torch.device) -> Tensor | None:
    if exponent == 0:
        return factor
    power = torch.full((), 2.0**exponent, device=device)
    return power if factor is None else factor * power


def _whole(jobs: Sequence[Widening]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """All at once: an accelerator has no cache to stay within, and every launch costs."""
    filled = [job for job in jobs if job.source.numel()]
    if filled:
        yield [job.target for job in filled], [job.source for job in filled]


def _blocks(jobs: Iterable[Widening]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Targets and sources in pieces of about `BLOCK` elements, each written before it is read."""
    targets: list[Tensor] = []
    sources: list[Tensor] = []
    size = 0
    for job in jobs:
        if not job.source.numel():
            continue
        for target, source in _pieces(job):
            targets.append(target)
            sources.append(source)
            size += target.numel()
            if size >= BLOCK:
                yield targets, sources
                targets, sources, size = [], [], 0
    if targets:
        yield targets, sources


def _pieces(job: Widening) -> Iterator[tuple[Tensor, Tensor]]:
    if job.source.numel() <= BLOCK:
        yield job.target, job.source
        return
    # Flat views pair up the same elements only where both lie in the same order.
    source, target = in_memory_order(job.source), in_memory_order(job.target)
    if source is None or target is None or job.source.stride() != job.target.stride():
        yield job.target, job.source
        return
    yield from zip(target.split(BLOCK), source.split(BLOCK), strict=True)


def _by_kernel(job: Widening) -> bool:
    # Its table of addresses would be gone when a captured graph is replayed.
    return can_read(job.source) and not capturing()
