"""Copies of small tensors that wait to be counted together."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.backward.measure_tally import Tally

SMALL = 2048
"""Elements. On a CPU that many take about as long to count alone as in company (30 µs)."""

MOST_TENSORS = 4096
"""That wait at once; their rows take 9 MB at most, with a column for each octave of float32."""

MOST_ELEMENTS = 1 << 17
"""That wait at once: 1 MB at most, and while they are counted some integers of 8 bytes for each."""


def is_small(tensor: Tensor) -> bool:
    """Whether a tensor may wait: a plain and dense one, not too large to be copied.

    Example:
        >>> is_small(torch.ones(5)), is_small(torch.ones(5000)), is_small(torch.ones(5).to_sparse())
        (True, False, False)
    """
    return (
        type(tensor) is Tensor
        and 0 < tensor.numel() <= SMALL
        and tensor.layout is torch.strided
        and tensor.is_floating_point()
    )


class Waiting:
    """Small tensors of one device on their way into its tally; those of one kind of octave.

    A tensor that is handed on may be overwritten by whoever comes next, be it a hook, a user's
    function or the sum that it enters, so each is copied. A copy is all that its hook does.

    Args:
        tally: where they will be counted.
        ceil: how; see `measure_rows`.
    """

    def __init__(self, tally: Tally, *, ceil: bool) -> None:
        self._tally = tally
        self._ceil = ceil
        self._copies: list[tuple[int, Tensor]] = []
        self._elements = 0
        self._stream = _stream_of(tally.device)

    def add(self, place: int, tensor: Tensor) -> bool:
        """Copies a small tensor; False, and nothing done, if it may not wait."""
        if not is_small(tensor):
            return False
        if self._stream is not None and _stream_of(self._tally.device) != self._stream:
            return False  # the memory of its copy would be used again before it is counted
        copy = _hidden_copy(tensor) if observed() else tensor.clone()
        self._copies.append((place, copy))
        self._elements += tensor.numel()
        if self._elements > MOST_ELEMENTS or len(self._copies) >= MOST_TENSORS:
            self.count()
        return True

    def count(self) -> None:
        """Counts all that wait."""
        # Another thread of the engine may add at the end meanwhile.
        copies = self._copies[:]
        del self._copies[: len(copies)]
        self._elements = 0
        by_dtype: dict[torch.dtype, tuple[list[int], list[Tensor]]] = {}
        for place, tensor in copies:
            places, tensors = by_dtype.setdefault(tensor.dtype, ([], []))
            places.append(place)
            tensors.append(tensor)
        with torch.no_grad(), torch._C._DisableTorchDispatch():
            for places, tensors in by_dtype.values():
                self._tally.count_together(places, tensors, ceil=self._ceil)


def observed() -> bool:
    """Whether an operation would be recorded, or shown to a dispatch mode such as `emulate`.

    Example:
        >>> with torch.no_grad():
        ...     observed()
        False
    """
    return torch.is_grad_enabled() or bool(torch._C._len_torch_dispatch_stack())


def _hidden_copy(tensor: Tensor) -> Tensor:
    """A copy that no dispatch mode sees, nor a pass that is differentiated in its turn."""
    with torch._C._DisableTorchDispatch():
        return tensor.detach().clone()


def _stream_of(device: torch.device) -> torch.Stream | None:
    accelerator = None if device.type == "cpu" else torch.accelerator.current_accelerator()
    if accelerator is None or accelerator.type != device.type:
        return None
    return torch.accelerator.current_stream(device)
