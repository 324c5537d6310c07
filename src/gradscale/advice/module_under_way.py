"""Which module's forward pass is under way, for errors that do not say where they come from."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial

from torch import nn


@contextmanager
def modules_under_way(model: nn.Module) -> Generator[list[str]]:
    """The names of the modules that have been entered and not left, outermost first.

    One whose forward pass raised stays in the list; the last is where that happened.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 1))
        >>> with modules_under_way(model) as entered:
        ...     try:
        ...         model(torch.ones(1, 2))
        ...     except RuntimeError:
        ...         print(entered)
        ['1']
    """
    entered: list[str] = []
    handles = [
        handle
        for name, module in model.named_modules()
        if name
        for handle in (
            module.register_forward_pre_hook(partial(_enter, entered, name)),
            module.register_forward_hook(partial(_leave, entered, name)),
        )
    ]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def _enter(entered: list[str], name: str, *_: object) -> None:
    entered.append(name)


def _leave(entered: list[str], name: str, *_: object) -> None:
    # What raised inside, and was caught there, as checkpointing does to stop early, has not left.
    while entered and entered.pop() != name:
        pass
