"""The few batches that an advice is based on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor


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


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with all its tensors on a device.

    Tensors are found in lists, tuples, named tuples, mappings and dataclasses; anything else with a
    method `to`, such as a `PackedSequence` or a Hugging Face `BatchEncoding`, is asked to move.

    Example:
        >>> moved({"x": [torch.ones(1)], "name": "a"}, torch.device("cpu"))
        {'x': [tensor([1.])], 'name': 'a'}
    """
    if isinstance(batch, Tensor):
        return batch.to(device)
    if type(batch) is dict:
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields") and not hasattr(batch, "to"):
        return type(batch)(*(moved(value, device) for value in batch))
    if type(batch) in (list, tuple):
        return type(batch)(moved(value, device) for value in cast("list[Any]", batch))
    if hasattr(batch, "to"):
        return cast(Any, batch).to(device)
    if isinstance(batch, Mapping):
        pairs = cast("Mapping[Any, Any]", batch).items()
        return {key: moved(value, device) for key, value in pairs}
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = (field.name for field in dataclasses.fields(batch) if field.init)
        changes = {name: moved(getattr(batch, name), device) for name in fields}
        return dataclasses.replace(batch, **changes)
    return batch


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a model's first parameter is."""
    return next(model.parameters()).device
