"""A batch whose tensors stay where they are: what a graph was recorded with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class StaticBatch:
    """Copies of a batch's tensors, to be refilled by later batches of the same shapes.

    Args:
        batch: tensors in any nesting of lists, tuples and dictionaries; beside them whatever else,
            which must stay equal.
        device: where the copies are.

    Example:
        >>> static = StaticBatch({"x": torch.zeros(2), "train": True}, "cpu")
        >>> static.fill_({"x": torch.ones(2), "train": True})
        >>> static.tensors
        {'x': tensor([1., 1.]), 'train': True}
    """

    def __init__(self, batch: object, device: torch.device | str) -> None:
        leaves, self._structure = pytree.tree_flatten(batch)
        self._leaves = [
            leaf.to(device, copy=True) if isinstance(leaf, Tensor) else leaf for leaf in leaves
        ]

    @property
    def tensors(self) -> Sequence[object]:
        """The batch, with the static tensors in it."""
        return pytree.tree_unflatten(self._leaves, self._structure)

    def fill_(self, batch: object) -> None:
        """Copies `batch` into the static tensors; from pinned memory without waiting.

        Raises:
            ValueError: if it differs in anything but its tensors' values.
        """
        leaves, structure = pytree.tree_flatten(batch)
        if structure != self._structure:
            raise ValueError(
                f"`step(batch)`: the graph was recorded with a batch of the structure "
                f"{self._structure}, this one is {structure}. {_WAY_OUT}"
            )
        for static, leaf in zip(self._leaves, leaves, strict=True):
            if _describe(static) != _describe(leaf):
                raise ValueError(
                    f"`step(batch)`: the graph was recorded with {_describe(static)}, this batch "
                    f"has {_describe(leaf)} there. {_WAY_OUT}"
                )
        for static, leaf in zip(self._leaves, leaves, strict=True):
            # Only now, so that a batch that is refused has not overwritten half of the one before.
            if isinstance(static, Tensor):
                static.copy_(leaf, non_blocking=True)


_WAY_OUT = (
    "Let all batches be alike (`DataLoader(drop_last=True)`), or run the odd one with "
    "`eager_step(batch)`."
)


def _describe(leaf: object) -> str:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    dtype = str(leaf.dtype).removeprefix("torch.")
    return f"a {dtype} tensor of shape {tuple(leaf.shape)}"
