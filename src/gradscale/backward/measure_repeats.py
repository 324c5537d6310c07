"""Tensors that pass several nodes unchanged, as through a sum, so that each is read once."""

from __future__ import annotations

import weakref

from torch import Tensor


class Repeats:
    """Which row already holds the counts of a tensor, and of nothing else. Keeps no tensor alive.

    Example:
        >>> import torch
        >>> repeats, grad = Repeats(), torch.ones(2)
        >>> repeats.of(grad, 0), repeats.of(grad, 1), repeats.of(grad.clone(), 2)
        (None, 0, None)
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self._counted: dict[int, int] = {}

    def of(self, tensor: Tensor, row: int) -> int | None:
        """The row to copy, None if the tensor must be counted; then it is known from now on.

        Args:
            tensor: about to be counted.
            row: where; a row that holds something already is never copied to, nor from.
        """
        times = self._counted.get(row, 0)
        self._counted[row] = times + 1
        known = self._seen.get(id(tensor))
        version = tensor._version
        if known is not None and known[0]() is tensor and known[1] == version:
            source = known[2]
            if times == 0 and self._counted[source] == 1:
                return source
        else:
            self._seen[id(tensor)] = (weakref.ref(tensor), version, row)
        return None
