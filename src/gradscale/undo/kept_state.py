"""What an optimizer keeps, however deep: tensors and numbers in dictionaries, lists and tuples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor


def tensors_in(kept: Any) -> list[Tensor]:
    """Its tensors, in order."""
    return [leaf for leaf in leaves_of(kept) if isinstance(leaf, Tensor)]


def leaves_of(kept: Any) -> Iterator[Any]:
    """What is no container.

    Example:
        >>> list(leaves_of({"step": 1, "inner": [{"beta": 0.9}, None]}))
        [1, 0.9, None]
    """
    if isinstance(kept, Mapping):
        for value in cast("Mapping[Any, Any]", kept).values():
            yield from leaves_of(value)
    elif isinstance(kept, Sequence) and not isinstance(kept, str | bytes):
        for value in cast("Sequence[Any]", kept):
            yield from leaves_of(value)
    else:
        yield kept


def names_in(kept: Any) -> set[str]:
    """The keys of its dictionaries, at any depth.

    Example:
        >>> sorted(names_in({"inner": [{"m": 1}]}))
        ['inner', 'm']
    """
    if isinstance(kept, Mapping):
        held = cast("Mapping[Any, Any]", kept)
        return {key for key in held if isinstance(key, str)}.union(*map(names_in, held.values()))
    if isinstance(kept, Sequence) and not isinstance(kept, str | bytes):
        return set[str]().union(*map(names_in, cast("Sequence[Any]", kept)))
    return set()


def copied(value: Any) -> Any:
    """A deep copy of tensors in dictionaries, lists and tuples; everything else as it is."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {key: copied(item) for key, item in cast("dict[Any, Any]", value).items()}
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    return value


def inner_optimizers(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """Optimizers that this one has in its attributes, and steps in its place."""
    own = ("state", "param_groups", "defaults")  # torch's, as long as the network is
    values = leaves_of([value for name, value in vars(optimizer).items() if name not in own])
    return [it for it in values if isinstance(it, torch.optim.Optimizer)]


def refuse_deeper(call: str, missing: Iterable[str], made: Mapping[str, Any]) -> None:
    """Refuses names of what lies within a container: it would not follow the scale.

    Args:
        call: what the user wrote.
        missing: names that stand for nothing of the first level.
        made: what is kept for a parameter.

    Raises:
        ValueError: if one of them lies deeper.
    """
    for name, value in made.items():
        for hidden in names_in(value).intersection(missing):
            raise ValueError(
                f"{call}: {hidden!r} lies deeper, in `optimizer.state[parameter][{name!r}]`, "
                "and only tensors of the first level can follow the scale. Pass "
                "`undo='gradient'`, which works with every optimizer."
            )
