"""What an optimizer keeps, however deep: tensors and numbers in dictionaries, lists and tuples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor


def kept_tensors(kept: object) -> list[Tensor]:
    """Its tensors, in order."""
    return [leaf for leaf in kept_values(kept) if isinstance(leaf, Tensor)]


def kept_values(kept: object) -> Iterator[object]:
    """What is no container.

    Example:
        >>> list(kept_values({"step": 1, "inner": [{"beta": 0.9}, None]}))
        [1, 0.9, None]
    """
    if isinstance(kept, Mapping):
        for value in cast("Mapping[object, object]", kept).values():
            yield from kept_values(value)
    elif isinstance(kept, Sequence) and not isinstance(kept, str | bytes):
        for value in cast("Sequence[object]", kept):
            yield from kept_values(value)
    else:
        yield kept


def names_in(kept: object) -> set[str]:
    """The keys of its dictionaries, at any depth.

    Example:
        >>> sorted(names_in({"inner": [{"m": 1}]}))
        ['inner', 'm']
    """
    if isinstance(kept, Mapping):
        held = cast("Mapping[object, object]", kept)
        return {key for key in held if isinstance(key, str)}.union(*map(names_in, held.values()))
    if isinstance(kept, Sequence) and not isinstance(kept, str | bytes):
        return set[str]().union(*map(names_in, cast("Sequence[object]", kept)))
    return set()


def copy_of_kept(value: object) -> object:
    """A deep copy of tensors in dictionaries, lists and tuples; everything else as it is."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) is dict:
        items = cast("dict[object, object]", value).items()
        return {key: copy_of_kept(item) for key, item in items}
    if type(value) is list or type(value) is tuple:
        return type(value)(map(copy_of_kept, cast("Sequence[object]", value)))
    return value


def inner_optimizers(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """Optimizers that this one has in its attributes, and steps in its place."""
    own = ("state", "param_groups", "defaults")  # torch's, as long as the network is
    values = kept_values([value for name, value in vars(optimizer).items() if name not in own])
    return [it for it in values if isinstance(it, torch.optim.Optimizer)]


def refuse_deeper(call: str, missing: Iterable[str], made: Mapping[str, object]) -> None:
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
