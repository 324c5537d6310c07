"""Which model some parameters belong to, where nobody has said so."""

from __future__ import annotations

import gc
from collections.abc import Iterable

from torch import Tensor, nn


def owning_module(parameters: Iterable[Tensor]) -> nn.Module | None:
    """The outermost module that holds most of these parameters; None if none holds any.

    Looks through all objects that Python's garbage collector knows, which takes about a tenth of a
    second in a process with a million of them: only for who has something to name, and once.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> owning_module(model[0].parameters()) is model, owning_module([]) is None
        (True, True)
    """
    wanted = {id(parameter) for parameter in parameters}
    if not wanted:
        return None
    # By type: `isinstance` would ask proxies of lazy packages for their class, and import them.
    modules = [it for it in gc.get_objects() if issubclass(type(it), nn.Module)]
    inner = {id(child) for module in modules for child in _children(module)}
    held = [
        (sum(id(parameter) in wanted for parameter in module.parameters()), module)
        for module in modules
        if id(module) not in inner and "_parameters" in module.__dict__
    ]
    most, model = max(held, key=lambda pair: pair[0], default=(0, None))
    return model if most else None


def _children(module: nn.Module) -> list[nn.Module]:
    """Of a module that may be about to be made, and then has none."""
    return [child for child in module.__dict__.get("_modules", {}).values() if child is not None]
