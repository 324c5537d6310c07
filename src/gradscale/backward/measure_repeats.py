"""Tensors that pass several nodes unchanged, as through a sum or a view: each is read once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class _Known(NamedTuple):
    storage: StorageWeakRef
    version: int
    row: int


class Repeats:
    """Which row already holds the counts of a tensor, and of nothing else. Keeps no tensor alive.

    Two tensors hold the same if they cover the same memory, in whatever order, and nobody wrote to
    it in between.

    Attributes:
        sources: of each row that holds nothing but a repeat, the one in which it was counted.

    Example:
        >>> repeats, grad = Repeats(), torch.ones(2, 3)
        >>> repeats.of(grad, 0), repeats.of(grad.T, 1), repeats.of(grad.clone(), 2)
        (None, 0, None)
    """

    def __init__(self) -> None:
        self.sources: dict[int, int] = {}
        self._seen: dict[tuple[int, int, torch.dtype], _Known] = {}
        self._counted: dict[int, int] = {}

    def of(self, tensor: Tensor, row: int) -> int | None:
        """The row to add, None if the tensor must be counted; then it is known from now on.

        Args:
            tensor: about to be counted.
            row: where; one that holds something else as well is no repeat of anything.
        """
        times = self._counted.get(row, 0)
        self._counted[row] = times + 1
        self.sources.pop(row, None)
        if type(tensor) is not Tensor or not is_dense(tensor):
            return None
        # Dense, so that these three name the same elements, in whatever shape a view shows them.
        key = tensor.data_ptr(), tensor.numel(), tensor.dtype
        known, version = self._seen.get(key), tensor._version
        if known is None or known.storage.expired() or known.version != version:
            storage = StorageWeakRef(tensor.untyped_storage())
            self._seen[key] = _Known(storage, version, row)
        # A row into which more was counted is not the counts of this tensor alone.
        elif known.row != row and self._counted[known.row] == 1:
            if times == 0:
                self.sources[row] = known.row
            return known.row
        return None


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie side by side in memory, each once, in whatever order of the axes.

    Example:
        >>> x = torch.ones(2, 3)
        >>> is_dense(x.T), is_dense(x[:, :2]), is_dense(x[:1].expand(2, 3))
        (True, False, False)
    """
    if tensor.layout != torch.strided:
        return False
    if tensor.is_contiguous():
        return True
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda a: a[1]):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
