"""Where a backward pass begins: those who want to know are told, and nothing else changes.

`Tensor.backward` and torch's own checkpointing look `torch.autograd.backward` up when they are
called, so it is replaced while somebody listens, and put back after the last one left.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import torch

from gradscale.backward.running_pass import current_pass
from gradscale.emulation.later_passes import Roots

Around = Callable[[Roots], AbstractContextManager[object]]


class _Call(threading.local):
    """The call of `backward` that this thread is telling of, by the pass that it is made in."""

    telling: int | None = None


class _Listeners:
    """Those who listen, and the function that stands in for torch's while there are some."""

    def __init__(self) -> None:
        self.all: list[Around] = []
        self.original = self.replacement = torch.autograd.backward

    def install(self) -> None:
        # Looked up as late as this: somebody else may have replaced it, and goes on to be called.
        original: Callable[..., None] = torch.autograd.backward
        self.original = torch.autograd.backward

        @functools.wraps(original)
        def backward(tensors: Roots, *args: object, **kwargs: object) -> None:
            # A pass within a pass is one of its own, as a reentrant checkpoint's.
            before, here = _CALL.telling, current_pass()
            if not self.all or before == here:
                # Nobody listens, or a replacement of ours further up has told of this call.
                return original(tensors, *args, **kwargs)
            with ExitStack() as stack:
                for around in tuple(self.all):  # whoever listens may stop while it is told
                    stack.enter_context(around(tensors))
                _CALL.telling = here
                try:
                    return original(tensors, *args, **kwargs)
                finally:
                    _CALL.telling = before

        self.replacement = torch.autograd.backward = backward

    def uninstall(self) -> None:
        # What somebody else has put on top of ours stays; without listeners ours does nothing.
        if torch.autograd.backward is self.replacement:
            torch.autograd.backward = self.original


_CALL = _Call()
_LISTENERS = _Listeners()


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
    if not _LISTENERS.all:
        _LISTENERS.install()
    _LISTENERS.all.append(around)


def stop_listening(around: Around) -> None:
    """The last pass was the last one; see `listen`."""
    _LISTENERS.all.remove(around)
    if not _LISTENERS.all:
        _LISTENERS.uninstall()
