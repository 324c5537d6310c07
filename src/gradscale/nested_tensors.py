"""The tensors in whatever models, losses and batches are given and return."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from torch import Tensor
from torch.utils._pytree import tree_leaves


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors in a nesting, in order: what `torch.utils._pytree` knows, and its neighbours.

    That is lists, tuples, named tuples, dictionaries and what a library has registered, such as the
    outputs of Transformers; and besides, other mappings, subclasses of lists and tuples, and
    dataclasses, which to torch are single leaves.

    Example:
        >>> import torch
        >>> [tensor.item() for tensor in tensors_in({"a": (torch.tensor(1), [torch.tensor(2)])})]
        [1, 2]
    """
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from tensors_in(list(leaf.values()))
        elif isinstance(leaf, list | tuple):
            yield from tensors_in(list(leaf))
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            fields = dataclasses.fields(leaf)
            yield from tensors_in([getattr(leaf, field.name) for field in fields])
