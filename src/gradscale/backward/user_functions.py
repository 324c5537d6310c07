"""Which backward nodes torch did not write: what they do to their gradient is not known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# Theirs are linear: copies, casts, communication, recomputation, products.
_TRUSTED = ("torch.", "gradscale.")
# Here torch wraps what a user registered with `custom_op(…).register_autograd(…)`, and what is
# called within `torch.func`.
_WRAPPED = ("torch._library.", "torch._functorch.autograd_function.")
_FROM_C = "CppNode<"


def is_custom(node: Any, name: str) -> bool:
    """Whether a live node is that of a custom function, in Python or C++, by whoever wrote it.

    Args:
        node: the node.
        name: what autograd calls it.
    """
    return _FROM_C in name or isinstance(node, torch.autograd.function.BackwardCFunction)


def is_users(node: Any) -> bool:
    """Whether neither torch nor this library wrote a custom function's node.

    Example:
        >>> class Double(torch.autograd.Function):
        ...     __module__ = "mine"
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         return x * 2
        ...     @staticmethod
        ...     def backward(ctx, grad):
        ...         return grad * 2
        >>> is_users(Double.apply(torch.ones(1, requires_grad=True)).grad_fn)
        True
    """
    written: Any = getattr(node, "_forward_cls", None)
    if written is None:
        return True
    module = f"{written.__module__}."
    return module.startswith(_WRAPPED) or not module.startswith(_TRUSTED)


def function_name(node: Any) -> str:
    """What its author calls the function of a node, without what torch puts around it."""
    written: Any = getattr(node, "_forward_cls", None)
    name = node.name().partition(_FROM_C)[2].rstrip(">") if written is None else written.__name__
    return name.removeprefix("GeneratedBackwardFor_").removesuffix("Generated")


def is_one_of(node: Any, functions: Sequence[type[torch.autograd.Function] | str]) -> bool:
    """Whether a node's function is among these, given as classes or by name."""
    written: Any = getattr(node, "_forward_cls", None)
    return written in functions or function_name(node) in functions
