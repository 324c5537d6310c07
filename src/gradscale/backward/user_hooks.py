"""Which nodes the user watches: their gradients must be what plain loss scaling shows."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# A hook of these packages moves gradients or waits for them; none reads their size.
BLIND = (
    "torch.distributed",
    "torch.nn.parallel",
    "torch._dynamo",
    "torch._functorch",
    "gradscale",
)
"""Whose hooks do not look at values, or know of the plan; ours among them."""
KEEP = 1 << 20


class _Watched:
    """Sequence numbers of watched nodes. Nothing in torch lists a node's tensor hooks.

    A sequence number outlives its node and keeps nothing alive. Numbers are unique per thread; a
    clash between threads pins one node too many, which is harmless because every plan is right.
    """

    def __init__(self) -> None:
        self.numbers: set[int] = set()
        self.retained = WeakTensorKeyDictionary()  # a plain WeakSet compares elementwise
        self.lock = threading.Lock()

    def add(self, tensor: Tensor) -> None:
        node = tensor.grad_fn
        if node is None:
            return
        with self.lock:
            self.numbers.add(node._sequence_nr())
            if len(self.numbers) > KEEP:
                self.numbers = set(sorted(self.numbers)[KEEP // 2 :])

    def current(self) -> set[int]:
        """All watched nodes. `retain_grad` follows a tensor through in-place changes: so do we."""
        with self.lock:
            retained: list[Tensor] = list(self.retained)
        for tensor in retained:
            self.add(tensor)
        return self.numbers


_WATCHED = _Watched()
_installed = False


def watch_user_hooks() -> None:
    """Begins to note which tensors carry a user's gradient hook; a second call does nothing.

    Wraps `torch.Tensor.register_hook` and `torch.Tensor.retain_grad`, which behave as before, and
    `torch.nn.Module.register_backward_hook`, whose hooks sit on nodes. Hooks registered earlier on
    non-leaf tensors are not seen, so call it before the forward pass. Hooks put on a node itself
    (`tensor.grad_fn.register_hook`) leave no trace and see the gradient at the node's exponent.

    Example:
        >>> watch_user_hooks()
        >>> hidden = torch.ones(2, requires_grad=True) * 2
        >>> handle = hidden.register_hook(print)
        >>> hidden.grad_fn._sequence_nr() in watched_numbers()
        True
    """
    global _installed
    if _installed:
        return
    _installed = True
    _wrap_register_hook()
    _wrap_retain_grad()
    _wrap_module_hook()


def watched_numbers() -> set[int]:
    """Sequence numbers of the nodes that a user watches."""
    return _WATCHED.current()


def _wrap_register_hook() -> None:
    original = torch.Tensor.register_hook

    @functools.wraps(original)
    def register_hook(self: Tensor, hook: Callable[..., Any]) -> Any:
        if not _is_blind(hook):
            _WATCHED.add(self)
        return original(self, hook)

    torch.Tensor.register_hook = register_hook


def _wrap_retain_grad() -> None:
    original = torch.Tensor.retain_grad

    @functools.wraps(original)
    def retain_grad(self: Tensor) -> None:
        if self.grad_fn is not None:
            _WATCHED.add(self)
            _WATCHED.retained[self] = True
        original(self)

    torch.Tensor.retain_grad = retain_grad


def _wrap_module_hook() -> None:
    original = torch.nn.Module.register_backward_hook

    @functools.wraps(original)
    def register_backward_hook(self: torch.nn.Module, hook: Callable[..., Any]) -> Any:
        self.register_forward_hook(_watch_output)
        return original(self, hook)

    torch.nn.Module.register_backward_hook = register_backward_hook


def _watch_output(module: torch.nn.Module, args: Any, output: Any) -> None:
    del module, args
    while not isinstance(output, Tensor):
        if not isinstance(output, tuple | list | dict) or not output:
            return
        output = next(iter(output.values() if isinstance(output, dict) else output))
    _WATCHED.add(output)


def _is_blind(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    hook = getattr(hook, "__wrapped__", hook)
    while isinstance(hook, functools.partial):
        hook = hook.func
    module = getattr(hook, "__module__", None) or ""
    return any(module == name or module.startswith(name + ".") for name in BLIND)
