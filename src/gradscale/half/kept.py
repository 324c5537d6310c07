"""Which modules of a model stay in float32: normalisation, buffers without weights, and your own.

Statistics are sums over many elements and need float32; their weights are few. A module that holds
buffers and no parameter (rotary frequencies, a table of positions, a codebook) has nothing to gain
from half precision, and its numbers are rarely made for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple, cast

from torch import Tensor, nn

Keep = str | nn.Module | type[nn.Module] | Callable[[str, nn.Module], bool]
"""What names modules: a name or pattern, one itself, a class, or a predicate of name and module."""

NORMALIZATION: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # BatchNorm, SyncBatchNorm, InstanceNorm and their lazy forms
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
    nn.RMSNorm,
)
"""Torch's own normalisation layers; name others in `keep`, by class."""


class Kept(NamedTuple):
    """What stays in float32.

    Attributes:
        modules: the outermost modules, by name; all below them stays as well.
        named: those of them that the user named.
        tensors: ids of all parameters and buffers that stay.
    """

    modules: dict[str, nn.Module]
    named: set[str]
    tensors: set[int]


def kept_of(model: nn.Module, keep: Keep | Collection[Keep] | None = ()) -> Kept:
    """What of a model stays in float32.

    Args:
        model: the model.
        keep: names as in `named_modules`, `named_parameters` or `named_buffers`, patterns with
            ``*`` and ``?``, modules, module classes, predicates, or a collection of these.

    Raises:
        ValueError: if a name, a pattern, a module or a class fits nothing.
        TypeError: if something in `keep` is none of these.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1))
        >>> list(kept_of(model, "2").modules)
        ['1', '2']
    """
    wishes = _wishes(keep)
    named = {
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if any(_names(wish, name, module) for wish in wishes)
    }
    chosen = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if name in named or isinstance(module, NORMALIZATION) or _only_buffers(module)
    }
    outermost = {
        name: module
        for name, module in chosen.items()
        if not any(_below(name, other) for other in chosen)
    }
    _check_modules(model, wishes)
    tensors = {id(t) for module in outermost.values() for t in _tensors(module)}
    tensors |= _tensors_named(model, wishes, named)
    return Kept(outermost, named & outermost.keys(), tensors)


def _wishes(keep: Keep | Collection[Keep] | None) -> list[Keep]:
    if keep is None:
        return []
    # A module may be a collection, too: a Sequential of its layers.
    one = isinstance(keep, str | nn.Module) or callable(keep)
    several = not one and isinstance(cast(object, keep), Collection)
    wishes = list(cast(Collection[Keep], keep)) if several else [cast(Keep, keep)]
    for wish in wishes:
        if not (isinstance(wish, str | nn.Module) or callable(wish)):
            raise TypeError(
                f"`half_precision(keep={wish!r})`: name what stays in float32 by its name or a "
                "pattern, a module or its class, or a function of name and module."
            )
    return wishes


def _names(wish: Keep, name: str, module: nn.Module) -> bool:
    if isinstance(wish, str):
        return bool(name) and fnmatchcase(name, wish)
    if isinstance(wish, nn.Module):
        return module is wish
    if isinstance(wish, type):
        return isinstance(module, wish)
    return bool(wish(name, module))


def _only_buffers(module: nn.Module) -> bool:
    floats = any(buffer.is_floating_point() for buffer in module.buffers())
    return floats and next(module.parameters(), None) is None


def _below(name: str, other: str) -> bool:
    return name != other and (not other or name.startswith(f"{other}."))


def _check_modules(model: nn.Module, wishes: list[Keep]) -> None:
    for wish in wishes:
        if not isinstance(wish, nn.Module | type):
            continue
        if not any(_names(wish, "", module) for module in model.modules()):
            said = wish.__name__ if isinstance(wish, type) else f"{type(wish).__name__}(…)"
            classes = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
            raise ValueError(
                f"`half_precision(keep={said})` fits no module of the model, which is made of: "
                f"{classes}."
            )


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _tensors_named(model: nn.Module, wishes: list[Keep], modules: set[str]) -> set[int]:
    """The ids of parameters and buffers named one by one; checks that every name fits something."""
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    found: set[int] = set()
    for wish in wishes:
        if not isinstance(wish, str):
            continue
        fitting = [tensor for name, tensor in tensors.items() if fnmatchcase(name, wish)]
        if not fitting and not any(fnmatchcase(name, wish) for name in modules):
            known = ", ".join(sorted({name.split(".")[0] for name in tensors}))
            raise ValueError(
                f"`half_precision(keep={wish!r})` fits no module, parameter or buffer. Names are "
                f"those of `model.named_modules()`; here they begin with: {known or 'nothing'}."
            )
        found.update(id(tensor) for tensor in fitting)
    return found
