"""The few batches that an advice is based on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, TypeVar, cast

import torch
from torch.utils._pytree import tree_map

T = TypeVar("T")


def taken(batches: Iterable[T], count: int, call: str) -> list[T]:
    """The first batches; fewer if there are no more.

    Raises:
        ValueError: there is none.
    """
    found = list(islice(batches, count))
    if not found:
        raise ValueError(
            f"`{call}`: the batches are empty. Is the iterator used up, or the data set smaller "
            "than a batch with `drop_last=True`?"
        )
    return found


def on_device(batch: object, device: torch.device) -> object:
    """The batch with all its tensors on a device.

    Tensors are found wherever `torch.utils._pytree` looks, in other mappings and in dataclasses;
    what has a method `to`, such as a `PackedSequence` or a Hugging Face `BatchEncoding`, is asked
    to move.

    Example:
        >>> on_device({"x": [torch.ones(1)], "name": "a"}, torch.device("cpu"))
        {'x': [tensor([1.])], 'name': 'a'}
    """

    def moved(leaf: object) -> object:
        if hasattr(leaf, "to"):
            return cast(Any, leaf).to(device)
        if isinstance(leaf, Mapping):
            return {key: on_device(value, device) for key, value in leaf.items()}
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            names = (field.name for field in dataclasses.fields(leaf) if field.init)
            parts = {name: on_device(getattr(leaf, name), device) for name in names}
            return dataclasses.replace(leaf, **parts)
        return leaf

    return tree_map(moved, batch, is_leaf=_can_move)


def _can_move(value: object) -> bool:
    return hasattr(value, "to")


def model_device(model: torch.nn.Module) -> torch.device:
    """Where a model's first parameter is."""
    return next(model.parameters()).device
