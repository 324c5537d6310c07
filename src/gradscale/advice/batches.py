"""The few batches that an advice is based on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch.utils._pytree import tree_map


def taken(batches: Iterable[Any], count: int, call: str) -> list[Any]:
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


def on_device(batch: Any, device: torch.device) -> Any:
    """The batch with all its tensors on a device.

    Tensors are found wherever `torch.utils._pytree` looks, in other mappings and in dataclasses;
    what has a method `to`, such as a `PackedSequence` or a Hugging Face `BatchEncoding`, is asked
    to move.

    Example:
        >>> on_device({"x": [torch.ones(1)], "name": "a"}, torch.device("cpu"))
        {'x': [tensor([1.])], 'name': 'a'}
    """

    def moved(leaf: Any) -> Any:
        if hasattr(leaf, "to"):
            return leaf.to(device)
        if isinstance(leaf, Mapping):
            return {key: on_device(value, device) for key, value in leaf.items()}
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            names = (field.name for field in dataclasses.fields(leaf) if field.init)
            parts = {name: on_device(getattr(leaf, name), device) for name in names}
            return dataclasses.replace(leaf, **parts)
        return leaf

    return tree_map(moved, batch, is_leaf=lambda value: hasattr(value, "to"))


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a model's first parameter is."""
    return next(model.parameters()).device
