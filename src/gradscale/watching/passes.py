"""Where a backward pass begins: those who want to know are told, and nothing else changes.

`Tensor.backward` and torch's own checkpointing look `torch.autograd.backward` up when they are
called, so it is replaced while somebody listens, and put back after the last one left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch

Around = Callable[[Any], AbstractContextManager[object]]


class _Interception:
    """The listeners, and the function that they stand in front of."""

    def __init__(self) -> None:
        self.listeners: list[Around] = []
        self.original: Callable[..., None] | None = None
        self.replacement: Callable[..., None] | None = None

    def install(self) -> None:
        if torch.autograd.backward is self.replacement:
            return  # somebody else had replaced it in between, and still calls ours
        original = self.original = torch.autograd.backward

        @functools.wraps(original)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
            with ExitStack() as stack:
                for around in tuple(self.listeners):
                    stack.enter_context(around(tensors))
                return original(tensors, *args, **kwargs)

        self.replacement = torch.autograd.backward = backward

    def uninstall(self) -> None:
        # A replacement on top of ours stays; without listeners ours does nothing.
        if torch.autograd.backward is self.replacement and self.original is not None:
            torch.autograd.backward = self.original
            self.original = self.replacement = None


_INTERCEPTION = _Interception()


def listen(around: Around) -> None:
    """From now on every backward pass runs inside `around(tensors)`, in the order of the calls.

    Passes of `torch.autograd.grad`, and of code that imported the function `backward` by name
    before, are not seen.

    Args:
        around: makes a context manager of what the pass begins at.

    Example:
        >>> from contextlib import contextmanager
        >>> @contextmanager
        ... def around(loss):
        ...     print("before", loss.item())
        ...     yield
        ...     print("after")
        >>> listen(around)
        >>> torch.ones(2, requires_grad=True).sum().backward()
        before 2.0
        after
        >>> stop_listening(around)
    """
    if not _INTERCEPTION.listeners:
        _INTERCEPTION.install()
    _INTERCEPTION.listeners.append(around)


def stop_listening(around: Around) -> None:
    """The last pass was the last one; see `listen`."""
    _INTERCEPTION.listeners.remove(around)
    if not _INTERCEPTION.listeners:
        _INTERCEPTION.uninstall()
