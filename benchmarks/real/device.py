"""What a device tells of time, memory and host reads; a CPU of time alone."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import torch


def elapsed(work: Callable[[], object], device: str) -> float:
    """Seconds of `work`: by events on a GPU, processor time on a CPU."""
    if device == "cpu":
        begin = time.process_time()
        work()
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def allocated(device: str) -> int:
    """Bytes of tensors alive; 0 on a CPU, which does not say. The peak is counted anew from now."""
    if device == "cpu":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak(device: str) -> int | None:
    """The most bytes alive since the last `allocated`; None on a CPU."""
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def host_reads(work: Callable[[], object], device: str) -> int | None:
    """How often the host waits for the device in `work`, as torch sees it; None on a CPU."""
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in told)
