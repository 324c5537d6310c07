"""What is put around an optimizer's methods, and around the closure of its step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer


def closure_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[], Any] | None:
    """The closure that a step pre-hook is given, after the optimizer itself; None without."""
    given = kwargs.get("closure", args[1] if len(args) > 1 else None)
    return given if callable(given) else None


def with_closure(args: Sequence[Any], kwargs: Mapping[str, Any], closure: Any) -> Any:
    """The same arguments with another closure, as a step pre-hook returns them."""
    if "closure" in kwargs:
        return tuple(args), {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), dict(kwargs)


def patch(optimizer: Optimizer, name: str, method: Callable[..., Any]) -> Callable[[], None]:
    """Puts a method around an optimizer's own; returns what takes it off again.

    Torch has hooks for `step` and for states, and none for these. An optimizer's pickle holds its
    state and settings only, so this never travels.
    """
    original = getattr(optimizer, name)

    def around(*args: Any, **kwargs: Any) -> Any:
        return method(original, *args, **kwargs)

    def restore() -> None:
        optimizer.__dict__.pop(name, None)

    setattr(optimizer, name, around)
    return restore
